"""Only a whole checkpoint is resumed from, and a whole one is kept at all times."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from whet.core.errors import ArtefactError, Problem
from whet.training.checkpoint import MANIFEST, checkpoint_to_resume, checkpoints, newest_complete, what_is_wrong
from whet.training.publishing import STAGING, remove_old, seal, set_aside
from whet.training.writer import CheckpointWriter


def make(output_dir: Path, step: int, *, published: bool = True) -> Path:
    folder = output_dir / f"checkpoint-{step}"
    (folder / "global_step").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * step)
    (folder / "global_step" / "optimizer.pt").write_bytes(b"state")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    if published:
        seal(folder, step)
    return folder


def test_the_newest_is_by_number_not_by_name(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        make(tmp_path, step)
    assert newest_complete(tmp_path).path == tmp_path / "checkpoint-100"


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert newest_complete(tmp_path / "nowhere").path is None


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / MANIFEST).unlink(), "it has no whet-checkpoint.json, so it was not finished"),
        (lambda folder: (folder / MANIFEST).write_text('{"step": 2'), "its whet-checkpoint.json cannot be read"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / "global_step/optimizer.pt").write_bytes(b"st"), "has 2 bytes and should have 5"),
        (lambda folder: (folder / "global_step/optimizer.pt").write_bytes(b"stale"), "the content of .* has changed"),
    ],
    ids=["no manifest", "half a manifest", "a file missing", "a file cut", "a byte changed"],
)
def test_a_checkpoint_that_is_not_whole_is_passed_over(
    tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    good, bad = make(tmp_path, 1), make(tmp_path, 2)
    damage(bad)
    found = newest_complete(tmp_path)
    assert found.path == good
    (passed_over,) = found.passed_over
    assert passed_over.path == bad
    import re

    assert re.search(reason, passed_over.reason)


@pytest.mark.parametrize("call", ["stat", "open"])
def test_a_checkpoint_that_the_disk_does_not_give_back_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    good, bad, file = make(tmp_path, 1), make(tmp_path, 2), "global_step/optimizer.pt"
    whole = getattr(Path, call)

    def refused(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path == bad / file:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole(path, *args, **kwargs)

    monkeypatch.setattr(Path, call, refused)
    found = newest_complete(tmp_path)
    assert found.path == good
    assert [item.reason for item in found.passed_over] == [f"{file} cannot be read (Input/output error)"]
    with pytest.raises(ArtefactError, match=r"checkpoint-2 is damaged: .* cannot be read \(Input/output error\)"):
        checkpoint_to_resume(str(bad), str(tmp_path), "here")


def says(**changes: Any) -> Callable[[Path], object]:
    """A manifest with other entries; ``None`` leaves one out."""

    def change(folder: Path) -> None:
        entries = {**json.loads((folder / MANIFEST).read_text()), **changes}
        kept = {name: value for name, value in entries.items() if value is not None}
        (folder / MANIFEST).write_text(json.dumps(kept))

    return change


def leads(target: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").symlink_to(target)

    return change


def is_a_pipe(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)


def is_of_adapter_beside(name: str) -> Callable[[Path], object]:
    """An adapter's checkpoint; transformers would read the weights of that name in its place."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
        (folder / MANIFEST).unlink()
        seal(folder, 2)
        (folder / name).touch()

    return change


