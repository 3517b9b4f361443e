"""On CUDA a step does not depend on how it is cut, float16 scales its loss, and a 4-bit base trains its adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import tiny_model
from tests.tiny_training import make_config, make_inputs, random_samples, write_prepared

from whet.config.resolve import ResolvedRun, resolve
from whet.core.types import Hardware
from whet.methods.sft import build_trainer
from whet.model.adapters import adapt
from whet.model.attention import NAME
from whet.model.levers import install_levers

PACKS = {"sample_packing": True, "sequence_len": 64, "save_strategy": "no", "logging_steps": 1}


def on_cuda(folder: Path, **keys: Any) -> ResolvedRun:
    capability = torch.cuda.get_device_capability()
    hardware = Hardware("cuda", torch.cuda.get_device_name(), bf16=capability >= (8, 0), compute_capability=capability)
    return resolve(make_config(output_dir=str(folder), **{**PACKS, **keys}), hardware)


def trained(folder: Path, model: Any = None, **keys: Any) -> Any:
    resolved = on_cuda(folder / "out", **keys)
    model = (tiny_model("llama", attention=NAME) if model is None else model).cuda().train()
    model = adapt(model, resolved.config, resolved)
    install_levers(model, resolved.config, resolved)
    trainer = build_trainer(make_inputs(write_prepared(folder / "set", random_samples(60)), resolved, model))
    trainer.train()
    return trainer


def losses(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_a_step_is_the_same_however_it_is_cut(tmp_path: Path) -> None:
    """G3 in float32: one pass of four packs, or four passes of one."""
    options = {"bf16": False, "tf32": False, "max_steps": 3, "optimizer": "sgd", "learning_rate": 0.1}
    whole = trained(tmp_path / "whole", micro_batch_size=4, **options)
    cut = trained(tmp_path / "cut", micro_batch_size=1, gradient_accumulation_steps=4, **options)
    for (name, one), other in zip(whole.model.named_parameters(), cut.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("precision", ["fp16", "bf16", "bfloat16"])
def test_every_precision_learns(tmp_path: Path, precision: str) -> None:
    """The rows are random, but the same in each epoch: they can be learnt by heart."""
    trainer = trained(tmp_path, **{precision: True, "num_epochs": 12, "micro_batch_size": 2})
    seen = losses(trainer)
    assert sum(seen[-3:]) < 0.9 * sum(seen[:3])
    assert (trainer.accelerator.scaler is not None) == (precision == "fp16")


def test_an_adapter_on_4_bits_learns(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from tests.models import save_tiny_model, tiny_tokenizer

    from whet.model.load import load_model

    folder = save_tiny_model(tmp_path / "base", hidden_size=64, intermediate_size=128)
    keys = {"base_model": str(folder), "adapter": "qlora", "load_in_4bit": True, "lora_r": 8, "lora_alpha": 16}
    keys |= {"lora_target_linear": True, "num_epochs": 12, "micro_batch_size": 2, "bf16": True}
    resolved = on_cuda(tmp_path / "out", **keys)
    loaded = load_model(resolved.config, resolved, tiny_tokenizer())
    seen = losses(trained(tmp_path / "run", loaded.model, **keys))
    assert sum(seen[-3:]) < 0.9 * sum(seen[:3])
