"""A base model that the hub gives only when the model is loaded is held against the run before all the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.models import save_tiny_model
from tests.tiny_training import make_resolved

from whet import earlier, history
from whet.config.facts import facts_of, write_facts
from whet.core.errors import ConfigError
from whet.model.identity import Identifying, identify
from whet.record import RunRecord

OTHER = {"name": "org/tiny", "sample": "5" * 64, "weights": "5" * 64, "num_bytes": 1}


@pytest.mark.parametrize("is_the_same", [True, False])
def test_a_base_that_comes_late_is_noted_and_compared(tmp_path: Path, is_the_same: bool) -> None:
    folder = tmp_path / "model"
    resolved = make_resolved(tmp_path / "out", base_model=str(folder))
    folder.mkdir()
    record = RunRecord(None, "train")
    facts = history.Facts(facts_of(resolved, {"data": "d"}, 3), Identifying(identify(resolved.config), resolved.config))
    assert "base_model" not in facts.now().identities
    save_tiny_model(folder)
    base = history.Facts(facts.known, Identifying(identify(resolved.config), resolved.config)).now()
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    then = base if is_the_same else replace(base, identities={"base_model": OTHER})
    write_facts(checkpoint, then)
    if is_the_same:
        history.base_loaded(record, resolved, checkpoint, facts)
    else:
        with pytest.raises(ConfigError, match="base_model"):
            history.base_loaded(record, resolved, checkpoint, facts)
    assert record.as_json()["identities"] == facts.now().identities
    assert facts.now().identities["base_model"]["weights"] is not None


@pytest.mark.parametrize("stray", [b"7", b"null", b'["eval"]', b"\xff\xfe", b"[" * 100_000, b'{"kind": "eval", "st'])
def test_a_line_that_is_none_of_ours_costs_a_finished_run_nothing(tmp_path: Path, stray: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"kind": "eval", "step": 2, "eval_loss": 1.5}\n' + stray + b"\n")
    for best in (None, "out/checkpoint-2"):
        assert history._evaluation(tmp_path, best)["eval_loss"] == 1.5


def test_a_record_of_before_a_package_was_kept_does_not_say_that_it_was_not_installed() -> None:
    now = RunRecord(None, "train")
    then = now.as_json()
    before = {name: number for name, number in then["versions"].items() if name not in ("jinja2", "triton")}
    for versions, differs in (
        (before, []),
        ({**before, "torch": "1.0"}, ["torch"]),
        ({**then["versions"], "triton": "0.1"}, ["triton"]),
    ):
        repeated = earlier.Repeated(Path("run.json"), {**then, "versions": versions})
        assert [change.key for change in earlier.surroundings(repeated, now)] == differs


@pytest.mark.parametrize(("folder", "sessions"), [("out", 2), ("_earlier-runs/1", 1), ("elsewhere", 1)])
def test_sessions_are_those_of_the_run_whose_checkpoint_is_the_folder_s(
    tmp_path: Path, folder: str, sessions: int
) -> None:
    out = tmp_path / "out"
    checkpoint = (out if folder.startswith("_") else tmp_path) / folder / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    out.mkdir(exist_ok=True)
    RunRecord(out).finish("finished")
    record = RunRecord(out)
    history.resume(record, make_resolved(out), checkpoint)
    record.begin()
    assert len(record.as_json()["sessions"]) == sessions
    assert (out / "run.json").is_file()
