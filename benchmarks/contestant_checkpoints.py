"""One run that saves every few steps; prints how long training stood still, how long steps took, and what it all took.

The time in which training stands still is that of the trainer's own `_save_checkpoint`. What the background takes from
the steps beside it (both share the processor) is seen in the steps that end, or begin, while it writes. Its own time is
split by what it does: seconds that passed, and seconds of a core in the thread that did it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

PHASES = {
    "weights": ("whet.training.saving", "PublishingTrainer._save"),
    "states": ("torch", "save"),
    "to_disk": ("whet.training.publishing", "sync"),
    "hashes": ("whet.training.checkpoint", "sha256"),
    "removal": ("shutil", "rmtree"),
}
"""What the writer does, by the functions that do it."""


class Split:
    """Adds up seconds and core seconds of functions, by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.core_seconds: dict[str, float] = defaultdict(float)

    def follow(self, phase: str, module: str, name: str) -> None:
        owner = importlib.import_module(module)
        *within, last = name.split(".")
        for each in within:
            owner = getattr(owner, each)
        call: Callable[..., Any] = getattr(owner, last)

        def followed(*args: Any, **kwargs: Any) -> Any:
            began, core_began = time.perf_counter(), time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[phase] += time.perf_counter() - began
                self.core_seconds[phase] += time.thread_time() - core_began

        setattr(owner, last, followed)


class Steps(TrainerCallback):
    """When each step began and ended; how much memory the process had at most in the steps before and after the first
    save."""

    def __init__(self) -> None:
        self.spans: dict[int, tuple[float, float]] = {}
        self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.spans[state.global_step] = (self._began, time.perf_counter())


def peak_bytes() -> int:
    """The most memory that this process has had (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--config", required=True)
    arguments.add_argument("--way", choices=("background", "foreground", "transformers"), default="background")
    options = arguments.parse_args()

    from whet import load_config, stages

    config = load_config(options.config)
    stages.import_libraries(config)

    from whet.training.fit import fit
    from whet.training.tokenizer import run_tokenizer

    resolved = stages.resolve_run(config)
    output_dir = Path(resolved.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = run_tokenizer(config)
    prepared = stages.training_data(resolved, tokenizer)
    order, plan = stages.plan_run(resolved, prepared)
    split = Split()
    with stages.compiler_put_off():
        trainer: Any = stages.make_trainer(resolved, tokenizer, prepared, order, plan)
        for phase, place in PHASES.items():
            split.follow(phase, *place)
        trainer.writes_in_background = options.way == "background"
        saves: list[tuple[float, float]] = []
        written: list[float] = []
        save, steps = trainer._save_checkpoint, Steps()
        if options.way == "transformers":  # without hashes, and without waiting for the disk
            trainer.args.save_total_limit = 1
            save = lambda *args: Trainer._save_checkpoint(trainer, *args)  # noqa: E731
        write = trainer.checkpoints._write

        def timed(*args: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # what the step still owes is not the checkpoint's
            began = time.perf_counter()
            save(*args)
            saves.append((began, time.perf_counter()))

        def followed(*args: Any) -> None:
            write(*args)
            written.append(time.perf_counter())

        trainer._save_checkpoint, trainer.checkpoints._write = timed, followed
        trainer.add_callback(steps)
        fit(trainer, resolved)
    print(json.dumps(told(steps, saves, written, split, output_dir)))


def told(
    steps: Steps, saves: list[tuple[float, float]], written: list[float], split: Split, output_dir: Path
) -> dict[str, float]:
    """What the run says; the first save, which also finds its memory, stands apart."""
    busy = list(zip([end for _, end in saves], written, strict=False))
    first = saves[1][0]
    seconds = [(began, end) for began, end in steps.spans.values() if began > first]
    beside = [end - began for began, end in seconds if any(began < done and end > start for start, done in busy)]
    after = [min((span for span in seconds if span[0] > end), default=None) for _, end in saves[1:]]
    alone = [end - began for began, end in list(steps.spans.values())[2:] if end <= saves[0][0]]
    alone += [end - began for began, end in seconds if not any(began < done and end > start for start, done in busy)]
    step = statistics.median(alone)
    stalls = [end - began for began, end in saves]
    folder = max(output_dir.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    found = {
        "stall_ms": 1000 * statistics.median(stalls[1:]),
        "longest_stall_ms": 1000 * max(stalls[1:]),
        "first_stall_ms": 1000 * stalls[0],
        "step_ms": 1000 * step,
        "step_after_a_save_ms": 1000 * statistics.median(span[1] - span[0] for span in after if span),
        "steps_beside": len(beside) / max(1, len(saves) - 2),
        "cost_of_a_save_ms": 1000 * (sum(stalls[1:-1]) + sum(each - step for each in beside)) / max(1, len(saves) - 2),
        "writing_ms": 1000 * statistics.median(done - start for start, done in busy) if busy else 0.0,
        "peak_mb": peak_bytes() / 1e6,
        "checkpoint_mb": sum(path.stat().st_size for path in folder.iterdir()) / 1e6,
        "saves": len(saves),
    }
    for phase in PHASES:
        found[f"{phase}_ms"] = 1000 * split.seconds[phase] / len(saves)
        found[f"{phase}_core_ms"] = 1000 * split.core_seconds[phase] / len(saves)
    return found


if __name__ == "__main__":
    main()
