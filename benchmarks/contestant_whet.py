"""`whet train` on the workbench; prints the same JSON object as contestant_trl.py, from the run's metrics.jsonl."""

from __future__ import annotations

import argparse
import json
import resource
import time

STARTED = time.time()


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--config", required=True)
    arguments.add_argument("--warmup", type=int, default=2)
    arguments.add_argument("--startup", action="store_true", help="report the time to the end of step 1 only")
    options = arguments.parse_args()

    from pathlib import Path

    from whet import load_config, train
    from whet.cli.session import settle_on_processor

    settle_on_processor()  # as the command does
    config = load_config(options.config)
    train(config)
    lines = (Path(config.output.output_dir) / "metrics.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, lines) if line["kind"] == "train"]
    if options.startup:
        print(json.dumps({"first_step_seconds": steps[0]["unix_seconds"] - STARTED}))
        return
    timed = steps[options.warmup :]
    tokens = timed[-1]["supervised_tokens_seen"] - steps[options.warmup - 1]["supervised_tokens_seen"]
    seconds = timed[-1]["unix_seconds"] - steps[options.warmup - 1]["unix_seconds"]
    print(
        json.dumps(
            {
                "supervised_tokens_per_second": tokens / seconds,
                "supervised_tokens": tokens,
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "first_step_seconds": steps[0]["unix_seconds"] - STARTED,
                "loss": steps[-1]["loss"],
            }
        )
    )


if __name__ == "__main__":
    main()
