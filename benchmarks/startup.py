"""How long one waits: `whet --help`, `whet check`, and until the end of step 1 against TRL's SFTTrainer.

Both train the same tiny model on the same 64 conversations, unprepared, in a fresh process.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import REPOSITORY, Contestant, alternate, median, report
from train import CONFIG
from workbench import make_model, make_rows


def wall_seconds(command: list[str], rounds: int) -> float:
    """Median wall seconds of a command that must succeed."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    options = arguments.parse_args()
    whet_command = [sys.executable, "-m", "whet"]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = make_rows(folder, limit=64)
        model = make_model(folder, hidden_size=64, num_layers=2, vocab_size=1024)
        config = folder / "bench.yaml"
        # A prepared path that changes with every round would hide the cache; a step must include preparing the rows.
        config.write_text(
            CONFIG.format(
                model=model,
                rows=rows,
                folder=folder,
                sequence_len=512,
                micro_batch_size=1,
                length="max_steps: 1",
                adapter="",
            )
        )
        help_seconds = wall_seconds([*whet_command, "--help"], options.rounds)
        check_seconds = wall_seconds([*whet_command, "check", str(config)], options.rounds)
        here = REPOSITORY / "benchmarks"
        trl = [sys.executable, str(here / "contestant_trl.py"), "--model", str(model), "--rows", str(rows)]
        trl += ["--output", str(folder / "trl"), "--sequence-len", "512", "--steps", "1", "--warmup", "1"]
        fresh = "rm -rf prepared && exec " + " ".join(
            [sys.executable, str(here / "contestant_whet.py"), "--config", str(config), "--warmup", "1", "--startup"]
        )
        measured = alternate(
            [Contestant("whet", ["sh", "-c", fresh]), Contestant("trl", [*trl, "--startup"])], options.rounds, folder
        )

    ours = median(measured["whet"], "first_step_seconds")
    peer = median(measured["trl"], "first_step_seconds")
    report(
        "startup",
        unit="seconds from the start of the process to the end of step 1",
        ours=ours,
        peer=peer,
        ratio=peer / ours,
        goal="--help <= 0.3 s; first step in at most half of TRL's time",
        peer_name="TRL SFTTrainer",
        help_seconds=help_seconds,
        check_seconds=check_seconds,
        rounds=options.rounds,
    )


if __name__ == "__main__":
    main()
