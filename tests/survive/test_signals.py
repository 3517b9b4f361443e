"""SIGTERM and SIGINT at random moments: the run ends with the documented code, says how to go on, and goes on."""

from __future__ import annotations

import signal

import pytest

from tests.survive.conftest import (
    EVALUATING,
    LOADING,
    MERGING,
    PREPARING,
    SAVING,
    SEED,
    TRAINING,
    Ended,
    Place,
    Undisturbed,
    cases,
    goes_on,
    moment,
    nothing_half_written,
)
from tests.survive.faults import Fault

SIGNALS = ("SIGINT", "SIGTERM")
NUM = 6
"""Moments of each signal in each phase."""
NAMES = {PREPARING: "preparation", LOADING: "loading the model", SAVING: "saving the result", MERGING: "merging"}


def signalled(place: Place, undisturbed: Undisturbed, name: str, clock: str, within: str, number: int) -> Ended:
    at = moment(number, NUM, undisturbed.counts[within], clock)
    return place.run("train", "my.yaml", fault=Fault(name, clock, within, at))


@pytest.mark.parametrize("within", list(NAMES), ids=list(NAMES.values()))
@pytest.mark.parametrize("number", cases(2, 2 * NUM), ids=lambda number: f"seed{SEED}-{number}")
def test_outside_of_training_it_ends_at_once(number: int, within: str, place: Place, undisturbed: Undisturbed) -> None:
    name = SIGNALS[number % 2]
    ended = signalled(place, undisturbed, name, "calls", within, number // 2 if len(cases(2, 99)) > 2 else 3)
    assert "Traceback" not in ended.err, ended.err
    assert ended.code == 128 + signal.Signals[name], ended.err
    assert "Interrupted. What was published before (checkpoints, prepared data) is kept." in ended.err
    nothing_half_written(place, undisturbed)
    assert not [path for path in place.out.glob(".*") if path.is_dir()], "what was half-written is removed"
    goes_on(place, undisturbed)
    place.tally.tried(name, when=NAMES[within])


@pytest.mark.parametrize(
    ("clock", "within"),
    [
        pytest.param("calls", TRAINING, id="training"),
        pytest.param("files", TRAINING, id="saving"),
        pytest.param("calls", EVALUATING, id="evaluating"),
    ],
)
@pytest.mark.parametrize("number", cases(2, 2 * NUM), ids=lambda number: f"seed{SEED}-{number}")
def test_in_training_it_ends_after_the_step_with_a_checkpoint(
    number: int, clock: str, within: str, place: Place, undisturbed: Undisturbed, request: pytest.FixtureRequest
) -> None:
    name = SIGNALS[number % 2]
    ended = signalled(place, undisturbed, name, clock, within, number // 2 if len(cases(2, 99)) > 2 else 3)
    assert "Traceback" not in ended.err, ended.err
    if "stopped by" not in ended.err:  # it came when the last step was done
        assert ended.code == 0, ended.err
        assert "step 9/9" in ended.err
        return
    assert ended.code == 128 + signal.Signals[name], ended.err
    nothing_half_written(place, undisturbed)
    by = "Ctrl-C" if name == "SIGINT" else name
    if "before its first step" in ended.err:
        assert f"stopped by {by} before its first step -> start it again: nothing is lost" in ended.err
        assert not [*place.out.glob("checkpoint-*"), *place.out.glob("metrics.jsonl")]
        goes_on(place, undisturbed)
        return
    assert f"stopped by {by}; out/checkpoint-" in ended.err
    assert "is saved -> go on with" in ended.err
    step = int(ended.err.rpartition("; out/checkpoint-")[2].split()[0])
    again = goes_on(place, undisturbed)
    assert f"resuming from out/checkpoint-{step}" in again.err, "no step is done twice"
    place.tally.tried(name, when=request.node.callspec.id.rpartition("-")[2])


def test_a_terminal_that_is_closed_ends_a_run_like_sigterm(place: Place, undisturbed: Undisturbed) -> None:
    at = undisturbed.counts[TRAINING]["calls"] // 2
    ended = place.run("train", "my.yaml", fault=Fault("SIGHUP", "calls", TRAINING, at))
    assert ended.code == 128 + signal.SIGHUP, ended.err
    assert "stopped by SIGHUP; out/checkpoint-" in ended.err
    goes_on(place, undisturbed)
    place.tally.tried("SIGHUP", when="training")
