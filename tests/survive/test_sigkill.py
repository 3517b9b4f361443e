"""G10 survive: SIGKILL at random moments of preparation, training, saving and merging; the same command goes on.

20 moments of each phase under `make survive`, some of them under `make test`; drawn from `SURVIVE_SEED`, one from
each twentieth of the phase.
"""

from __future__ import annotations

import signal

import pytest

from tests.survive.conftest import (
    MERGING,
    PREPARING,
    SAVING,
    SEED,
    TRAINING,
    Place,
    Undisturbed,
    cases,
    goes_on,
    moment,
    nothing_half_written,
)
from tests.survive.faults import Fault

NUM = 20


def killed(place: Place, undisturbed: Undisturbed, number: int, clock: str, within: str, action: str = "kill") -> None:
    """One moment: the run is killed there, leaves nothing half-written that would be chosen, and goes on."""
    at = moment(number, NUM, undisturbed.counts[within], clock)
    ended = place.run("train", "my.yaml", fault=Fault(action, clock, within, at))
    assert ended.code == -signal.SIGKILL, f"tick {at} of {undisturbed.counts[within]} did not come: {ended.err}"
    nothing_half_written(place, undisturbed)
    goes_on(place, undisturbed)


@pytest.mark.parametrize("number", cases(3, NUM), ids=lambda number: f"seed{SEED}-{number}")
def test_a_run_killed_while_it_prepares_goes_on(number: int, place: Place, undisturbed: Undisturbed) -> None:
    killed(place, undisturbed, number * NUM // len(cases(3, NUM)), "calls", PREPARING)
    place.tally.tried("SIGKILL", when="preparation")


@pytest.mark.parametrize("number", cases(3, NUM), ids=lambda number: f"seed{SEED}-{number}")
def test_a_run_killed_while_it_trains_goes_on(number: int, place: Place, undisturbed: Undisturbed) -> None:
    killed(place, undisturbed, number * NUM // len(cases(3, NUM)), "calls", TRAINING)
    place.tally.tried("SIGKILL", when="training")


@pytest.mark.parametrize("number", cases(4, NUM), ids=lambda number: f"seed{SEED}-{number}")
def test_a_run_killed_while_it_saves_a_checkpoint_goes_on(number: int, place: Place, undisturbed: Undisturbed) -> None:
    killed(place, undisturbed, number * NUM // len(cases(4, NUM)), "files", TRAINING)
    place.tally.tried("SIGKILL", when="saving checkpoints")


@pytest.mark.parametrize("number", cases(3, NUM), ids=lambda number: f"seed{SEED}-{number}")
def test_a_run_killed_while_it_saves_its_result_goes_on(number: int, place: Place, undisturbed: Undisturbed) -> None:
    killed(place, undisturbed, number * NUM // len(cases(3, NUM)), "files", SAVING)
    place.tally.tried("SIGKILL", when="saving the result")


@pytest.mark.parametrize("number", cases(3, NUM), ids=lambda number: f"seed{SEED}-{number}")
def test_a_run_killed_while_it_merges_goes_on(number: int, place: Place, undisturbed: Undisturbed) -> None:
    clock = "files" if number % 2 else "calls"
    killed(place, undisturbed, number * NUM // len(cases(3, NUM)), clock, MERGING)
    place.tally.tried("SIGKILL", when="merging")


@pytest.mark.parametrize("within", [PREPARING, TRAINING, SAVING, MERGING])
@pytest.mark.parametrize("number", cases(1, 5), ids=lambda number: f"seed{SEED}-{number}")
def test_a_run_whose_machine_loses_power_goes_on(
    number: int, within: str, place: Place, undisturbed: Undisturbed
) -> None:
    """As SIGKILL, and of every file that was not synced half of the last bytes are gone. Renames are taken to hold."""
    killed(place, undisturbed, number * NUM // 5 + 3, "files", within, "power")
    place.tally.tried("power cut", when={PREPARING: "preparation", MERGING: "merging"}.get(within, "saving"))
