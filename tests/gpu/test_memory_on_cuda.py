"""The levers that copy beside computing give the same gradients on a GPU, and less memory by its own account."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.levers import LORA_TARGETS, resolved_with
from tests.models import packed_batch, tiny_model

from whet.model.adapters import adapt
from whet.model.attention import NAME
from whet.model.levers import install_levers
from whet.model.loss import supervised_logits_loss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: memory levers there NOT TESTED")

SIZE = {"num_hidden_layers": 8, "hidden_size": 256, "intermediate_size": 704, "max_position_embeddings": 4096}
LENGTHS = (1200, 333, 1515)
LORA = {"adapter": "lora", "lora_r": 8, "lora_target_modules": LORA_TARGETS}
CHECKPOINTED = {"gradient_checkpointing": True}
LEVERS: dict[str, dict[str, Any]] = {
    "host": {"activation_offloading": True},
    "legacy": {"activation_offloading": "legacy"},
    "disk": {"activation_offloading": "disk"},
    "checkpoints on the host": {"gradient_checkpointing": "offload"},
    "hidden states": {**CHECKPOINTED, "activation_offloading": "hidden_states"},
    "selective": {**CHECKPOINTED, "selective_checkpointing": True},
    "layers": {**LORA, **CHECKPOINTED, "layer_offloading": True},
    "tiled": {"tiled_mlp": True, "tiled_mlp_num_shards": 4},
}


def run(keys: dict[str, Any], steps: int = 3) -> tuple[list[torch.Tensor], int]:
    """Gradients of the last of several steps, and the most bytes allocated beyond the model's before it."""
    resolved = replace(resolved_with("cuda", **keys), device="cuda")
    torch.manual_seed(0)
    model = adapt(tiny_model(attention=NAME, **SIZE), resolved.config, resolved).cuda().train()
    install_levers(model, resolved.config, resolved)
    batch = {
        name: value.cuda() if isinstance(value, torch.Tensor) else value
        for name, value in packed_batch(LENGTHS).items()
    }
    for _ in range(steps):
        model.zero_grad()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        supervised_logits_loss(model, batch).total.backward()
    torch.cuda.synchronize()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return gradients, torch.cuda.max_memory_allocated()


@pytest.mark.parametrize("lever", LEVERS)
def test_gradients_are_those_without_it_and_memory_is_less(lever: str, tmp_path: Path) -> None:
    keys = {**LEVERS[lever], "output_dir": str(tmp_path)}
    plain, most = run(LORA if "adapter" in keys else {})
    gradients, peak = run(keys)
    rounding = 1e-4 if lever == "tiled" else 2e-5  # products of other shapes are summed in another order
    for gradient, other in zip(gradients, plain, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=rounding * float(other.abs().max()) + 1e-12)
    assert peak < most
