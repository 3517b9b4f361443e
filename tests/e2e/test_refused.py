"""A run that is refused leaves the output folder as it was, byte for byte and name for name, but for its own record."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.e2e.conftest import CONFIG, Whet, chat, write_rows
from tests.models import save_tiny_model

from whet.cli.main import run_command
from whet.core import lock
from whet.training import rehearsal
from whet.training.publishing import seal

Patch = pytest.MonkeyPatch
EARLIER = CONFIG.replace('save_strategy: "no"', "save_steps: 1")


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a run has ended after step 2, another one was killed while it saved, and a third was meant."""
    folder = tmp_path_factory.mktemp("earlier")
    save_tiny_model(folder / "model")
    write_rows(folder / "rows.jsonl", [chat(f"What is {n} + 1?", f"It is {n + 1}.") for n in range(12)])
    (folder / "my.yaml").write_text(EARLIER)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_command(["train", "my.yaml"]) == 0
    for name in ("_writing/checkpoint-3", "_writing/removed-checkpoint-2", "_earlier-runs/1/checkpoint-9", "runs"):
        (folder / "out" / name).mkdir(parents=True)
        (folder / "out" / name / "a-file").write_text("of another run")
    for name in ("whet_stop", "uploads.json", "notes.txt"):
        (folder / "out" / name).write_text("{}")
    return folder


@pytest.fixture
def place(earlier: Path, tmp_path: Path, monkeypatch: Patch) -> Path:
    monkeypatch.chdir(shutil.copytree(earlier, tmp_path / "place"))
    return tmp_path / "place"


def content(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def no_room(place: Path, patch: Patch) -> None:
    patch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))


def nothing_is_read(place: Path, patch: Patch) -> None:
    patch.setattr(rehearsal, "read_elsewhere", lambda folder: "it is torn")


def another_base(place: Path, patch: Patch) -> None:
    shutil.rmtree("model")
    save_tiny_model(place / "model", seed=1)


def another_run(place: Path, patch: Patch) -> None:
    def taken(folder: Path) -> None:
        raise lock.Locked("process 77 on node3")

    patch.setattr(lock, "FolderLock", taken)


def bad_rows(place: Path, patch: Patch) -> None:
    write_rows(place / "rows.jsonl", [{"messages": "none"}])


def no_hub(place: Path, patch: Patch) -> None:
    from whet.artefacts import hub

    def unreachable(self: object, *words: object, **options: object) -> None:
        raise OSError("no route to the hub")

    patch.setattr(hub.HfApi, "create_repo", unreachable)


def a_pickle(place: Path, patch: Patch) -> None:
    torch.save({"state": Path("a class of nobody's list")}, "out/checkpoint-1/optimizer.pt")
    seal(place / "out" / "checkpoint-1", 1)


def a_way_out(place: Path, patch: Patch) -> None:
    os.symlink("/etc", "out/runs/elsewhere")


def one_cycle(place: Path, patch: Patch) -> None:
    """The earlier run's schedule was one whose rates are in its checkpoints."""
    for step in (1, 2):
        path = place / "out" / f"checkpoint-{step}" / "whet-run-facts.json"
        facts = json.loads(path.read_text())
        facts["values"]["lr_scheduler"] = facts["resolved"]["lr_scheduler"] = "one_cycle"
        path.write_text(json.dumps(facts))
        seal(path.parent, step)


def no_tracker(place: Path, patch: Patch) -> None:
    from whet.training.callbacks import trackers

    def unreachable(*words: object, **options: object) -> None:
        raise ConnectionError("nobody is there")

    patch.setenv("TENSORBOARD_LOGGING_DIR", str(place / "logs"))
    patch.setattr(trackers, "stays_here", lambda name: False)
    patch.setattr(trackers.TensorBoardCallback, "on_train_begin", unreachable)


def own_record_alone(place: Path, patch: Patch) -> None:
    """No run has been here; the first one to be refused leaves its record."""
    (place / "out" / "run.json").unlink()
    no_room(place, patch)


def stopped_while_loading(place: Path, patch: Patch) -> None:
    def rehearsed(trainer: object, where: str) -> int:
        signal.raise_signal(signal.SIGTERM)
        return 0

    patch.setattr(rehearsal, "rehearse", rehearsed)


def nothing(place: Path, patch: Patch) -> None: ...


