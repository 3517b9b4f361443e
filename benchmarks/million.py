"""A prepared set of a million rows: finding it again, the start of a run on it, a new epoch. Each is to take < 1 s.

The rows are prepared once (short conversations, with the shipped model's tokenizer), then fresh processes find the set,
plan a packed run, make a batch and change the epoch. Run: python benchmarks/million.py [--rows 1000000].
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from common import REPOSITORY, Contestant, alternate, median, report, run

CONFIG = """\
base_model: {model}
datasets:
  - path: {rows}
    type: chat_template
sequence_len: 2048
sample_packing: true
dataset_prepared_path: {folder}/prepared
output_dir: {folder}/out
learning_rate: 1e-4
num_epochs: 2
"""
LAPS = ("hit_seconds", "plan_seconds", "first_batch_seconds", "epoch_change_seconds", "batch_in_the_middle_seconds")


def write_rows(path: Path, count: int) -> None:
    """Short conversations of several lengths; no two are equal."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            answer = " ".join(f"{number * (place + 7) % 9973}" for place in range(number * 31 % 23 + 1))
            file.write(
                f'{{"messages":[{{"role":"user","content":"say {number}"}},'
                f'{{"role":"assistant","content":"{answer}"}}]}}\n'
            )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows, config = folder / "rows.jsonl", folder / "million.yaml"
        write_rows(rows, options.rows)
        time.sleep(2.5)  # a file written a moment ago is read again: its time does not tell yet whether it changed
        model = REPOSITORY / "examples" / "base_model" / "model"
        config.write_text(CONFIG.format(model=model, rows=rows, folder=folder), encoding="utf-8")
        started = time.perf_counter()
        here = REPOSITORY / "benchmarks"
        contestant = Contestant("whet", [sys.executable, str(here / "contestant_million.py"), "--config", str(config)])
        run(contestant, folder)
        first = time.perf_counter() - started
        measured = alternate([contestant], options.rounds, folder)["whet"]
        laps = {lap: median(measured, lap) for lap in LAPS}
        report(
            "million",
            ours=max(laps.values()),
            peer=None,
            ratio=None,
            goal="finding the set, planning, a batch and a new epoch below 1 s each",
            unit="seconds, the slowest of them",
            rows=options.rows,
            rounds=options.rounds,
            first_time_seconds=first,
            samples=int(median(measured, "samples")),
            steps=int(median(measured, "steps")),
            **laps,
        )


if __name__ == "__main__":
    main()
