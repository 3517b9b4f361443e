"""One run that saves every few steps; prints how long training stood still for it, and how long steps took.

The time in which training stands still is that of the trainer's own `_save_checkpoint`. What the background takes from
the steps beside it (both share the processor) is seen in the steps that follow a save.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback


class Steps(TrainerCallback):
    """When each step began and ended."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}
        self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds[state.global_step] = time.perf_counter() - self._began


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--config", required=True)
    arguments.add_argument("--foreground", action="store_true")
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
    with stages.compiler_put_off():
        trainer: Any = stages.make_trainer(resolved, tokenizer, prepared, order, plan)
        trainer.writes_in_background = not options.foreground
        stalls: list[float] = []
        save, steps = trainer._save_checkpoint, Steps()

        def timed(*args: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # what the step still owes is not the checkpoint's
            began = time.perf_counter()
            save(*args)
            stalls.append(time.perf_counter() - began)

        trainer._save_checkpoint = timed
        trainer.add_callback(steps)
        fit(trainer, resolved)
    every, first = int(config.value("save_steps")), 2 * int(config.value("save_steps"))
    beside = [seconds for step, seconds in steps.seconds.items() if step > first and step % every == 1]
    alone = [seconds for step, seconds in steps.seconds.items() if step > first and step % every not in (1, 2)]
    folder = max(output_dir.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    size = sum(path.stat().st_size for path in folder.iterdir())
    told = {
        "stall_ms": 1000 * statistics.median(stalls[1:]),
        "longest_stall_ms": 1000 * max(stalls[1:]),
        "first_stall_ms": 1000 * stalls[0],
        "step_ms": 1000 * statistics.median(alone),
        "step_after_a_save_ms": 1000 * statistics.median(beside),
        "checkpoint_mb": size / 1e6,
        "saves": len(stalls),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
