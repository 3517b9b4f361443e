"""What a checkpoint costs a run: written in the background, written at once, and by transformers' own saving.

LoRA and full fine-tuning of the same model. Of each: how long training stands still, the step beside the writer, the
time of a save in all (standing still and what the steps beside it lose), the most memory of the process, and where the
writer's time goes. transformers writes the same files without hashes, without waiting for the disk and under their
final name. Goal: at most 50 ms of standing still for a LoRA state.
Run: python benchmarks/checkpoints.py [--hidden-size 512 --num-layers 8] [--rounds 3] [--kinds full].
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from common import REPOSITORY, Contestant, alternate, median, report
from train import CONFIG
from workbench import make_model, make_rows

WAYS = ("background", "foreground", "transformers")
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
    arguments.add_argument("--kinds", nargs="+", choices=("lora", "full"), default=("lora", "full"))
    options = arguments.parse_args()

    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = make_rows(folder)
        model = make_model(
            folder, hidden_size=options.hidden_size, num_layers=options.num_layers, vocab_size=options.vocab_size
        )
        contestants = []
        for kind in options.kinds:
            adapter = LORA if kind == "lora" else ""
            for way in WAYS:
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
                command = [sys.executable, script, "--config", str(config), "--way", way]
                contestants.append(Contestant(f"{kind} {way}", command))
        measured = alternate(contestants, options.rounds, folder)
        for contestant, runs in measured.items():
            found[contestant] = {key: round(median(runs, key), 2) for key in runs[0]}
    kind = options.kinds[0]
    ours, peer = found[f"{kind} background"]["stall_ms"], found[f"{kind} transformers"]["stall_ms"]
    what = {"lora": "of LoRA rank 16 on every linear layer", "full": "of every weight"}[kind]
    report(
        "checkpoints" if kind == "lora" else f"checkpoints-{kind}",
        ours=ours,
        peer=peer,
        ratio=peer / ours,
        goal="a step stands still for at most 50 ms while a LoRA state is saved",
        unit=f"ms of standing still for a checkpoint {what}; peer: transformers' own saving",
        **{contestant.replace(" ", "_"): figures for contestant, figures in found.items()},
    )


if __name__ == "__main__":
    main()
