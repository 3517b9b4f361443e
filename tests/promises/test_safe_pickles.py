"""No file that whet is given can run code by being a pickle; each is refused by its place, with what to do.

Every place where a file is read that is, or could be, a pickle is given one that makes a folder when it is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.e2e.conftest import CONFIG, Whet, model_folder, whet, workspace

__all__ = ["model_folder", "whet", "workspace"]  # fixtures

LORA = "adapter: lora\nlora_r: 4\nlora_alpha: 8\nlora_target_linear: true\n"
QUANTIZE = "quantization: {weight_dtype: int8}\n"
PLANTED = "EXECUTED"

Write = Callable[[Path], None]


class _Planted:
    """Makes a folder in the working directory when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (PLANTED,)


def archive(path: Path) -> None:
    torch.save({"weight": _Planted()}, path)


def before_archives(path: Path) -> None:
    torch.save({"weight": _Planted()}, path, _use_new_zipfile_serialization=False)


def plain(path: Path) -> None:
    path.write_bytes(pickle.dumps(_Planted()))


def refusal(write: Write) -> str:
    """What is said of a file; in protocol 4 and above, the restricted unpickler stops before it knows the name."""
    return (
        "cannot be loaded as tensors and plain values" if write is plain else "is a pickle that would run posix.mkdir"
    )


FORMS = [pytest.param(write, id=write.__name__) for write in (archive, before_archives, plain)]


@pytest.fixture
def own(workspace: Path, model_folder: Path) -> Path:
    """The workspace with a model of its own that may be spoilt."""
    (workspace / "model").unlink()
    shutil.copytree(model_folder, workspace / "model")
    return workspace


@pytest.fixture(autouse=True)
def nothing_is_executed(workspace: Path) -> None:
    yield
    assert not (workspace / PLANTED).exists(), "a planted pickle was loaded"


def test_the_planted_pickle_does_execute_where_pickles_are_loaded(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for write in (archive, before_archives):
        write(tmp_path / "a")
        torch.load(tmp_path / "a", weights_only=False)
        os.rmdir(PLANTED)
    plain(tmp_path / "a")
    pickle.loads((tmp_path / "a").read_bytes())
    os.rmdir(PLANTED)


@pytest.mark.parametrize("write", FORMS)
@pytest.mark.parametrize("command", ["train", "check"])
def test_a_base_model(write: Write, command: str, own: Path, whet: Whet) -> None:
    (own / "model" / "model.safetensors").unlink()
    write(own / "model" / "pytorch_model.bin")
    outcome = whet(command, "my.yaml")
    assert outcome.code == 2, outcome.err
    assert f"my.yaml:1:1: 'model/pytorch_model.bin' {refusal(write)}" in outcome.err
    assert "-> take a copy with safetensors" in outcome.err


def test_a_base_model_of_pickled_tensors_is_read_and_told(own: Path, whet: Whet) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(own / "model" / "model.safetensors"), own / "model" / "pytorch_model.bin")
    (own / "model" / "model.safetensors").unlink()
    outcome = whet("train", "my.yaml")
    assert outcome.code == 0, outcome.err
    assert "warning: my.yaml:1:1: base_model: 'model' has pickled weights" in outcome.err


@pytest.fixture
def trained(own: Path, whet: Whet) -> Path:
    """A LoRA run with a checkpoint after each of its two steps."""
    text = CONFIG.replace('save_strategy: "no"', "save_strategy: steps\nsave_steps: 1")
    (own / "my.yaml").write_text(text + LORA)
    outcome = whet("train", "my.yaml")
    assert outcome.code == 0, outcome.err
    return own


