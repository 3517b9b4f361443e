"""Compiled layers train the same model, are compiled once where rows have one length, and say so."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_training import make_resolved, make_trainer, random_samples, write_prepared

from whet.training.callbacks.compiling import CompileLayers

PACKS = {"sample_packing": True, "sequence_len": 64, "micro_batch_size": 1, "max_steps": 6, "save_strategy": "no"}


def trained(folder: Path, **keys: Any) -> dict[str, torch.Tensor]:
    prepared = write_prepared(folder / "set", random_samples(40))
    trainer = make_trainer(prepared, make_resolved(folder / "out", pad_to_sequence_len=True, **PACKS, **keys))
    trainer.train()
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of dynamo, looking about
def test_compiled_layers_train_the_same_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By dynamo alone (backend eager): what inductor makes of a graph is inductor's own to prove."""
    plain = trained(tmp_path / "plain")
    torch._dynamo.reset()
    with caplog.at_level(logging.INFO, "whet"):
        compiled = trained(tmp_path / "compiled", torch_compile=True, torch_compile_backend="eager")
    assert plain.keys() == compiled.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled[name], tensor, atol=1e-4, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    assert "torch_compile: 2 layers, each by itself" in caplog.messages
    assert any(line.endswith("graphs in the first 4 steps, 0 compiled again later") for line in caplog.messages)


def test_auto_leaves_short_runs_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    resolved = make_resolved(tmp_path, torch_compile="auto", pad_to_sequence_len=True)
    assert resolved.torch_compile
    callback = CompileLayers(resolved)
    with caplog.at_level(logging.INFO, "whet"):
        for step in range(4):
            callback._decide(torch.nn.Identity(), remaining=100 - step)
    assert caplog.messages[-1].startswith("torch_compile: auto -> off: 97 steps of")


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({}, "rows differ in length"),
        ({"pad_to_sequence_len": True, "adapter": "lora", "lora_r": 4}, "an adapter's layers have fused kernels"),
    ],
)
def test_auto_is_off_where_it_cannot_pay(tmp_path: Path, keys: dict[str, Any], reason: str) -> None:
    resolved = make_resolved(tmp_path, torch_compile="auto", **keys)
    assert not resolved.torch_compile
    assert reason in resolved.choices["torch_compile"]
