"""The laws of tests/unit/model/test_precision.py and of quantising, with the GPU's own 8-bit products."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.models import make_config, packed_batch, save_tiny_model, tiny_model
from transformers import AutoModelForCausalLM

from whet.artefacts.quantize import quantize_model
from whet.config.resolve import resolve
from whet.distributed.hardware import probe
from whet.model.float8 import convert
from whet.model.loss import supervised_logits_loss

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9),
    reason="no GPU with 8-bit products: fp8 NOT TESTED",
)
SIZE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16}


def losses(model: torch.nn.Module) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    found = []
    for _ in range(4):
        batch = packed_batch((30, 13, 20))
        batch = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
        with torch.autocast("cuda", torch.bfloat16):
            parts = supervised_logits_loss(model, batch)
        loss = parts.total / parts.count
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def test_training_in_8_bit_floats_follows_training_in_bfloat16() -> None:
    exact, rounded = tiny_model(**SIZE).cuda(), tiny_model(**SIZE).cuda()
    assert convert(rounded) == (14, 14)
    torch.testing.assert_close(torch.tensor(losses(rounded)), torch.tensor(losses(exact)), atol=0, rtol=0.06)


def test_weights_and_inputs_in_8_bit_floats_are_near_the_model(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", **SIZE)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    config = make_config("tiny", quant={"quantization": {"weight_dtype": "fp8", "activation_dtype": "fp8"}})
    result = quantize_model(config, resolve(config, probe()), folder, tmp_path / "out")
    assert 0 < result.mean_kl < 0.5