def test_an_adapter_and_each_file_of_a_checkpoint(trained: Path, whet: Whet) -> None:
    """One run, its files planted one after the other: each is a law of its own."""
    checkpoint = trained / "out" / "checkpoint-1"
    shutil.copytree(trained / "out", trained / "adapter", ignore=shutil.ignore_patterns("checkpoint*"))
    (trained / "adapter" / "adapter_model.safetensors").unlink()
    commands = (("train", "--output-dir", "new"), ("merge-lora",), ("chat", "--prompt", "Hi"))
    for write, words in zip((archive, before_archives, plain), commands, strict=True):
        write(trained / "adapter" / "adapter_model.bin")
        outcome = whet(words[0], "my.yaml", *words[1:], "--lora-model-dir", "adapter")
        assert outcome.code == 2, (words, outcome.err)
        assert f"adapter/adapter_model.bin' {refusal(write)}" in outcome.err, outcome.err
        assert not (trained / PLANTED).exists()
    (checkpoint / "whet-checkpoint.json").unlink()  # a stranger's: nothing tells what its files should be
    states = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
    for write, name in zip((plain, before_archives, archive), states, strict=True):
        good = (checkpoint / name).read_bytes()
        write(checkpoint / name)
        outcome = whet("train", "my.yaml", "--resume-from-checkpoint", "out/checkpoint-1")
        assert outcome.code == 2, (name, outcome.err)
        assert f"'out/checkpoint-1/{name}' {refusal(write)}" in outcome.err, outcome.err
        assert "go on from another checkpoint" in outcome.err
        assert not (trained / PLANTED).exists()
        (checkpoint / name).write_bytes(good)
    adapter = trained / "out" / "adapter_model.safetensors"
    trained_bytes = adapter.read_bytes()
    adapter.write_bytes((1 << 60).to_bytes(8, "little") + b"{")
    outcome = whet("merge-lora", "my.yaml")
    assert outcome.code == 2, outcome.err
    assert "the adapter in 'out' does not fit 'model' (its file is damaged: " in outcome.err
    adapter.write_bytes(trained_bytes)
    weights = trained / "model" / "model.safetensors"
    kept = weights.read_bytes()
    weights.unlink()
    for write, words in zip((archive, plain), (("merge-lora",), ("quantize", "--model-dir", "model")), strict=True):
        write(trained / "model" / "pytorch_model.bin")
        with (trained / "my.yaml").open("a") as file:
            file.write("allow_other_base: true\n" if words[0] == "merge-lora" else QUANTIZE)
        outcome = whet(words[0], "my.yaml", *words[1:])
        assert outcome.code == 2, (words, outcome.err)
        assert f"'model/pytorch_model.bin' {refusal(write)}" in outcome.err, outcome.err
        assert not (trained / PLANTED).exists()
    (trained / "my.yaml").write_text((trained / "my.yaml").read_text().replace(QUANTIZE, ""))
    (trained / "model" / "pytorch_model.bin").unlink()
    weights.write_bytes(kept)
    plain(checkpoint / "training_args.bin")
    assert whet("train", "my.yaml", "--resume-from-checkpoint", "out/checkpoint-1").code == 0


def test_a_prepared_set(own: Path, whet: Whet) -> None:
    assert whet("preprocess", "my.yaml").code == 0
    indices = next((own / "last_run_prepared").glob("*/train.npy"))
    manifest = json.loads((indices.parent / "manifest.json").read_text())
    np.save(indices, np.array([_Planted()], dtype=object), allow_pickle=True)
    written = {"bytes": indices.stat().st_size, "sha256": hashlib.sha256(indices.read_bytes()).hexdigest()}
    manifest["hashes"]["train.npy"] = written
    (indices.parent / "manifest.json").write_text(json.dumps(manifest))
    outcome = whet("preprocess", "my.yaml")
    assert outcome.code == 0
    assert f"{indices.relative_to(own)}: " in outcome.err
    assert "it must be made again" in outcome.err


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{path: pandas, data_files: rows.pkl, type: chat_template}", "'pandas' reads pickles"),
        ("{path: rows.pkl, type: chat_template}", "the format of 'rows.pkl' is not told by its name"),
        ("{path: rows.joblib, type: chat_template}", "the format of 'rows.joblib' is not told by its name"),
        ("{path: folder, type: chat_template}", "the folder 'folder' holds no file of rows"),
        ("{path: script, type: chat_template}", "the folder 'script' holds no file of rows"),
        ("{path: rows.npy, ds_type: json, type: chat_template}", "rows.npy"),
    ],
)
def test_a_dataset(row: str, told: str, own: Path, whet: Whet) -> None:
    for name in ("rows.pkl", "rows.joblib", "folder/rows.pkl"):
        (own / name).parent.mkdir(exist_ok=True)
        plain(own / name)
    np.save(own / "rows.npy", np.array([_Planted()], dtype=object), allow_pickle=True)
    (own / "script").mkdir()
    (own / "script" / "script.py").write_text(f"import os\nos.mkdir({PLANTED!r})\n")
    text = CONFIG.replace("  - path: rows.jsonl\n    type: chat_template\n", f"  - {row}\n")
    (own / "my.yaml").write_text(text)
    outcome = whet("preprocess", "my.yaml")
    assert outcome.code == 2, outcome.err
    assert told in outcome.err
    assert "fault in whet" not in outcome.err
