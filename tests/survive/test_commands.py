"""What is made of a run by commands of their own, struck like a run: SIGKILL, signals, a power cut, a full disk.

Each case begins with a run that has ended; every second one has what an earlier command has made, to be replaced.
"""

from __future__ import annotations

import json
import shutil
import signal
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.models import tiny_model
from tests.survive.commands import (
    COMMANDS,
    SHARE,
    Command,
    Done,
    do,
    is_done,
    is_whole,
    leftovers,
    nothing_half_made,
    run,
)
from tests.survive.conftest import (
    EVERYTHING,
    PREPARING,
    SAVING,
    SEED,
    TRAINING,
    Ended,
    Place,
    Server,
    Tally,
    Undisturbed,
    cases,
    hashed,
    moment,
    steps,
)
from tests.survive.disks import ends_well, small_disk_at
from tests.survive.faults import Fault

NUM, NUM_OTHERS = 20, 6
"""Moments of SIGKILL for each command, and of each other fault."""
NAMES = [name for name in COMMANDS if EVERYTHING or name in SHARE]
SIGNALS = ("SIGINT", "SIGTERM")

Doing = Callable[[Command], Done]
Begin = Callable[[Done, int], Place]


@pytest.fixture(scope="session")
def doing(server: Server, undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> Doing:
    """A command where nothing happens to it; done once."""
    kept: dict[Command, Done] = {}

    def undisturbed_command(command: Command) -> Done:
        if command not in kept:
            folder = tmp_path_factory.mktemp("command")
            kept[command] = do(server, undisturbed, folder, command, sharded_model)
        return kept[command]

    return undisturbed_command


def sharded_model(folder: Path) -> None:
    """The tiny model as FSDP's ranks leave one, written by a single process."""
    from torch.distributed import checkpoint

    state = {f"model.{name}": tensor for name, tensor in tiny_model(seed=7).state_dict().items()}
    with warnings.catch_warnings(action="ignore"):  # it says that there is one process
        checkpoint.save(state, checkpoint_id=folder, no_dist=True)


@pytest.fixture
def begin(server: Server, tmp_path: Path, tally: Tally) -> Begin:
    """A place as it was before the command, or with odd numbers as it was after an earlier one."""

    def begin(done: Done, number: int) -> Place:
        again = number % 2 and not done.command.before and not done.command.gone
        shutil.copytree(done.after if again else done.before, tmp_path / "place", symlinks=True)
        return Place(server, tmp_path / "place", tmp_path / "logs", tally)

    return begin


def struck(place: Place, done: Done, action: str, clock: str, number: int, of: int) -> Ended:
    at = moment(number, of, done.counts, clock)
    return run(place, done.command, Fault(action, clock, done.command.within, at))


# -- SIGKILL, and a power cut ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", cases(1, NUM), ids=lambda number: f"seed{SEED}-{number}")
def test_a_command_that_is_killed_is_done_by_the_same_command(
    number: int, name: str, doing: Doing, begin: Begin
) -> None:
    done = doing(COMMANDS[name])
    place = begin(done, number // 2)
    moment_of = number if EVERYTHING else NUM - 2  # where it writes, as a rule
    ended = struck(place, done, "kill", ("files", "calls")[number % 2], moment_of, NUM)
    assert ended.code == -signal.SIGKILL, ended.err
    nothing_half_made(place, done)
    is_done(place, done)
    place.tally.tried("SIGKILL", when=name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", cases(0, NUM_OTHERS), ids=lambda number: f"seed{SEED}-{number}")
def test_a_command_whose_machine_loses_power_is_done_by_the_same_command(
    number: int, name: str, doing: Doing, begin: Begin
) -> None:
    done = doing(COMMANDS[name])
    place = begin(done, number)
    ended = struck(place, done, "power", "files", number, NUM_OTHERS)
    assert ended.code == -signal.SIGKILL, ended.err
    nothing_half_made(place, done)
    is_done(place, done)
    place.tally.tried("power cut", when=name)


PROVED = ("whet merge-lora", "whet quantize", "whet export-gguf")


@pytest.mark.parametrize("name", PROVED if EVERYTHING else [])
@pytest.mark.parametrize("action", ["kill", "SIGTERM"])
def test_who_proves_an_artefact_ends_with_the_command(action: str, name: str, doing: Doing, begin: Begin) -> None:
    """Struck when the fresh process has its job. That it ends too is seen to by `Place.end`, as after every case."""
    command = COMMANDS[name]
    text = command.text.replace("parity: false", "parity: true")
    done = doing(replace(command, text=text, within="whet.artefacts.fresh:FreshProcess.compare"))
    place = begin(done, 0)
    ended = struck(place, done, action, "calls", 19, 20)
    assert ended.code == (-signal.SIGKILL if action == "kill" else 128 + signal.SIGTERM), ended.err
    nothing_half_made(place, done)
    is_done(place, done)
    place.tally.tried("SIGKILL" if action == "kill" else action, when=f"{name}, while it is proved")


# -- signals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", cases(0, 2 * NUM_OTHERS), ids=lambda number: f"seed{SEED}-{number}")
def test_a_command_that_is_asked_to_end_ends_at_once(number: int, name: str, doing: Doing, begin: Begin) -> None:
    done = doing(COMMANDS[name])
    place = begin(done, number // 2)
    asked = SIGNALS[number % 2]
    ended = struck(place, done, asked, "calls", number // 2, NUM_OTHERS)
    assert "Traceback" not in ended.err, ended.err
    assert ended.code == 128 + signal.Signals[asked], ended.err
    assert "Interrupted. What was published before (checkpoints, prepared data) is kept." in ended.err
    nothing_half_made(place, done)
    assert not [path for path in leftovers(place) if path.is_dir()], "what was half-written is removed"
    is_done(place, done)
    place.tally.tried(asked, when=name)


# -- a full disk ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", cases(0, NUM_OTHERS), ids=lambda number: f"seed{SEED}-{number}")
def test_a_command_on_a_disk_that_fills_says_so(number: int, name: str, doing: Doing, begin: Begin) -> None:
    done = doing(COMMANDS[name])
    place = begin(done, number)
    _on_a_full_disk(place, done, "enospc", number)
    place.tally.tried("full disk (writes made to fail)", when=name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", cases(0, NUM_OTHERS // 2), ids=lambda number: f"seed{SEED}-{number}")
def test_a_command_on_a_small_disk_that_fills_says_so(
    number: int, name: str, doing: Doing, server: Server, tmp_path: Path, tally: Tally
) -> None:
    done = doing(COMMANDS[name])
    with small_disk_at(tmp_path / "place"):
        shutil.copytree(done.before, tmp_path / "place", symlinks=True, dirs_exist_ok=True)
        place = Place(server, tmp_path / "place", tmp_path / "logs", tally)
        _on_a_full_disk(place, done, "fill", number, NUM_OTHERS // 2)
    tally.tried("full disk (tmpfs)", when=name)


def _on_a_full_disk(place: Place, done: Done, action: str, number: int, of: int = NUM_OTHERS) -> None:
    ended = struck(place, done, action, "files", number, of)
    if ended.code != 0:
        ends_well(ended)
        nothing_half_made(place, done)
    elif "warning" not in ended.err:  # that something which says how the rest was made could not be written
        is_whole(place, done)
    (place.folder / "ballast").unlink(missing_ok=True)
    is_done(place, done)


# -- a run that is done again ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("within", [PREPARING, TRAINING, SAVING] if EVERYTHING else [TRAINING])
@pytest.mark.parametrize("words", [(), ("--output-dir", "again")] if EVERYTHING else [()], ids=" ".join)
def test_a_run_that_is_done_again_and_killed_is_done_by_the_same_command(
    within: str, words: tuple[str, ...], server: Server, undisturbed: Undisturbed, tmp_path: Path, tally: Tally
) -> None:
    place = Place(server, tmp_path / "place", tmp_path / "logs", tally)
    shutil.copytree(undisturbed.folder, place.folder, symlinks=True)
    shutil.rmtree(place.prepared)
    run_before = hashed(place.out)
    killed = place.run("rerun", "out", *words, fault=Fault("kill", "calls", within, _middle(undisturbed, within)))
    assert killed.code == -signal.SIGKILL, killed.err
    ended = place.run("rerun", "out", *words)
    assert ended.code == 0, ended.err
    made = place.folder / ("again" if words else "out-rerun-2")
    assert steps(made) == undisturbed.steps
    for name in ("adapter_model.safetensors", "merged/model.safetensors"):
        assert hashed(made)[name] == run_before[name]
    assert json.loads((made / "run.json").read_text())["outcome"] == "finished"
    assert hashed(place.out) == run_before, "the run that is done again is left as it was"
    tally.tried("SIGKILL", when="whet rerun")


def _middle(undisturbed: Undisturbed, within: str) -> int:
    return undisturbed.counts[within]["calls"] // 2
