"""G10 survive: a process that ends at any moment of writing, replacing or removing a checkpoint loses none.

Its end is an exception at the n-th call that changes the folder, for every n: nothing is tidied up behind it.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from whet.training import publishing
from whet.training.checkpoint import checkpoints, newest_complete, what_is_wrong
from whet.training.publishing import clear_leftovers, finish_publishing, publish, remove_old, set_aside, staging


class Killed(BaseException):
    """The process is gone."""


@contextmanager
def killed_at(moment: int) -> Iterator[Callable[[], int]]:
    """The ``moment``-th call that changes a folder is not made; the number of calls so far is given."""
    calls = itertools.count(1)
    made = 0

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(*args: Any, **kwargs: Any) -> Any:
            nonlocal made
            made = next(calls)
            if made == moment:
                raise Killed
            return call(*args, **kwargs)

        return stand_in

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", dying(os.replace))
        patch.setattr(os, "unlink", dying(os.unlink))
        patch.setattr(os, "rmdir", dying(os.rmdir))
        patch.setattr(os, "rename", dying(os.rename))
        patch.setattr(publishing, "sync", dying(publishing.sync))
        yield lambda: made


def write(output_dir: Path, step: int, content: str = "") -> Path:
    """A checkpoint that waits in the staging folder to be published."""
    staged = staging(output_dir, step)
    staged.mkdir(parents=True)
    (staged / "model.safetensors").write_text(f"weights of step {step} {content}")
    (staged / "optimizer.pt").write_text("state")
    return staged


def made(output_dir: Path, *steps: int) -> None:
    for step in steps:
        publish(write(output_dir, step), output_dir / f"checkpoint-{step}", step)


def every_moment(tmp_path: Path, prepare: Callable[[Path], None], act: Callable[[Path], object]) -> Iterator[Path]:
    """The folder after a process has ended at each moment of ``act``, and at last after one that did not end."""
    for moment in itertools.count(1):
        folder = tmp_path / str(moment)
        folder.mkdir()
        prepare(folder)
        with killed_at(moment) as calls:
            try:
                act(folder)
            except Killed:
                yield folder
                continue
        assert moment > 3, "the moments are counted"
        assert calls() < moment
        yield folder
        return


def all_whole(output_dir: Path) -> list[int]:
    """Steps of the checkpoints, every one of which must be whole."""
    assert [what_is_wrong(folder) for folder in checkpoints(output_dir)] == [None] * len(checkpoints(output_dir))
    return [int(folder.name.split("-")[1]) for folder in checkpoints(output_dir)]


def test_a_checkpoint_is_there_whole_or_not_there(tmp_path: Path) -> None:
    def prepare(folder: Path) -> None:
        made(folder, 1)
        write(folder, 2)

    seen = set()
    for folder in every_moment(
        tmp_path, prepare, lambda folder: publish(staging(folder, 2), folder / "checkpoint-2", 2)
    ):
        seen.add(len(all_whole(folder)))
        clear_leftovers(folder)
        assert all_whole(folder) in ([1], [1, 2])
        assert not (folder / publishing.STAGING).exists()
    assert seen == {1, 2}


def test_one_that_is_replaced_is_there_before_and_after(tmp_path: Path) -> None:
    def prepare(folder: Path) -> None:
        made(folder, 1, 2)
        write(folder, 2, "again")

    contents = set()
    for folder in every_moment(
        tmp_path, prepare, lambda folder: publish(staging(folder, 2), folder / "checkpoint-2", 2)
    ):
        clear_leftovers(folder)
        assert all_whole(folder) == [1, 2]
        contents.add((folder / "checkpoint-2" / "model.safetensors").read_text())
        assert not (folder / publishing.STAGING).exists()
    assert contents == {"weights of step 2 ", "weights of step 2 again"}


def test_what_is_removed_never_looks_like_a_checkpoint(tmp_path: Path) -> None:
    for folder in every_moment(
        tmp_path,
        lambda folder: made(folder, 1, 2, 3, 4),
        lambda folder: remove_old(folder, 1, newest=4),
    ):
        assert 4 in all_whole(folder)
        clear_leftovers(folder)
        assert 4 in all_whole(folder)
        assert not (folder / publishing.STAGING).exists()
    assert all_whole(folder) == [4]


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (1, None, [5]),
        (2, None, [4, 5]),
        (1, 2, [2, 5]),
        (2, 4, [3, 4, 5]),  # the best is not counted
        (1, 5, [4, 5]),
        (0, 2, [1, 2, 3, 4, 5]),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path: Path, keep: int, best: int | None, left: list[int]) -> None:
    made(tmp_path, 1, 2, 3, 4, 5)
    remove_old(tmp_path, keep, newest=5, best=tmp_path / f"checkpoint-{best}" if best else None)
    assert all_whole(tmp_path) == left


def test_when_the_best_changes_the_former_one_counts_as_any_other(tmp_path: Path) -> None:
    """The new best is published before the old one may go, so there is a best at every moment."""
    made(tmp_path, 1, 2, 3)
    assert remove_old(tmp_path, 1, newest=3, best=tmp_path / "checkpoint-1") == [tmp_path / "checkpoint-2"]
    made(tmp_path, 4)
    assert remove_old(tmp_path, 1, newest=4, best=tmp_path / "checkpoint-4") == [tmp_path / "checkpoint-1"]
    assert all_whole(tmp_path) == [3, 4]


def test_the_one_just_published_outlives_damaged_ones_with_a_higher_step(tmp_path: Path) -> None:
    """A run went on from step 2, because 8 and 9 are damaged; both look whole to anyone who does not read them."""
    made(tmp_path, 2, 8, 9)
    for step in (8, 9):
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").write_text("stale")
    made(tmp_path, 3)
    remove_old(tmp_path, 1, newest=3)
    assert newest_complete(tmp_path).path == tmp_path / "checkpoint-3"


def test_what_is_newer_than_the_one_gone_on_from_is_set_aside(tmp_path: Path) -> None:
    """A later search for the newest shall find what this run wrote."""
    made(tmp_path, 2, 4, 6)
    place = set_aside(tmp_path, newer_than=2)
    assert place is not None
    assert all_whole(tmp_path) == [2]
    assert all_whole(place) == [4, 6]


def test_leftovers_are_named(tmp_path: Path) -> None:
    made(tmp_path, 1)
    write(tmp_path, 2)
    publishing.seal(write(tmp_path, 3), 3)
    for name in ("rehearsal", "removed-checkpoint-4"):  # whole, and nobody's checkpoint
        shutil.copytree(tmp_path / "checkpoint-1", tmp_path / publishing.STAGING / name)
    assert finish_publishing(tmp_path) == [tmp_path / "checkpoint-3"]
    assert clear_leftovers(tmp_path) == ["checkpoint-2", "rehearsal", "removed-checkpoint-4"]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1", "checkpoint-3"}
    assert finish_publishing(tmp_path) == clear_leftovers(tmp_path) == []
