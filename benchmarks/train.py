"""Supervised tokens per second and peak memory of `whet train` against TRL's SFTTrainer.

The same model, tokenizer, template, rows, optimizer and sequence length on the Python-documentation conversations, once
over, packed, fp32, on the CPU. Run: python benchmarks/train.py [--hidden-size 512 --num-layers 8].
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from common import REPOSITORY, Contestant, alternate, median, report
from workbench import make_model, make_rows

CONFIG = """\
base_model: {model}
datasets:
  - path: {rows}
    type: chat_template
sequence_len: {sequence_len}
excess_length_strategy: truncate
sample_packing: true
micro_batch_size: {micro_batch_size}
gradient_accumulation_steps: 1
{length}
learning_rate: 1e-3
lr_scheduler: constant
warmup_steps: 0
optimizer: adamw_torch_fused
bf16: false
logging_steps: 1
save_strategy: "no"
dataset_prepared_path: {folder}/prepared
output_dir: {folder}/whet
{adapter}"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--hidden-size", type=int, default=256)
    arguments.add_argument("--num-layers", type=int, default=4)
    arguments.add_argument("--vocab-size", type=int, default=8192)
    arguments.add_argument("--sequence-len", type=int, default=2048)
    arguments.add_argument("--micro-batch-size", type=int, default=1)
    arguments.add_argument("--lora-r", type=int, default=0)
    arguments.add_argument(
        "--rows", type=int, default=240, help="conversations; every contestant trains on all of them"
    )
    arguments.add_argument("--warmup", type=int, default=2)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = make_rows(folder, limit=options.rows)
        model = make_model(
            folder, hidden_size=options.hidden_size, num_layers=options.num_layers, vocab_size=options.vocab_size
        )
        adapter = ""
        if options.lora_r:
            adapter = (
                f"adapter: lora\nlora_r: {options.lora_r}\nlora_alpha: {2 * options.lora_r}\nlora_target_linear: true\n"
            )
        config = folder / "bench.yaml"
        config.write_text(
            CONFIG.format(
                model=model,
                rows=rows,
                folder=folder,
                sequence_len=options.sequence_len,
                micro_batch_size=options.micro_batch_size,
                length="num_epochs: 1",
                adapter=adapter,
            )
        )
        here = REPOSITORY / "benchmarks"
        trl = [sys.executable, str(here / "contestant_trl.py"), "--model", str(model), "--rows", str(rows)]
        trl += ["--output", str(folder / "trl"), "--sequence-len", str(options.sequence_len)]
        trl += ["--micro-batch-size", str(options.micro_batch_size), "--lora-r", str(options.lora_r)]
        trl += ["--warmup", str(options.warmup)]
        whet = [sys.executable, str(here / "contestant_whet.py"), "--config", str(config)]
        whet += ["--warmup", str(options.warmup)]
        measured = alternate([Contestant("whet", whet), Contestant("trl", trl)], options.rounds, folder)

    ours = median(measured["whet"], "supervised_tokens_per_second")
    peer = median(measured["trl"], "supervised_tokens_per_second")
    shape = f"{options.num_layers}x{options.hidden_size}-v{options.vocab_size}-s{options.sequence_len}"
    report(
        f"train-{shape}{f'-lora{options.lora_r}' if options.lora_r else ''}",
        unit="supervised tokens/s",
        ours=ours,
        peer=peer,
        ratio=ours / peer,
        goal="more than twice TRL's SFTTrainer, packed, at sequence 2,048",
        peer_name="TRL SFTTrainer, packing, assistant_only_loss",
        ours_peak_bytes=median(measured["whet"], "peak_bytes"),
        peer_peak_bytes=median(measured["trl"], "peak_bytes"),
        rounds=options.rounds,
        ours_supervised_tokens=median(measured["whet"], "supervised_tokens"),
        peer_supervised_tokens=median(measured["trl"], "supervised_tokens"),
        arguments=vars(options),
    )


if __name__ == "__main__":
    main()