ENTRY = {"bytes": 1, "sha256": "0"}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (says(version=99), "is of version 99, and this whet knows version 1"),
        (says(step=7), "it is the checkpoint of step 7, under another's name"),
        (says(step=None), "is not what whet writes"),
        (says(files={}), "is not what whet writes"),
        (says(files={"../checkpoint-1/trainer_state.json": ENTRY}), "which its whet-checkpoint.json does not know"),
        (says(files={"../../x": ENTRY, "model.safetensors": ENTRY}), "names '../../x', which is no file of it"),
        (says(files={"\x1b[2J\n": ENTRY, "model.safetensors": ENTRY}), "\\x1b[2J\\n is missing"),
        (says(files={"\ud800": ENTRY, "model.safetensors": ENTRY}), "\\ud800 cannot be read"),
        (says(files={"x" * 5000: ENTRY, "model.safetensors": ENTRY}), "xxx... cannot be read (File name too long)"),
        (leads("../checkpoint-1/model.safetensors"), "'model.safetensors', which is no file of it"),
        (leads("model.safetensors"), "model.safetensors cannot be read"),
        (is_a_pipe, "its whet-checkpoint.json cannot be read"),
        (lambda folder: (folder / MANIFEST).write_text("[" * 100_000), "its whet-checkpoint.json cannot be read"),
        (lambda folder: (folder / "scaler.pt").touch(), "scaler.pt, which its whet-checkpoint.json does not know"),
        (lambda folder: (folder / "rng_state_1.pth").touch(), "rng_state_1.pth, which its"),
        (is_of_adapter_beside("model.safetensors"), "it holds model.safetensors, which its"),
        (is_of_adapter_beside("pytorch_model.bin"), "it holds pytorch_model.bin, which its"),
    ],
)
def test_a_strange_checkpoint_is_passed_over_in_one_line(
    tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    good, bad = make(tmp_path, 1), make(tmp_path, 2)
    damage(bad)
    found = newest_complete(tmp_path)
    assert found.path == good
    (passed_over,) = found.passed_over
    assert reason in passed_over.reason
    assert passed_over.reason.isprintable()
    assert len(passed_over.reason) < 250


def test_what_does_not_matter_to_a_run_may_lie_in_a_checkpoint(tmp_path: Path) -> None:
    """Notes, what a file manager leaves, a merged model in a folder of its own, the weights in another form (which
    transformers would not read beside these); and a manifest without a version."""
    folder = make(tmp_path, 2)
    for name in ("notes.txt", "._model.safetensors", "._optimizer.pt", "pytorch_model.bin", "mine.pt", "a.safetensors"):
        (folder / name).touch()
    (folder / "merged").mkdir()
    (folder / "merged" / "model.safetensors").touch()
    says(version=None)(folder)
    assert newest_complete(tmp_path).path == folder


def test_names_that_only_look_like_ours_are_not_ours(tmp_path: Path) -> None:
    for name in ("checkpoint-007", "checkpoint-\u0663", "checkpoint-3 (copy)", "checkpoint--1", "checkpoint-3\n"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-8").touch()
    assert checkpoints(tmp_path) == []


def test_a_link_to_a_checkpoint_elsewhere_is_removed_and_moved_as_a_link(tmp_path: Path) -> None:
    elsewhere = make(tmp_path / "elsewhere", 1)
    out = tmp_path / "out"
    make(out, 2)
    (out / "checkpoint-1").symlink_to("../elsewhere/checkpoint-1")
    assert set_aside(out) == out / "_earlier-runs/1"
    assert newest_complete(out / "_earlier-runs/1").path == out / "_earlier-runs/1/checkpoint-2"
    assert what_is_wrong(out / "_earlier-runs/1/checkpoint-1") is None
    (out / "checkpoint-1").symlink_to("../elsewhere/checkpoint-1")
    make(out, 2)
    remove_old(out, keep=1, newest=2)
    assert checkpoints(out) == [out / "checkpoint-2"]
    assert not (out / STAGING).exists()
    assert what_is_wrong(elsewhere) is None


def test_what_is_not_ours_and_has_the_name_of_a_new_checkpoint_is_not_lost(tmp_path: Path) -> None:
    make(tmp_path, 1, published=False)
    (tmp_path / "checkpoint-2").write_text("somebody's file")
    writer = CheckpointWriter(tmp_path)
    for step in (1, 2):
        writer.write(step, [lambda folder: folder.joinpath("model.safetensors").touch()])
    assert [what_is_wrong(folder) for folder in checkpoints(tmp_path)] == [None, None]
    assert (tmp_path / "_earlier-runs/1/checkpoint-1/model.safetensors").stat().st_size == 256
    assert (tmp_path / "_earlier-runs/2/checkpoint-2").read_text() == "somebody's file"


def test_old_checkpoints_go_and_the_best_stays(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        make(tmp_path, step)
    make(tmp_path, 5, published=False)  # being written
    removed = remove_old(tmp_path, keep=2, newest=4, best=tmp_path / "checkpoint-1")
    assert removed == [tmp_path / "checkpoint-2"]
    assert {folder.name for folder in tmp_path.iterdir()} == {f"checkpoint-{step}" for step in (1, 3, 4, 5)}


def test_checkpoints_of_another_program_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    """A run that goes on from transformers' newest checkpoint in the same folder leaves it and those before it."""
    for step in (1, 2):
        make(tmp_path, step, published=False)
    for step in (3, 4, 5):
        make(tmp_path, step)
    assert remove_old(tmp_path, keep=2, newest=5) == [tmp_path / "checkpoint-3"]


def test_nothing_goes_where_all_are_kept(tmp_path: Path) -> None:
    for step in (1, 2):
        make(tmp_path, step)
    assert remove_old(tmp_path, keep=0, newest=2) == []


def test_a_new_run_asks_for_no_checkpoint(tmp_path: Path) -> None:
    make(tmp_path, 1)
    for asked in (None, False):
        assert checkpoint_to_resume(asked, str(tmp_path), "a.yaml:1:1") == (None, ())


def test_asking_for_the_newest_where_there_is_none_is_an_error(tmp_path: Path) -> None:
    make(tmp_path, 3, published=False)
    message = r"a.yaml:1:1: .* holds no complete checkpoint; checkpoint-3: it has no whet-checkpoint.json"
    with pytest.raises(ArtefactError, match=message):
        checkpoint_to_resume(True, str(tmp_path), "a.yaml:1:1")


def test_a_named_folder_must_be_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"there is no folder .* holds none"):
        checkpoint_to_resume(str(tmp_path / "no"), str(tmp_path), "here")
    with pytest.raises(ArtefactError, match=r"has no trainer_state.json, so it is no checkpoint"):
        checkpoint_to_resume(str(tmp_path), str(tmp_path), "here")
    folder = make(tmp_path, 1)
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ArtefactError, match=r"is damaged: model\.safetensors has 5 bytes"):
        checkpoint_to_resume(str(folder), str(tmp_path), "here")


@pytest.mark.parametrize("by_name", [True, False])
def test_weights_without_their_optimizer_are_not_gone_on_from(tmp_path: Path, by_name: bool) -> None:
    folder = make(tmp_path, 4, published=False)
    (folder / "global_step" / "optimizer.pt").unlink()
    seal(folder, 4)
    with pytest.raises(ArtefactError, match=r"here: .*checkpoint-4 holds weights and no optimizer .* -> write it as"):
        checkpoint_to_resume(str(folder) if by_name else True, str(tmp_path), "here")


def test_a_run_that_resumes_by_itself_passes_over_weights_without_their_optimizer(tmp_path: Path) -> None:
    """transformers would go on at their step with a new optimizer; for a chat they are as good as any."""
    whole, bare = make(tmp_path, 2), make(tmp_path, 4, published=False)
    (bare / "global_step" / "optimizer.pt").unlink()
    seal(bare, 4)
    found = newest_complete(tmp_path, with_optimizer=True)
    assert found.path == whole
    (passed_over,) = found.passed_over
    assert passed_over.reason == "it holds weights and no optimizer (it was saved with save_only_model)"
    assert newest_complete(tmp_path).path == bare


def test_what_a_run_that_was_not_meant_has_set_aside_is_named(tmp_path: Path) -> None:
    """Whoever forgot to resume, was refused by the rehearsal, and asks for the newest now."""
    for step in (5, 10):
        make(tmp_path, step)
    set_aside(tmp_path)
    with pytest.raises(ArtefactError, match=r"-> leave out .*, or name one of .*: .*/_earlier-runs/1/checkpoint-10$"):
        checkpoint_to_resume(True, str(tmp_path), "here")


def test_a_named_checkpoint_of_another_program_is_taken_and_told(tmp_path: Path) -> None:
    folder = make(tmp_path, 1, published=False)
    path, passed_over = checkpoint_to_resume(str(folder), str(tmp_path), "here")
    assert path == folder
    assert [item.reason for item in passed_over] == ["it was not written by whet and is taken unverified"]


def test_checkpoints_of_an_earlier_run_are_set_aside_and_never_mixed_up(tmp_path: Path) -> None:
    assert set_aside(tmp_path) is None
    for step in (5, 10):
        make(tmp_path, step)
    assert set_aside(tmp_path) == tmp_path / "_earlier-runs" / "1"
    assert newest_complete(tmp_path).path is None
    make(tmp_path, 2)
    assert newest_complete(tmp_path).path == tmp_path / "checkpoint-2"
    assert set_aside(tmp_path) == tmp_path / "_earlier-runs" / "2"
    assert newest_complete(tmp_path / "_earlier-runs" / "1").path == tmp_path / "_earlier-runs" / "1" / "checkpoint-10"


@pytest.mark.parametrize(
    "error", [ArtefactError(Problem("uploads.json", "cannot be read", "remove the file")), OSError(errno.EIO, "I/O")]
)
def test_what_fails_around_a_published_checkpoint_is_said_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise error

    told: list[Path] = []
    writer = CheckpointWriter(tmp_path, keep=1)
    writer.on_published += [fails, told.append]
    monkeypatch.setattr("whet.training.writer.remove_old", fails)
    for step in (1, 2):
        writer.write(step, [lambda folder: folder.joinpath("model.safetensors").touch()], background=True)
    writer.wait()
    assert told == [tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"]
    assert newest_complete(tmp_path).path == writer.last_published == told[-1]
    assert "checkpoint-2 is written, but not handed on: " in caplog.text
    assert "checkpoint-2 is written, but an older checkpoint cannot be removed: " in caplog.text