RESUME = ("--resume-from-checkpoint", "out/checkpoint-1")
REFUSALS: list[tuple[str, Callable[[Path, Patch], None], tuple[str, ...], str]] = [
    ("config", nothing, ("--micro-batch-size", "none"), "micro_batch_size"),
    ("model", nothing, ("--base-model", "./nowhere"), "nowhere"),
    ("rows", bad_rows, (), "rows.jsonl"),
    ("lock", another_run, (), "process 77 on node3"),
    ("hub", no_hub, ("--hub-model-id", "me/mine"), "no route to the hub"),
    ("link", a_way_out, (), "is a link to '/etc'"),
    ("disk", no_room, (), "the weights alone need"),
    ("rehearsal", nothing_is_read, ("--rehearse-saving", "true"), "it is torn"),
    ("tracker", no_tracker, ("--use-tensorboard", "true"), "nobody is there"),
    ("no run before", own_record_alone, (), "the weights alone need"),
    ("own checkpoint", nothing, ("--base-model", "out/checkpoint-2"), "name another output_dir"),
    ("a signal", stopped_while_loading, ("--rehearse-saving", "true"), "stopped by SIGTERM before its first step"),
    ("resume nothing", nothing, ("--resume-from-checkpoint", "out/checkpoint-7"), "there is no folder"),
    ("resume another run", nothing, (*RESUME, "--learning-rate", "0.1"), "--allow-change learning_rate"),
    ("resume another base", another_base, RESUME, "base_model"),
    (
        "resume with other rates",
        one_cycle,
        (*RESUME, "--lr-scheduler", "one_cycle", "--learning-rate", "0.1", "--allow-change", "learning_rate"),
        "keeps its rates in the checkpoint",
    ),
    ("resume without room", no_room, RESUME, "the weights alone need"),
    ("resume a pickle", a_pickle, RESUME, "optimizer.pt"),
    ("resume, rehearse", nothing_is_read, (*RESUME, "--rehearse-saving", "true"), "it is torn"),
]


@pytest.mark.parametrize(
    ("prepare", "words", "said"), [each[1:] for each in REFUSALS], ids=[each[0] for each in REFUSALS]
)
def test_a_run_that_is_refused_leaves_the_folder_as_it_was(
    prepare: Callable[[Path, Patch], None],
    words: tuple[str, ...],
    said: str,
    place: Path,
    whet: Whet,
    monkeypatch: Patch,
) -> None:
    prepare(place, monkeypatch)
    before = content(place / "out")
    ended = whet("train", "my.yaml", *words)
    assert ended.code != 0
    assert said in ended.err
    after = content(place / "out")
    before_record, after_record = (json.loads(each.pop("run.json", None) or b"{}") for each in (before, after))
    assert after == before
    if not before_record:
        assert (after_record["begun"], after_record["outcome"].split(":")[0]) == (None, "refused")
        return
    sessions: list[Any] = after_record.pop("sessions")
    earlier = before_record.pop("sessions")
    assert after_record == before_record
    assert sessions[: len(earlier)] == earlier
    assert [each["outcome"].split(":")[0] for each in sessions[len(earlier) :]] in ([], ["refused"], ["stopped"])


def test_a_run_that_begins_takes_the_folder(place: Path, whet: Whet) -> None:
    """What the law above is held against: the same folder, and nothing that refuses."""
    before = content(place / "out")
    ended = whet("train", "my.yaml", "--max-steps", "1", "--rehearse-saving", "true")
    assert ended.code == 0, ended.err
    assert "out held what an earlier run had left; it is in out/_earlier-runs/2 now" in ended.err
    assert "ended while it wrote checkpoint-3, removed-checkpoint-2; what was there of it is removed" in ended.err
    after = content(place / "out")
    stays = ("notes.txt", "runs", "_earlier-runs", "whet_stop")
    moved = {name: kept for name, kept in before.items() if not name.startswith((*stays, "_writing"))}
    assert {
        "checkpoint-2/optimizer.pt",
        "model.safetensors",
        "metrics.jsonl",
        "run.json",
        "uploads.json",
    } <= moved.keys()
    assert "to send it: whet push my.yaml --output-dir out/_earlier-runs/2" in ended.err
    assert {name: after.get(f"_earlier-runs/2/{name}") for name in moved} == moved
    kept = {name: kept for name, kept in before.items() if name.startswith(stays)}
    assert {name: after.get(name) for name in kept} == kept
    assert not any(name.startswith("_writing") for name in after)
    assert ended.err.index("rehearsal: a checkpoint") < ended.err.index("held what an earlier run had left")


def test_a_run_that_is_refused_gives_only_what_a_dead_run_had_written_whole_its_name(place: Path, whet: Whet) -> None:
    written = place / "out" / "_writing" / "checkpoint-3"
    seal(written, 3)
    before = content(place / "out")
    assert whet("train", "my.yaml", "--resume-from-checkpoint", "out/checkpoint-7").code == 2
    after = content(place / "out")
    assert after.keys() - before.keys() == {
        name.removeprefix("_writing/") for name in before if "/checkpoint-3" in name
    }
    assert before.keys() - after.keys() == {name for name in before if "/checkpoint-3" in name}


def test_a_first_run_loses_nothing_that_others_had_there(place: Path, whet: Whet) -> None:
    """A model, or the result of another program, in a folder that no run of whet has been in."""
    shutil.rmtree("out")
    shutil.copytree("model", "out")
    for name in ("vocab.txt", "notes.txt", "metrics.jsonl"):
        (place / "out" / name).write_text(name)
    before = content(place / "out")
    for refused in (("--resume-from-checkpoint", "out/checkpoint-7"), ()):
        ended = whet("train", "my.yaml", "--max-steps", "1", *refused)
        assert ended.code == (2 if refused else 0), ended.err
    assert "out held what an earlier run had left; it is in out/_earlier-runs/1 now" in ended.err
    after = content(place / "out")
    aside = {name for name in before if f"_earlier-runs/1/{name}" in after}
    assert {"config.json", "model.safetensors", "metrics.jsonl"} <= aside
    assert {"vocab.txt", "notes.txt"} & aside == set()
    assert before == {name: after[f"_earlier-runs/1/{name}" if name in aside else name] for name in before}
