"""When the layers are compiled, whether it was worth it, and how often they were compiled again."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from whet.config.resolve import ResolvedRun
from whet.core.log import say, warn
from whet.model.compiling import compile_layers, compiled_graphs, leave_layers

TIMED_STEPS = 3
"""Steps that are timed before compiling and after it; the first of each is not, for it warms caches or compiles."""

SETTLED_AFTER = 4
"""Steps after which a graph that is compiled again is worth a word."""

LEAST_GAIN, COMPILE_SECONDS = 0.1, 60.0
"""What `auto` supposes before it has measured: rough, from one contended run on two cores (hidden 512, 4 layers: steps
a quarter shorter in float32, a third in bfloat16, compiled in 39 and 46 s)."""


class CompileLayers(TrainerCallback):
    """Compile before the first step (`torch_compile: true`), or once the run's own speed says that it pays (`auto`).

    With `auto` steps are timed after compiling as well, and layers that did not become faster are left as they were.
    """

    def __init__(self, resolved: ResolvedRun) -> None:
        self._resolved = resolved
        self._measures = resolved.config.memory.torch_compile == "auto"
        self._ends: list[float] = []
        self._before: float | None = None
        self._compiled = False
        self._steps = 0
        self._graphs: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        if not self._measures:
            self._compile(model)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        if self._measures:
            self._decide(model, state.max_steps - state.global_step)
        if self._compiled:
            self._steps += 1
            # Until then the number of documents in a row and the like become arguments of the graphs.
            if self._steps == SETTLED_AFTER:
                self._graphs = compiled_graphs()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._compiled or self._graphs is None:
            return
        again = compiled_graphs() - self._graphs
        say(f"torch_compile: {self._graphs} graphs in the first {SETTLED_AFTER} steps, {again} compiled again later")
        if again:
            warn("torch_compile: shapes changed during the run -> write pad_to_sequence_len: true")

    def _compile(self, model: torch.nn.Module) -> None:
        num = compile_layers(model, self._resolved.config, self._resolved)
        self._compiled = num > 0
        say(f"torch_compile: {num} layers, each by itself" if num else "torch_compile: off, no layer repeats")

    def _decide(self, model: torch.nn.Module, remaining: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._ends.append(time.perf_counter())
        if len(self._ends) <= TIMED_STEPS:
            return
        seconds = median(after - before for before, after in zip(self._ends[:-1], self._ends[1:], strict=True))
        self._ends.clear()
        if self._before is None:
            self._before = seconds
            saved = remaining * seconds * LEAST_GAIN
            self._measures = saved > COMPILE_SECONDS
            if self._measures:
                self._compile(model)
            else:
                say(f"torch_compile: auto -> off: {remaining:,} steps of {seconds:.2g} s do not repay compiling")
            return
        self._measures = False
        verdict = f"{self._before:.3g} s a step before, {seconds:.3g} s after"
        if seconds < self._before:
            say(f"torch_compile: auto -> on: {verdict}")
        else:
            leave_layers(model)
            say(f"torch_compile: auto -> off again: {verdict}")
