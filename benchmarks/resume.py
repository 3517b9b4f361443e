"""How long a run that is a million steps along waits for its first batch when it is resumed; the goal is 5 s.

whet computes where it goes on; transformers' Trainer counts its sampler up to there. Micro-batches of one row, no
accumulation, a small model on a CPU: what is measured is what comes with the number of steps. The checkpoint is made
beforehand; each figure is of a fresh process, from the call that trains to the first step's begin.
Run: python benchmarks/resume.py [--step 1000000].
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from common import REPOSITORY, Contestant, alternate, median, report, run

CONFIG = """\
base_model: {model}
datasets:
  - path: {rows}
    type: completion
sequence_len: 64
sample_packing: false
micro_batch_size: 1
gradient_accumulation_steps: 1
num_epochs: 2
logging_steps: 10
save_strategy: "no"
dataset_prepared_path: {folder}/prepared
output_dir: {folder}/whet
learning_rate: 1e-4
"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--step", type=int, default=1_000_000)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    num_rows = options.step + options.step // 20
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows, config = folder / "rows.jsonl", folder / "resume.yaml"
        with rows.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": f"row {number} of many"}) + "\n" for number in range(num_rows))
        time.sleep(2.5)  # a file written a moment ago is read again: its time does not tell yet whether it changed
        model = REPOSITORY / "examples" / "base_model" / "model"
        config.write_text(CONFIG.format(model=model, rows=rows, folder=folder), encoding="utf-8")
        contestants = []
        for trainer in ("whet", "transformers"):
            command = [sys.executable, str(REPOSITORY / "benchmarks" / "contestant_resume.py"), "--trainer", trainer]
            command += ["--model", str(model), "--config", str(config), "--folder", str(folder / trainer)]
            command += ["--rows", str(num_rows), "--step", str(options.step)]
            run(Contestant(trainer, [*command, "--save"]), folder)
            contestants.append(Contestant(trainer, command))
        measured = alternate(contestants, options.rounds, folder)
    ours, peer = (median(measured[name], "first_batch_seconds") for name in ("whet", "transformers"))
    report(
        "resume" if options.step == 1_000_000 else f"resume-{options.step}",
        ours=ours,
        peer=peer,
        ratio=peer / ours,
        goal="the first batch within 5 s at step 1,000,000",
        unit="seconds to the first step's begin",
        peer_name="transformers.Trainer, rows made when asked for",
        step=options.step,
        rows=num_rows,
        rounds=options.rounds,
    )


if __name__ == "__main__":
    main()
