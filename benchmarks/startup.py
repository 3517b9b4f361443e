"""How long one waits: `whet --help`, `whet check`, and until the end of step 1 against TRL's SFTTrainer.

Both train the same tiny model on the same 64 conversations, unprepared, in a fresh process; in full, and with LoRA.
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import REPOSITORY, Contestant, alternate, median, report
from train import CONFIG
from workbench import make_model, make_rows

# What libraries below import when it is installed, so that TRL's figure depends on it and ours should not.
OPTIONAL = ("bitsandbytes", "torchao", "triton", "liger_kernel", "scipy", "mlflow", "wandb", "tensorboard", "boto3")


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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = make_rows(folder, limit=64)
        model = make_model(folder, hidden_size=64, num_layers=2, vocab_size=1024)
        for rank in (0, 16):
            measure(folder, rows, model, rank, options.rounds)


def measure(folder: Path, rows: Path, model: Path, rank: int, rounds: int) -> None:
    """One comparison, full or with an adapter; both contestants find nothing prepared and nothing cached."""
    adapter = f"adapter: lora\nlora_r: {rank}\nlora_alpha: {2 * rank}\nlora_target_linear: true\n" if rank else ""
    config = folder / f"bench-{rank}.yaml"
    config.write_text(
        CONFIG.format(
            model=model,
            rows=rows,
            folder=folder,
            sequence_len=512,
            micro_batch_size=1,
            length="max_steps: 1",
            adapter=adapter,
        )
    )
    whet_command = [sys.executable, "-m", "whet"]
    help_seconds = wall_seconds([*whet_command, "--help"], rounds)
    check_seconds = wall_seconds([*whet_command, "check", str(config)], rounds)
    here = REPOSITORY / "benchmarks"
    ours = [sys.executable, str(here / "contestant_whet.py"), "--config", str(config), "--startup"]
    peer = [sys.executable, str(here / "contestant_trl.py"), "--model", str(model), "--rows", str(rows)]
    peer += [
        "--output",
        str(folder / "trl"),
        "--sequence-len",
        "512",
        "--steps",
        "1",
        "--lora-r",
        str(rank),
        "--startup",
    ]
    cleared = "rm -rf prepared whet trl cache && export HF_DATASETS_CACHE=$PWD/cache && exec "
    contestants = [
        Contestant(name, ["sh", "-c", cleared + shlex.join(command)])
        for name, command in (("whet", ours), ("trl", peer))
    ]
    measured = alternate(contestants, rounds, folder)
    seconds = {name: median(runs, "first_step_seconds") for name, runs in measured.items()}
    report(
        f"startup-lora{rank}" if rank else "startup",
        unit="seconds from the start of the process to the end of step 1",
        ours=seconds["whet"],
        peer=seconds["trl"],
        ratio=seconds["trl"] / seconds["whet"],
        goal="--help <= 0.3 s; first step in at most half of TRL's time",
        peer_name="TRL SFTTrainer",
        help_seconds=help_seconds,
        check_seconds=check_seconds,
        installed=[name for name in OPTIONAL if importlib.util.find_spec(name)],
        rounds=rounds,
    )


if __name__ == "__main__":
    main()
