"""What a step of `whet train` costs above a bare PyTorch loop on the same tensors, kernels, optimizer and clipping.

The steps of both are the same ones in the same order; the figure is the median of their ratios, step by step, over
alternated rounds. Run: python benchmarks/overhead.py [--lora-r 16].
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from common import REPOSITORY, Contestant, alternate, report
from train import CONFIG
from workbench import make_model, make_rows


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--hidden-size", type=int, default=256)
    arguments.add_argument("--num-layers", type=int, default=4)
    arguments.add_argument("--vocab-size", type=int, default=8192)
    arguments.add_argument("--sequence-len", type=int, default=2048)
    arguments.add_argument("--lora-r", type=int, default=0)
    arguments.add_argument("--steps", type=int, default=40)
    arguments.add_argument("--warmup", type=int, default=5)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = make_rows(folder)
        model = make_model(
            folder, hidden_size=options.hidden_size, num_layers=options.num_layers, vocab_size=options.vocab_size
        )
        adapter = (
            f"adapter: lora\nlora_r: {options.lora_r}\nlora_alpha: {2 * options.lora_r}\nlora_target_linear: true\n"
            if options.lora_r
            else ""
        )
        config = folder / "bench.yaml"
        text = CONFIG.format(
            model=model,
            rows=rows,
            folder=folder,
            sequence_len=options.sequence_len,
            micro_batch_size=1,
            length=f"max_steps: {options.steps}",
            adapter=adapter,
        )
        config.write_text(text.replace("logging_steps: 1", "logging_steps: 10"))
        command = [sys.executable, str(REPOSITORY / "benchmarks" / "contestant_overhead.py"), "--config", str(config)]
        measured = alternate(
            [Contestant("whet", command), Contestant("bare", [*command, "--bare"])], options.rounds, folder
        )

    sums = {round(run["summed_loss"], 1) for runs in measured.values() for run in runs}
    assert len(sums) == 1, f"the contestants did not do the same steps: {sums}"
    # The first difference of ends is the second step.
    ours, peer = (
        [statistics.median(steps) for steps in zip(*(run["step_seconds"][options.warmup :] for run in measured[name]),
                                                   strict=True)]
        for name in ("whet", "bare")
    )  # fmt: skip
    overhead = statistics.median(a / b for a, b in zip(ours, peer, strict=True)) - 1
    report(
        f"overhead{f'-lora{options.lora_r}' if options.lora_r else ''}",
        unit="seconds a step, median",
        ours=statistics.median(ours),
        peer=statistics.median(peer),
        ratio=1 / (1 + overhead),
        goal="at most 3% above a bare loop",
        peer_name="bare PyTorch loop: same model, levers, loss, optimizer, clipping; batches in memory",
        overhead_share=overhead,
        rounds=options.rounds,
        arguments=vars(options),
    )


if __name__ == "__main__":
    main()
