"""Frozen weights that wait on the host give the same gradients, and are on the device for two layers at most."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.levers import assert_same, model_with, resolved_with, step, under

from whet.model.levers import install_levers
from whet.model.memory import layer_offloading
from whet.model.memory.layer_offloading import PlainFetcher
from whet.model.memory.layers import repeated_layers

KEYS = {"adapter": "lora", "lora_target_linear": True, "gradient_checkpointing": True, "layer_offloading": True}


@pytest.mark.parametrize(
    "more",
    [{}, {"tiled_mlp": True, "tiled_mlp_num_shards": 3}, {"gradient_checkpointing_every": 2}],
    ids=["alone", "tiled mlp", "every second"],
)
def test_gradients_are_those_without_it(more: dict[str, Any]) -> None:
    other = model_with(lora=True, dropout=0.1)
    without = under({**KEYS, **more, "layer_offloading": False}, other)
    model = model_with(lora=True, dropout=0.1)
    assert_same(under({**KEYS, **more}, model, device="cuda"), without)
    assert_same(step(model), without)
    with torch.no_grad():
        logits, expected = (each.eval()(torch.tensor([[5, 6, 7]])).logits for each in (model, other))
        assert torch.equal(logits, expected)


def test_weights_are_here_for_few_layers_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight layers' weights on the host, at most the running one's and its neighbours' are on the device."""
    brought: list[torch.Tensor] = []

    class Watching(PlainFetcher):
        def begin(self, on_host: torch.Tensor, device: torch.device) -> torch.Tensor:
            brought.append(on_host)
            return super().begin(on_host, device)

    monkeypatch.setattr(layer_offloading, "PlainFetcher", Watching)
    model = model_with(lora=True, num_hidden_layers=8)
    base = under({**KEYS, "layer_offloading": False}, model_with(lora=True, num_hidden_layers=8))
    under(KEYS, model, device="cuda")
    one_layer = sum(p.nbytes for p in repeated_layers(model)[0].parameters() if not p.requires_grad)
    brought.clear()
    outcome = step(model)
    frozen_per_layer = sum(1 for p in repeated_layers(model)[0].parameters() if not p.requires_grad)
    # Once forward and once backward, but for the first layer, which is still here from the step before.
    assert len(brought) == 15 * frozen_per_layer
    # The step's own peak counts what was brought as made by operators; the weights themselves are known and do not.
    assert outcome.peak < base.peak + 3.5 * one_layer
    for layer in repeated_layers(model)[1:]:
        assert {parameter.device.type for parameter in layer.parameters()} == {"cpu"}


def test_a_cpu_keeps_its_layers() -> None:
    resolved = resolved_with("cpu", **KEYS)
    assert resolved.layer_offloading is False
    assert resolved.choices["layer_offloading"] == "true -> off: the memory of a CPU is host memory"
    assert not any("offloading" in said for said in install_levers(model_with(lora=True), resolved.config, resolved))
