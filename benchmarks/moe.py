"""A training step of a small Qwen3-MoE with LoRA on its experts against PEFT's ``target_parameters``: time and memory.

Both on the CPU in float32, on the same model, ids, attention and loss; PEFT over transformers' own experts.
Run: python benchmarks/moe.py [--train attention | full] [--tokens 4096]; further options go to contestant_moe.py.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from common import REPOSITORY, Contestant, alternate, median, report

GOALS = {
    "experts": "LoRA on the experts: a faster step than PEFT's target_parameters, with less memory",
    "attention": "LoRA beside the experts: no slower than transformers' grouped experts, with less memory",
    "full": "every weight trained: no slower than transformers' grouped experts, with less memory",
}
LARGEST_DIFFERENCE = 1e-4
"""Between the contestants' losses at each step, relative: they must be the same training."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--train", choices=list(GOALS), default="experts")
    arguments.add_argument("--rounds", type=int, default=5)
    options, others = arguments.parse_known_args()
    script = str(REPOSITORY / "benchmarks" / "contestant_moe.py")
    contestants = [
        Contestant(who, [sys.executable, script, who, "--train", options.train, *others]) for who in ("whet", "peft")
    ]
    with tempfile.TemporaryDirectory() as folder:
        measured = alternate(contestants, options.rounds, Path(folder))
    for ours, theirs in zip(measured["whet"][0]["losses"], measured["peft"][0]["losses"], strict=True):
        if abs(ours - theirs) > LARGEST_DIFFERENCE * abs(theirs):
            raise SystemExit(f"the contestants do not train the same: losses {ours} and {theirs}")
    ours_seconds, their_seconds = (median(measured[who], "step_seconds") for who in ("whet", "peft"))
    ours_bytes, their_bytes = (median(measured[who], "peak_bytes") for who in ("whet", "peft"))
    report(
        "moe" if options.train == "experts" else f"moe-{options.train}",
        ours=ours_seconds,
        peer=their_seconds,
        ratio=their_seconds / ours_seconds,
        goal=GOALS[options.train],
        unit="seconds a step",
        peer_name="PEFT's target_parameters over transformers' grouped_mm experts",
        ours_tokens_per_second=median(measured["whet"], "tokens_per_second"),
        peer_tokens_per_second=median(measured["peft"], "tokens_per_second"),
        ours_peak_bytes=ours_bytes,
        peer_peak_bytes=their_bytes,
        peak_ratio=their_bytes / ours_bytes,
        rounds=options.rounds,
        options=others,
    )


if __name__ == "__main__":
    main()
