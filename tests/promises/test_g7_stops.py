"""G7 resume, of a run that is stopped or killed anywhere: amid an accumulation, before or behind a line of its log.

What was done after the last checkpoint is done again, in full; what is told of it is told once.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.resume_cases import WEIGHTS
from tests.resuming import Bench, Outcome, same
from transformers import TrainerCallback

from whet.core.errors import ArtefactError
from whet.health.non_finite import StepFigures
from whet.training.callbacks.early_stopping import EarlyStopping
from whet.training.callbacks.guard import NonFiniteGuard
from whet.training.callbacks.interrupt import TrainingInterrupted
from whet.training.callbacks.watchdog import LossWatchdog
from whet.training.carried import FILE, Memory
from whet.training.checkpoint import newest_complete

RUN: dict[str, Any] = {
    "data": "mixed",
    "datasets": ({**WEIGHTS[0], "weight": None}, {**WEIGHTS[1], "weight": None}),
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "size": {"attention_dropout": 0.1},
}
"""Two epochs of packed documents, three steps each, of two micro-batches (the last of one)."""


class Killed(BaseException):
    """What SIGKILL is to a process, as far as one test can do it: nothing that is not on the disk remains."""


class At(TrainerCallback):
    """Acts at a moment of a step (from 1): ``begin``, ``middle`` (between micro-batches), ``end``, ``log``."""

    def __init__(self, step: int, moment: str, action: Callable[[], None]) -> None:
        self._step, self._moment, self._action = step, moment, action

    def _here(self, moment: str, step: int) -> None:
        if (step, moment) == (self._step, self._moment):
            self._action()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._here("begin", state.global_step + 1)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._here("middle", state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._here("end", state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._here("log", state.global_step)


def kill() -> None:
    raise Killed


def interrupt() -> None:
    import signal

    signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def whole(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return bench.run(folder, **RUN), folder


@pytest.mark.parametrize(("step", "moment"), [(2, "middle"), (4, "middle"), (5, "begin")])
def test_a_run_asked_to_stop_finishes_its_accumulation(
    bench: Bench, whole: Any, tmp_path: Path, step: int, moment: str
) -> None:
    """The step is whole when the checkpoint is made: no checkpoint stands between micro-batches."""
    stopped = bench.run(tmp_path, callbacks=(At(step, moment, interrupt),), raises=TrainingInterrupted, **RUN)
    assert max(stopped.seen) == step
    resumed = bench.run(tmp_path, resume=tmp_path / f"checkpoint-{step}", **RUN)
    assert same(whole[0], resumed) is None


@pytest.mark.parametrize(
    ("step", "moment"), [(1, "end"), (2, "middle"), (4, "log"), (5, "begin"), (5, "middle"), (6, "log")]
)
def test_a_killed_run_goes_on_from_its_last_checkpoint(
    bench: Bench, whole: Any, tmp_path: Path, step: int, moment: str
) -> None:
    """Also where it had logged, or evaluated, what it had not saved yet."""
    killed = bench.run(tmp_path, callbacks=(At(step, moment, kill),), raises=Killed, **RUN)
    checkpoint = newest_complete(tmp_path).path
    at = int(checkpoint.name.removeprefix("checkpoint-")) if checkpoint else 0
    assert at == (step - 1) // 2 * 2
    resumed = bench.run(tmp_path, resume=checkpoint, **RUN)
    assert same(whole[0], resumed) is None
    trained = Counter(each for number in range(1, at + 1) for each in killed.seen[number])
    trained += Counter(each for seen in resumed.seen.values() for each in seen)
    assert trained == dict.fromkeys(range(18), 2), "each document once an epoch, over both runs"
    assert examples(tmp_path) == examples(whole[1])


def examples(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (folder / "eval").iterdir()}


def test_lines_of_a_run_that_was_killed_thrice_stand_once(bench: Bench, whole: Any, tmp_path: Path) -> None:
    for step in (4, 5, 6):
        checkpoint = newest_complete(tmp_path).path
        bench.run(tmp_path, resume=checkpoint, callbacks=(At(step, "log", kill),), raises=Killed, **RUN)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # cut off in the middle of a line
    resumed = bench.run(tmp_path, resume=newest_complete(tmp_path).path, **RUN)
    assert resumed.told == whole[0].told
    told = [(line["kind"], line["step"]) for line in resumed.told]
    assert len(set(told)) == len(told)
    assert [step for kind, step in told if kind == "train"] == [1, 2, 3, 4, 5, 6]


def test_an_older_checkpoint_can_be_gone_on_from(bench: Bench, whole: Any, tmp_path: Path) -> None:
    shutil.copytree(whole[1], tmp_path / "out")
    resumed = bench.run(tmp_path / "out", resume=tmp_path / "out" / "checkpoint-2", **RUN)
    assert same(whole[0], resumed) is None


# -- parts with a memory -----------------------------------------------------------------------------------------------


def through_a_checkpoint(part: Any, other: Any, folder: Path) -> Any:
    """The other part, with the memory of the first."""
    folder.mkdir(exist_ok=True)
    Memory([part]).take()(folder)
    Memory([other]).restore(folder)
    return other


def test_bad_steps_in_a_row_are_counted_over_a_resume(tmp_path: Path) -> None:
    guard, other = (NonFiniteGuard(lambda: None, lambda step: (), "out") for _ in range(2))
    guard._latest.extend([StepFigures(1, 2.0, 1.0), StepFigures(2, float("nan"), float("inf"))])
    guard.skipped.append(2)
    resumed = through_a_checkpoint(guard, other, tmp_path)
    assert [each.is_finite for each in resumed._latest] == [True, False]
    assert resumed._latest[1].what_is_wrong() == "the loss is nan and the gradient norm is inf"
    assert resumed.skipped == [2]


def test_high_losses_in_a_row_are_counted_over_a_resume(tmp_path: Path) -> None:
    watchdog = LossWatchdog(3.0, 2)
    watchdog._losses.append(3.5)
    assert list(through_a_checkpoint(watchdog, LossWatchdog(3.0, 2), tmp_path)._losses) == [3.5]


def test_patience_is_the_configs_and_what_is_left_of_it_the_runs(tmp_path: Path) -> None:
    stopping = EarlyStopping(early_stopping_patience=2)
    stopping.early_stopping_patience_counter = 2
    assert through_a_checkpoint(stopping, EarlyStopping(early_stopping_patience=2), tmp_path).is_over
    assert not through_a_checkpoint(stopping, EarlyStopping(early_stopping_patience=5), tmp_path).is_over


def test_a_checkpoint_of_before_is_gone_on_from_without_memories(tmp_path: Path) -> None:
    watchdog = LossWatchdog(3.0, 2)
    Memory([watchdog]).restore(tmp_path)
    assert not watchdog._losses
    (tmp_path / FILE).write_text(json.dumps({"format": 1, "ranks": [{"another": 1}]}))
    Memory([watchdog]).restore(tmp_path)
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ArtefactError, match=r"whet-progress.json cannot be read .* -> resume from another checkpoint"):
        Memory([watchdog]).restore(tmp_path)
