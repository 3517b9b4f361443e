"""What is taken for an earlier run's result, and what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from whet.artefacts.card import MARK
from whet.artefacts.earlier_result import earlier_result

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


def test_without_a_run_s_record_nothing_is(out: Path) -> None:
    (out / "run.json").write_text(json.dumps({"kind": "merge"}))
    assert earlier_result(out, {}) == []
    (out / "run.json").unlink()
    assert earlier_result(out, {}) == []


def test_what_the_next_run_needs_stays(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(out.parent)
    assert "merged" not in names(earlier_result(out, {"base_model": "out/merged"}))
    assert earlier_result(out, {"lora_model_dir": str(out)}) == []
    kept = earlier_result(out, {"datasets": [{"path": "out/eval/examples-step-2.jsonl"}], "base_model": "org/model"})
    assert names(kept) == {name.partition("/")[0] for name in OF_THE_RUN} - {"eval"}
