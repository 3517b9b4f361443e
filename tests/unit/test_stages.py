"""The stages of a run where several ranks, or several runs, meet in one folder."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.tiny_training import make_resolved, make_trainer, random_samples, write_prepared

from whet import stages
from whet.core.errors import ArtefactError, ConfigError, Problem
from whet.stages import ending
from whet.training import publishing
from whet.training.publishing import seal
from whet.training.resuming import ResumingTrainer
from whet.training.uploads import LOCK_NAME, QUEUE_NAME, Upload, UploadQueue


def test_a_rank_does_not_mind_that_another_has_removed_its_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch = Path.touch

    def touch_and_lose(path: Path) -> None:
        touch(path)
        path.unlink()

    monkeypatch.setattr(Path, "touch", touch_and_lose)
    assert stages.open_output(make_resolved(tmp_path / "out")) == tmp_path / "out"
    assert list((tmp_path / "out").iterdir()) == []


def test_another_run_in_the_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from whet.core import lock

    def taken(folder: Path) -> None:
        raise lock.Locked("process 77 on node3 since 2026-01-31T12:00:00+00:00")

    monkeypatch.setattr(lock, "FolderLock", taken)
    with pytest.raises(ConfigError, match=r"another run writes to output_dir '.*/out': process 77 on node3 since 2026"):
        stages.lock_output(make_resolved(tmp_path / "out"))
    stages.lock_output(make_resolved(tmp_path / "out", world_size=2, rank=1))


def test_a_result_without_room_says_which_checkpoint_has_it(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    resolved = make_resolved(tmp_path)
    with (
        pytest.raises(ArtefactError, match=r"cannot be written to '.*': No space left on device; no checkpoint holds"),
        ending._result_kept(resolved, tmp_path),
    ):
        raise ArtefactError(Problem("", "it cannot be written", "make room")) from full
    checkpoint(tmp_path, 7)
    with (
        pytest.raises(ArtefactError, match=r"No space left on device; .*/checkpoint-7 holds it -> .*--resume-from-ch"),
        ending._result_kept(resolved, tmp_path),
    ):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(ZeroDivisionError), ending._result_kept(resolved, tmp_path):
        raise ZeroDivisionError


def checkpoint(folder: Path, step: int) -> Path:
    made = folder / f"checkpoint-{step}"
    made.mkdir(parents=True)
    (made / "optimizer.pt").write_bytes(b"state")
    (made / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    seal(made, step)
    return made


@pytest.fixture
def trainer(tmp_path: Path) -> ResumingTrainer:
    prepared = write_prepared(tmp_path / "prepared", random_samples(4))
    return make_trainer(prepared, make_resolved(tmp_path / "out", micro_batch_size=2, max_steps=4))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def test_a_run_without_room_is_refused_before_it_has_moved_anything(
    tmp_path: Path, trainer: ResumingTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever forgot to resume on a full disk, and was refused, asks to resume next."""
    checkpoint(tmp_path / "out", 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    with pytest.raises(ConfigError, match=r"has 0\.0 MB free, and the weights alone need"):
        stages.foresee_disk(make_resolved(tmp_path / "out"), trainer, None)
    assert names(tmp_path / "out") == ["checkpoint-2"]


def test_a_run_that_goes_on_from_elsewhere_sets_all_aside(tmp_path: Path) -> None:
    """Steps of two timelines in one folder: the next search for the newest would take that of the other."""
    out = tmp_path / "out"
    for step in (200, 400, 500):
        checkpoint(out, step)
    elsewhere = checkpoint(tmp_path / "copied", 300)
    assert stages.take_folder(make_resolved(out), elsewhere) == out / "_earlier-runs" / "1"
    assert names(out) == []
    checkpoint(out, 310)
    from_aside = out / "_earlier-runs" / "1" / "checkpoint-400"
    assert stages.take_folder(make_resolved(out), from_aside) == out / "_earlier-runs" / "2"
    assert names(out / "_earlier-runs" / "1") == ["checkpoint-200", "checkpoint-400", "checkpoint-500"]
    assert names(out / "_earlier-runs" / "2") == ["checkpoint-310"]


def test_a_run_that_goes_on_in_its_folder_sets_aside_what_is_newer(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for step in (1, 2, 3):
        checkpoint(out, step)
    (tmp_path / "link").symlink_to(out / "checkpoint-2")
    assert stages.take_folder(make_resolved(out), tmp_path / "link") == out / "_earlier-runs" / "1"
    assert names(out) == ["checkpoint-1", "checkpoint-2"]
    assert stages.take_folder(make_resolved(out), out / "checkpoint-2") is None


def test_a_checkpoint_that_was_replaced_does_not_come_back_among_those_of_the_next_run(tmp_path: Path) -> None:
    """Killed between giving the newer one its name and removing the older one."""
    checkpoint(tmp_path, 7)
    checkpoint(tmp_path / "_writing", 7).rename(tmp_path / "_writing" / "replaced-checkpoint-7")
    assert stages.take_folder(make_resolved(tmp_path), None) == tmp_path / "_earlier-runs" / "1"
    assert names(tmp_path) == []
    assert not (tmp_path / "_writing").exists()


def test_a_run_that_reads_a_checkpoint_of_its_own_folder_is_refused(tmp_path: Path) -> None:
    read = checkpoint(tmp_path, 200)
    with pytest.raises(ConfigError, match=r"begins from '.*checkpoint-200', which it would move .* another output_dir"):
        stages.open_output(make_resolved(tmp_path, base_model=str(read)))
    assert stages.open_output(make_resolved(tmp_path / "other", base_model=str(read))).is_dir()


def test_what_waits_to_be_sent_is_moved_while_nobody_changes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A `whet push` that is under way would note it again, as if it were the new run's."""
    (tmp_path / "run.json").write_text('{"kind": "train"}')
    queue, waiting = UploadQueue(tmp_path), Upload("mlflow", "a run", step=3)
    queue.add(waiting)
    set_aside = publishing.set_aside

    def watched(*words: Any) -> Path | None:
        with (tmp_path / LOCK_NAME).open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return set_aside(*words)

    monkeypatch.setattr(publishing, "set_aside", watched)
    place = stages.take_folder(make_resolved(tmp_path), None)
    queue.sent(waiting)
    assert not (tmp_path / QUEUE_NAME).exists()
    assert place is not None
    assert UploadQueue(place).waiting() == (waiting,)
    assert f"to send it: whet push CONFIG --output-dir {place}" in caplog.text, "it was made in Python"


def test_a_run_that_resumes_by_itself_tells_of_weights_alone_that_it_passes_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, bare = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4)
    (bare / "optimizer.pt").unlink()
    seal(bare, 4)
    assert stages.find_checkpoint(make_resolved(tmp_path, auto_resume_from_checkpoints=True), None) == whole
    assert "checkpoint-4: passed over, because it holds weights and no optimizer" in caplog.text


def test_the_best_checkpoint_is_found_where_it_was_set_aside(tmp_path: Path, trainer: ResumingTrainer) -> None:
    """A run goes on from a copy of its checkpoint elsewhere, and its best stands in the output folder."""
    out = tmp_path / "out"
    best, elsewhere = checkpoint(out, 2), checkpoint(tmp_path / "copied", 3)
    place = stages.take_folder(make_resolved(out), elsewhere)
    assert place is not None
    trainer.state.best_global_step, trainer.state.best_model_checkpoint = 2, str(best)
    trainer.find_best_beside(elsewhere)
    assert trainer.state.best_model_checkpoint == str(place / "checkpoint-2")


def test_a_checkpoint_that_an_evaluation_makes_the_best_is_found_where_it_stands(
    tmp_path: Path, trainer: ResumingTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop had cut the evaluation, and the run goes on from a copy of its checkpoint elsewhere."""
    before, elsewhere = checkpoint(tmp_path / "out", 2), checkpoint(tmp_path / "copied", 3)

    def is_better(*_: object) -> bool:
        trainer.state.best_global_step = 3
        return True

    monkeypatch.setattr(trainer, "_evaluate", lambda *_: {})
    monkeypatch.setattr(trainer, "_determine_best_metric", is_better)
    trainer._resumed_from, trainer.state.best_model_checkpoint = elsewhere, str(before)
    trainer.evaluate_as_due()
    assert trainer.state.best_model_checkpoint == str(elsewhere)
