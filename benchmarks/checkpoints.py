"""How long training stands still for a checkpoint: written in the background, against written at once.

LoRA and full fine-tuning of the same model. Goal: at most 50 ms for a LoRA state.
Run: python benchmarks/checkpoints.py [--hidden-size 512 --num-layers 8] [--rounds 3].
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from common import REPOSITORY, Contestant, alternate, median, report
from train import CONFIG
from workbench import make_model, make_rows

LORA = "adapter: lora\nlora_r: 16\nlora_alpha: 32\nlora_target_linear: true\n"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--hidden-size", type=int, default=512)
    arguments.add_argument("--num-layers", type=int, default=8)
    arguments.add_argument("--vocab-size", type=int, default=8192)
    arguments.add_argument("--sequence-len", type=int, default=512)
    arguments.add_argument("--steps", type=int, default=36)
    arguments.add_argument("--save-steps", type=int, default=6)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()

    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = make_rows(folder)
        model = make_model(
            folder, hidden_size=options.hidden_size, num_layers=options.num_layers, vocab_size=options.vocab_size
        )
        contestants = []
        for kind, adapter in (("lora", LORA), ("full", "")):
            for way in ("background", "foreground"):
                config = folder / f"{kind}-{way}.yaml"
                text = CONFIG.format(
                    model=model,
                    rows=rows,
                    folder=folder,
                    sequence_len=options.sequence_len,
                    micro_batch_size=1,
                    length=f"max_steps: {options.steps}",
                    adapter=f"{adapter}save_steps: {options.save_steps}\nsave_total_limit: 1\n",
                )
                text = text.replace('save_strategy: "no"\n', "").replace(
                    f"output_dir: {folder}/whet", f"output_dir: {folder}/{kind}-{way}"
                )
                config.write_text(text)
                script = str(REPOSITORY / "benchmarks" / "contestant_checkpoints.py")
                command = [sys.executable, script, "--config", str(config)]
                if way == "foreground":
                    command.append("--foreground")
                contestants.append(Contestant(f"{kind} {way}", command))
        measured = alternate(contestants, options.rounds, folder)
        for contestant, runs in measured.items():
            found[contestant] = {key: round(median(runs, key), 2) for key in runs[0]}
    ours, peer = found["lora background"]["stall_ms"], found["lora foreground"]["stall_ms"]
    report(
        "checkpoints",
        ours=ours,
        peer=peer,
        ratio=peer / ours,
        goal="a step stands still for at most 50 ms while a LoRA state is saved",
        unit="ms of standing still for a checkpoint of LoRA rank 16 on every linear layer; peer: written at once",
        **{contestant.replace(" ", "_"): figures for contestant, figures in found.items()},
    )


if __name__ == "__main__":
    main()
