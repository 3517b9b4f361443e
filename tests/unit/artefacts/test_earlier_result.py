"""What is taken for an earlier run's result, and what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from whet.artefacts import save
from whet.artefacts.card import MARK
from whet.artefacts.earlier_result import checkpoint_read, earlier_result

OF_THE_RUN = [
    *("adapter_config.json", "adapter_model.safetensors", "whet-base.json", "tokenizer.json", "metrics.jsonl"),
    *("README.md", "merged/run.json", "eval/examples-step-2.jsonl", "trained.FAILED-PARITY/model.safetensors"),
]
OF_OTHERS = ["notes.txt", "rows.jsonl", "quantized/model.safetensors", "gguf/list.txt", "checkpoint-1/config.json"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    for name in (*OF_THE_RUN, *OF_OTHERS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(MARK if name == "README.md" else "{}")
    (folder / "run.json").write_text(json.dumps({"kind": "train"}))
    return folder


def names(paths: list[Path]) -> set[str]:
    return {path.name for path in paths}


def test_a_run_s_own_files_are_found_and_nobody_else_s(out: Path) -> None:
    assert names(earlier_result(out, {})) == {name.partition("/")[0] for name in OF_THE_RUN}
    assert earlier_result(out, {})[0].name == "adapter_config.json", "half of it is no adapter"
    (out / "README.md").write_text("My own words.")
    assert "README.md" not in names(earlier_result(out, {}))


@pytest.mark.parametrize("record", [None, "7", '{"kind": "merge"}', '{"kind": "train", "begun": null}'])
def test_of_what_no_run_has_left_only_files_that_a_result_replaces_are(out: Path, record: str | None) -> None:
    """They would be lost at the end of training; whatever else lies there is somebody's. The last record is one that
    the run that asks has just written, or of one that was refused."""
    (out / "run.json").unlink()
    if record is not None:
        (out / "run.json").write_text(record)
    found = names(earlier_result(out, {}))
    assert found == {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "metrics.jsonl"}
    (out / "run.json").write_text(json.dumps({"kind": "train", "begun": "2026-11-27T23:00:00+00:00"}))
    assert "merged" in names(earlier_result(out, {}))


def test_a_result_removes_nothing_that_was_not_set_aside(tmp_path: Path) -> None:
    patterns = (*save.KNOWN_BY, *save._WEIGHTS)
    for pattern in patterns:
        (tmp_path / pattern.replace("*", "00001")).touch()
    assert len(earlier_result(tmp_path, {})) == len(patterns)


def test_what_the_next_run_needs_stays(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(out.parent)
    assert "merged" not in names(earlier_result(out, {"base_model": "out/merged"}))
    assert earlier_result(out, {"lora_model_dir": str(out)}) == []
    kept = earlier_result(out, {"datasets": [{"path": "out/eval/examples-step-2.jsonl"}], "base_model": "org/model"})
    assert names(kept) == {name.partition("/")[0] for name in OF_THE_RUN} - {"eval"}


def test_a_checkpoint_of_the_folder_that_the_next_run_reads_is_seen(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be moved, or replaced by the run's own of the same step, and the base of an adapter with it."""
    monkeypatch.chdir(out.parent)
    (out.parent / "link").symlink_to(out / "checkpoint-1")
    (out / "checkpoint-2").symlink_to(out / "merged")
    for name in ("out/checkpoint-1", str(out / "checkpoint-1"), "out/../out/checkpoint-1", "link", "out/checkpoint-2"):
        assert checkpoint_read(out, {"base_model": name}) is not None, name
        assert checkpoint_read(out, {"lora_model_dir": name}) is not None, name
    assert checkpoint_read(out, {"datasets": [{"path": "out/checkpoint-1/rows.jsonl"}]}) is not None
    for name in ("out/_earlier-runs/1/checkpoint-1", "out/merged", "out", "checkpoint-1", "org/checkpoint-1"):
        assert checkpoint_read(out, {"base_model": name}) is None, name
