"""One fresh process on a prepared set of very many rows: find it, plan the run, change the epoch, make a batch.

Prints one JSON object with the seconds of each. Libraries are imported and the tokenizer is loaded before the clock
starts; finding the set again (all that `whet train` does on prepared data before it plans) is `hit_seconds`.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--config", required=True)
    options = arguments.parse_args()

    import whet.data.batch
    import whet.data.prepare
    import whet.training.steps
    from whet import load_config, stages
    from whet.training.tokenizer import run_tokenizer

    config = load_config(options.config)
    resolved = stages.resolve_run(config)
    tokenizer = run_tokenizer(config)
    spent: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        spent[name], clock = time.perf_counter() - clock, time.perf_counter()

    prepared = stages.prepare_data(resolved, tokenizer)
    lap("hit_seconds")
    order, plan = stages.plan_run(resolved, prepared)
    lap("plan_seconds")
    batches = order.micro_batches(0)
    first: Any = whet.data.batch.flatten(prepared.train, batches[0])
    lap("first_batch_seconds")
    order.epoch(1)
    lap("epoch_change_seconds")
    again = order.micro_batches(1)
    whet.data.batch.flatten(prepared.train, again[len(again) // 2])
    lap("batch_in_the_middle_seconds")
    print(json.dumps({**spent, "samples": len(prepared.train), "steps": plan.total_steps, **_size(first)}))


def _size(batch: dict[str, Any]) -> dict[str, int]:
    return {"tokens_of_first_batch": int(batch["input_ids"].numel())}


if __name__ == "__main__":
    main()
