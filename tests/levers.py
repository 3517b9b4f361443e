"""A tiny model under a lever: its gradients, and the bytes it keeps for the backward pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from tests.models import packed_batch, tiny_model
from tests.tiny_training import make_config
from whet.config.resolve import ResolvedRun, resolve
from whet.core.types import Hardware
from whet.model.attention import NAME
from whet.model.levers import install_levers
from whet.model.loss import supervised_logits_loss
from whet.model.memory.accounting import LiveBytes

LENGTHS = (40, 17, 39)
LORA_TARGETS = ("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Outcome:
    """Loss and gradients of one step, and the bytes alive between forward and backward, and at most."""

    loss: torch.Tensor
    gradients: dict[str, torch.Tensor]
    saved: int
    peak: int


def resolved_with(device: str = "cpu", **keys: Any) -> ResolvedRun:
    """A resolved run of flat keys; what was decided for another device may be asked for with ``device``."""
    resolved = resolve(make_config(sequence_len=128, **keys), Hardware(device, "a device", num_cpus=2))
    return replace(resolved, device="cpu")


def model_with(lora: bool = False, architecture: str = "llama", dropout: float = 0.0, **size: Any) -> Any:
    """A tiny model in training mode, with an adapter or without."""
    model = tiny_model(architecture, attention=NAME, **{"num_hidden_layers": 4, **size})
    if lora:
        torch.manual_seed(1)
        settings = LoraConfig(r=4, lora_dropout=dropout, target_modules=list(LORA_TARGETS), init_lora_weights=False)
        model = get_peft_model(model, settings)
    return model.train()


def under(lever: dict[str, Any], model: Any, device: str = "cpu") -> Outcome:
    """One step of the model with the lever's keys installed."""
    resolved = resolved_with(device, **lever)
    said = install_levers(model, resolved.config, resolved)
    assert all(isinstance(sentence, str) for sentence in said)
    return step(model)


def step(model: Any) -> Outcome:
    """Forward and backward of one packed row, with the same random numbers every time."""
    torch.manual_seed(7)
    with LiveBytes(known=model.state_dict().values()) as alive:
        loss = supervised_logits_loss(model, packed_batch(LENGTHS)).total
        saved = alive.now()
        loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return Outcome(loss.detach(), gradients, saved, alive.peak)


def assert_same(one: Outcome, other: Outcome) -> None:
    """Bit for bit the same loss and gradients, of the same parameters."""
    assert torch.equal(one.loss, other.loss)
    assert one.gradients.keys() == other.gradients.keys()
    for name, gradient in one.gradients.items():
        assert torch.equal(gradient, other.gradients[name]), name
