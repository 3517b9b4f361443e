"""What `whet train` saves is proved to be what stands in memory; what is not is kept apart, and the command fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.e2e.conftest import Whet
from tests.e2e.test_train import LORA, configure
from tests.warm import warm  # noqa: F401

from whet.artefacts import save

NEW_TOKENS = f"tokens: [{', '.join(f'<t{n}>' for n in range(50))}]\n"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(
    ("more", "kind", "outcome", "limit"),
    [
        ("", "full model", "within the limit", 1e-4),
        ("bf16: true\n", "full model", "within the limit", 1e-2),
        (LORA + "peft_use_dora: true\n", "adapter", "within the limit", 1e-4),
        (LORA + "bf16: true\nlora_modules_to_save: [embed_tokens]\n", "adapter", "within the limit", 1e-2),
        (LORA + NEW_TOKENS + "peft_trainable_token_indices: [305]\n", "adapter", "within the limit", 1e-4),
        (LORA + "load_in_4bit: true\n", "adapter", "reported", None),
    ],
)
def test_what_is_saved_is_what_was_trained(
    more: str, kind: str, outcome: str, limit: float | None, workspace: Path, whet: Whet
) -> None:
    configure(workspace, more, parity=True, learning_rate=0.01)
    done = whet("train", "my.yaml")
    assert done.code == 0, done.err
    record = json.loads((workspace / "out" / "parity.json").read_text())
    assert record["artefact"]["kind"] == kind
    assert record["outcome"] == outcome
    assert (record["limit"] or {}).get("mean_kl") == limit
    assert record["kl"]["mean"] <= (limit or 1e-2)
    assert record["live"]["base"] == "model"
    assert record["prompts"]["form"] == "chat template"
    assert "run.json" not in record["artefact"]["files"]
    assert f"parity: the {kind} in 'out', reloaded in a fresh process: KL " in done.err
    assert not list((workspace / "out").glob(".*")), "something of the proof is left"


@pytest.mark.usefixtures("warm")
def test_an_adapter_that_is_not_the_trained_one_is_kept_apart(
    workspace: Path, whet: Whet, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = save.save_files

    def garble(model: torch.nn.Module, *args: object) -> tuple[str, ...]:
        names = write(model, *args)  # type: ignore[arg-type]
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.add_(0.5)
        return names

    monkeypatch.setattr(save, "save_files", garble)
    configure(workspace, LORA, parity=True)
    done = whet("train", "my.yaml")
    assert done.code == 1
    (error,) = done.errors
    assert error.startswith("the adapter is not the model that was trained: KL ")
    assert "it is kept as 'out/adapter.FAILED-PARITY' -> do not use it" in error
    failed = workspace / "out" / "adapter.FAILED-PARITY"
    assert {*ADAPTER, "parity.json", "tokenizer.json"} <= {path.name for path in failed.iterdir()}
    assert not any((workspace / "out" / name).exists() for name in ADAPTER)
    assert json.loads((workspace / "out" / "run.json").read_text())["outcome"].startswith("refused: the adapter is not")
    assert whet("chat", "my.yaml", "--prompt", "hi").errors[0].startswith("my.yaml:"), "nothing is there to talk to"
