"""How far the run is, for a person: one live view on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from whet.core.log import say
from whet.data.batch import Batch
from whet.training.callbacks.figures import evaluation_figures, format_seconds, named_figures

SAID_AGAIN_SECONDS = 60.0
"""How often an evaluation that takes long says how far it is, where lines are printed."""

LINES_OF_A_RUN = 20
"""Logged steps that stay on the screen above the live view, so that one sees where the loss came from."""


_KEPT = ("loss", "learning rate", "reward margin")


def progress_display(console: Console | None = None) -> Progress:
    """The live view where standard error is a terminal, else plain lines."""
    console = console or Console(stderr=True)
    return LiveProgress(console) if console.is_terminal else Progress()


class Progress(TrainerCallback):
    """Plain lines: one for each logged step, one for each evaluation. Ranks other than the first stay silent.

    Args:
        clock: seconds of a monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._first_step = 0
        self._last_said: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began, self._first_step = self._clock(), state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            self.show_step(state, named_figures(logs))
        elif figures := evaluation_figures(logs):
            self.show_evaluation(state, figures)

    def show_step(self, state: TrainerState, figures: Mapping[str, str]) -> None:
        say(f"step {state.global_step}/{state.max_steps}: {_joined({**figures, **self.times(state)})}")

    def show_evaluation(self, state: TrainerState, figures: Mapping[str, str]) -> None:
        when = f" after step {state.global_step}" if state.max_steps else ""
        say(f"evaluation{when}: {_joined(figures)}")

    def show_evaluating(self, share: float) -> None:
        """Say how much of an evaluation is done, now and then; nothing where it is short."""
        now = self._clock()
        if self._last_said is None or not share:
            self._last_said = now
        elif now - self._last_said >= SAID_AGAIN_SECONDS:
            self._last_said = now
            say(f"evaluating: {share:.0%} done")

    def times(self, state: TrainerState) -> dict[str, str]:
        """Time since training began, and what is left at the pace so far (evaluations and checkpoints included)."""
        elapsed = self._clock() - self._began
        done = state.global_step - self._first_step
        times = {"elapsed": format_seconds(elapsed)}
        if done:
            times["left"] = format_seconds(elapsed / done * (state.max_steps - state.global_step))
        return times

    def close(self) -> None:
        """Leave the terminal as it was; called however training ends."""


class LiveProgress(Progress):
    """One view that is redrawn in place; whatever else is printed meanwhile appears above it."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._console = console
        self._live: Live | None = None
        self._state: TrainerState | None = None
        self._figures: Mapping[str, str] = {}
        self._activity = ""
        self._next_line = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if not state.is_world_process_zero:
            return
        self._state = state
        self._live = Live(get_renderable=self.render, console=self._console, refresh_per_second=4)
        self._live.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._state, self._activity = state, ""

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._activity = "evaluating"

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def show_step(self, state: TrainerState, figures: Mapping[str, str]) -> None:
        self._state, self._figures = state, figures
        if state.global_step >= self._next_line:
            self._next_line = state.global_step + state.max_steps // LINES_OF_A_RUN
            kept = {name: figures[name] for name in _KEPT if name in figures}
            say(f"step {state.global_step}/{state.max_steps}: {_joined(kept)}")

    def show_evaluation(self, state: TrainerState, figures: Mapping[str, str]) -> None:
        self._activity = ""
        super().show_evaluation(state, figures)

    def show_evaluating(self, share: float) -> None:
        if self._live is None:  # an evaluation without training
            super().show_evaluating(share)
        self._activity = f"evaluating {share:.0%}"

    def render(self) -> Group:
        """The view as it is now."""
        state = self._state
        if state is None:
            return Group()
        times = self.times(state)
        line = Table.grid(padding=(0, 1))
        line.add_row(
            Text(f"step {state.global_step}/{state.max_steps}", style="bold"),
            ProgressBar(total=max(state.max_steps, 1), completed=state.global_step, width=40),
            Text("  ".join(f"{time} {name}" for name, time in times.items()), style="dim"),
            Text(self._activity, style="cyan"),
        )
        figures = Text("  ").join(Text.assemble((f"{name} ", "dim"), value) for name, value in self._figures.items())
        return Group(line, figures)

    def close(self) -> None:
        if self._live is None:
            return
        self._live.stop()
        self._live = None


def shown(
    batches: Iterable[Batch], callbacks: Iterable[TrainerCallback], num_examples: int, num_ranks: int
) -> Iterator[Batch]:
    """The batches of an evaluation; the displays among the callbacks tell how far it is.

    Args:
        num_examples: of all ranks.
    """
    displays = [callback for callback in callbacks if isinstance(callback, Progress)]
    done = 0
    for batch in batches:
        for display in displays:
            display.show_evaluating(min(done * num_ranks / max(num_examples, 1), 1.0))
        done += len(batch["example_ids"])
        yield batch


def _joined(figures: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in figures.items())
