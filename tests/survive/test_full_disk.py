"""A disk that is full: no traceback, what is complete is kept, the cure is said, and with room the run goes on.

On a small tmpfs where this process may mount one; and with writes that are made to fail, everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.survive.conftest import (
    CONFIG,
    EVALUATING,
    LORA,
    MERGING,
    PREPARING,
    SAVING,
    SEED,
    TRAINING,
    Place,
    Server,
    Tally,
    Undisturbed,
    cases,
    furnish,
    goes_on,
    moment,
    nothing_half_written,
)
from tests.survive.disks import ends_well, small_disk_at
from tests.survive.faults import Fault

NUM = 6
"""Moments of each phase."""
NAMES = {
    PREPARING: "preparation",
    TRAINING: "training and its checkpoints",
    EVALUATING: "evaluation",
    SAVING: "saving the result",
    MERGING: "merging",
}
TEXT = CONFIG + LORA + "save_wait_minutes: 0\n"


@pytest.fixture
def small_disk(server: Server, survive_model: Path, tmp_path: Path, tally: Tally) -> Iterator[Place]:
    """A place on a file system of 24 MB."""
    folder = tmp_path / "place"
    with small_disk_at(folder):
        furnish(folder, survive_model, TEXT)
        yield Place(server, folder, tmp_path / "logs", tally)


@pytest.mark.parametrize("within", list(NAMES), ids=list(NAMES.values()))
@pytest.mark.parametrize("number", cases(1, NUM), ids=lambda number: f"seed{SEED}-{number}")
def test_a_disk_that_fills(number: int, within: str, small_disk: Place, undisturbed: Undisturbed) -> None:
    at = moment(number, NUM, undisturbed.counts[within], "files")
    ended = small_disk.run("train", "my.yaml", fault=Fault("fill", "files", within, at))
    if ended.code == 0:  # what was still to be written was nothing, or lines of a log
        assert "warning" in ended.err or not ended.counts["done"], "the tick may not come: a thread saves meanwhile"
    else:
        ends_well(ended)
        nothing_half_written(small_disk, undisturbed)
    (small_disk.folder / "ballast").unlink(missing_ok=True)  # that tick may not have come
    goes_on(small_disk, undisturbed)
    small_disk.tally.tried("full disk (tmpfs)", when=NAMES[within])


@pytest.mark.parametrize("within", list(NAMES), ids=list(NAMES.values()))
@pytest.mark.parametrize("number", cases(1, NUM), ids=lambda number: f"seed{SEED}-{number}")
def test_writes_that_fail(number: int, within: str, place: Place, undisturbed: Undisturbed) -> None:
    place.configure(TEXT)
    at = moment(number, NUM, undisturbed.counts[within], "files")
    ended = place.run("train", "my.yaml", fault=Fault("enospc", "files", within, at))
    if ended.code == 0:
        assert "warning" in ended.err or not ended.counts["done"], "the tick may not come: a thread saves meanwhile"
    else:
        ends_well(ended)
        nothing_half_written(place, undisturbed)
    goes_on(place, undisturbed)
    place.tally.tried("full disk (writes made to fail)", when=NAMES[within])


def test_standard_output_and_error_on_a_full_disk_end_no_training(place: Place, undisturbed: Undisturbed) -> None:
    ended = place.run("train", "my.yaml", stdout="/dev/full", stderr="/dev/full")
    assert ended.code == 0
    goes_on(place, undisturbed)
    place.tally.tried("full disk behind the log", when="training")


def test_what_a_command_prints_to_a_full_disk_is_an_error_in_words(place: Place) -> None:
    ended = place.run("config", "explain", "my.yaml", stdout="/dev/full")
    assert ended.code == 2
    assert ended.errors == [
        "there is no room to write to (No space left on device) -> make room there; the same command goes on with "
        "what was published before"
    ]
