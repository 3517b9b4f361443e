"""The record of a run is JSON that any program reads, whatever was noted, and no session of it is ever lost."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from whet.core.heard import Heard, hearing
from whet.record import EARLIER_RUNS, KILLED, RECORD_NAME, RunRecord, read_record


@dataclass(frozen=True, slots=True)
class Fact:
    share: float
    inner: tuple[Any, ...]


def told(folder: Path) -> dict[str, Any]:
    """The record in a folder."""
    read = read_record(folder / RECORD_NAME)
    assert read is not None
    return read


def test_every_value_is_written_as_strict_json(tmp_path: Path) -> None:
    record = RunRecord(tmp_path)
    noted = {"loss": float("nan"), 3: Path("a"), "fact": Fact(0.5, (True, None, float("inf")))}
    record.note("result", MappingProxyType(noted))
    record.finish("finished")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads((tmp_path / RECORD_NAME).read_text(), parse_constant=refuse)
    assert read["result"] == {"loss": None, "3": "a", "fact": {"share": 0.5, "inner": [True, None, None]}}
    assert read["outcome"] == "finished"


def test_a_resumed_run_adds_a_session_and_one_that_was_killed_says_so(tmp_path: Path) -> None:
    RunRecord(tmp_path).note("hardware", {"device": "cpu"})  # and then it was killed
    resumed = RunRecord(tmp_path)
    resumed.resumes(Path("out/checkpoint-4"))
    assert told(tmp_path)["outcome"] == "running", "nothing of the first session is touched before the second begins"
    resumed.begin()
    resumed.finish("finished")
    first, second = told(tmp_path)["sessions"]
    assert (first["outcome"], first["resumed_from"], first["hardware"]) == (KILLED, None, {"device": "cpu"})
    assert (second["outcome"], second["resumed_from"]) == ("finished", "out/checkpoint-4")


def test_a_run_that_is_refused_leaves_the_record_of_the_one_before(tmp_path: Path) -> None:
    done = RunRecord(tmp_path)
    done.note("result", {"loss": 1.0})
    done.finish("finished")
    refused = RunRecord(tmp_path)
    refused.resumes(Path("out/checkpoint-4"))
    refused.note("result", {"loss": 2.0})
    refused.finish("refused: another learning rate")
    read = told(tmp_path)
    assert read["result"] == {"loss": 1.0}
    assert read["outcome"] == "finished"
    assert [session["outcome"] for session in read["sessions"]] == ["finished", "refused: another learning rate"]


def test_the_record_of_another_run_is_set_aside_with_its_checkpoints(tmp_path: Path) -> None:
    RunRecord(tmp_path).finish("finished")
    for number in (1, 2):
        new = RunRecord(tmp_path)
        new.note("number", number)
        new.begin()
        new.finish("finished")
    assert "number" not in told(tmp_path / EARLIER_RUNS / "1")
    assert told(tmp_path / EARLIER_RUNS / "2")["number"] == 1
    assert told(tmp_path)["number"] == 2
    assert len(told(tmp_path)["sessions"]) == 1


def test_a_record_is_whole_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the next call into the system is, dying before it leaves the old record or the new one."""
    record = RunRecord(tmp_path)
    record.note("step", 1)

    class KilledError(Exception):
        pass

    def die(*_: Any) -> None:
        raise KilledError

    for name in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, die)
            with pytest.raises(KilledError):
                record.note("step", 2)
        assert told(tmp_path)["step"] == 1


def test_a_full_disk_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    record = RunRecord(tmp_path)
    with monkeypatch.context() as patch:

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(os, "replace", full)
        with hearing(Heard(lambda heard: record.note("heard", heard.told())), ("whet",)):  # as a run hears itself
            record.note("step", 1)
            record.note("step", 2)
    assert [line.getMessage() for line in caplog.records].count(caplog.records[0].getMessage()) == 1
    assert "No space left on device" in caplog.text
    record.finish("finished")
    assert told(tmp_path)["step"] == 2


def test_an_unreadable_record_is_set_aside_like_any_other(tmp_path: Path) -> None:
    (tmp_path / RECORD_NAME).write_text('{"outcome": "fini')
    record = RunRecord(tmp_path)
    record.begin()
    assert (tmp_path / EARLIER_RUNS / "1" / RECORD_NAME).read_text() == '{"outcome": "fini'
    assert told(tmp_path)["outcome"] == "running"


def test_a_run_that_goes_on_from_elsewhere_has_sessions_of_its_own(tmp_path: Path) -> None:
    """The record of the run that was in the folder goes where its result is, and says what it did there."""
    done = RunRecord(tmp_path)
    done.note("result", {"loss": 1.0})
    done.finish("finished")
    new = RunRecord(tmp_path)
    new.resumes(Path("copied/checkpoint-4"), of_this_folder=False)
    new.begin(tmp_path / EARLIER_RUNS / "3")
    new.finish("finished")
    assert told(tmp_path / EARLIER_RUNS / "3")["result"] == {"loss": 1.0}
    assert "result" not in told(tmp_path)
    assert [session["resumed_from"] for session in told(tmp_path)["sessions"]] == ["copied/checkpoint-4"]


def test_a_record_says_when_its_run_took_the_folder(tmp_path: Path) -> None:
    record = RunRecord(tmp_path)
    record.finish("refused: no room")
    assert told(tmp_path)["begun"] is None
    record = RunRecord(tmp_path)
    record.begin()
    assert told(tmp_path)["begun"]
    refused = RunRecord(tmp_path)
    refused.finish("refused: no room")
    assert told(tmp_path)["begun"], "that of the run whose folder it is"
    assert "begun" not in RunRecord(None, "merge").facts
