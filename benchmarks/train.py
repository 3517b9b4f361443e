"""Supervised tokens per second and peak memory of `whet train` against TRL's SFTTrainer, over a table of models.

The same model, tokenizer, template, rows, optimizer, precision and sequence length on the Python-documentation
conversations, once over, on the CPU. TRL packs; with --padded it also trains eight padded rows of one conversation to a
batch of 2,048 tokens; the comparison is with TRL packed. Both run with OpenMP's own settings.

Run: python benchmarks/train.py [--only 4x256] [--rounds 3]; each cell writes its own file of results.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Cell:
    """One comparison.

    Attributes:
        rows: conversations that every contestant trains on, once.
        goal: how many times TRL's supervised tokens per second were asked for; None where memory is the question.
    """

    layers: int
    hidden: int
    vocab: int
    sequence_len: int
    rows: int
    goal: float | None
    lora_r: int = 0
    bf16: bool = False

    @property
    def name(self) -> str:
        precision = "-bf16" if self.bf16 else ""
        adapter = f"-lora{self.lora_r}" if self.lora_r else ""
        return f"train-{self.layers}x{self.hidden}-v{self.vocab}-s{self.sequence_len}{precision}{adapter}"


CELLS = (
    Cell(4, 256, 8192, 2048, 120, 3.0),
    Cell(8, 512, 8192, 2048, 60, 1.7),
    Cell(8, 512, 8192, 4096, 84, 2.5),
    Cell(4, 256, 8192, 2048, 120, 3.0, lora_r=16),
    Cell(8, 512, 8192, 2048, 60, 1.7, lora_r=16),
    Cell(8, 512, 8192, 4096, 84, 2.5, lora_r=16),
    Cell(4, 256, 131072, 2048, 48, None),
    Cell(4, 256, 131072, 2048, 48, None, lora_r=16),
    Cell(4, 256, 8192, 2048, 120, 3.0, bf16=True),
    Cell(8, 512, 8192, 2048, 60, 1.7, bf16=True),
    Cell(8, 512, 8192, 4096, 84, 2.5, bf16=True),
    Cell(8, 512, 8192, 2048, 60, 1.7, bf16=True, lora_r=16),
    Cell(8, 512, 131072, 2048, 36, None, bf16=True),
)
WARMUP_STEPS = 2
TOKENS_OF_A_CONVERSATION = 256
"""Rounded up; how many padded conversations TRL is given to one batch of ``sequence_len`` tokens."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--only", action="append", help="part of the names of cells, @ at their end; may be repeated"
    )
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--padded", action="store_true", help="let TRL also train without packing, in padded rows")
    options = arguments.parse_args()
    for cell in CELLS:
        if not options.only or any(part in f"{cell.name}@" for part in options.only):
            compare(cell, options.rounds, padded=options.padded)


def compare(cell: Cell, rounds: int, *, padded: bool = False) -> None:
    """Run the contestants of one cell in turn and keep the medians."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = make_rows(folder, limit=cell.rows)
        model = make_model(folder, hidden_size=cell.hidden, num_layers=cell.layers, vocab_size=cell.vocab)
        contestants = [
            Contestant("whet", whet_command(cell, folder, model, rows)),
            Contestant("trl", trl_command(cell, folder, model, rows)),
        ]
        if padded:
            contestants.append(Contestant("trl padded", trl_command(cell, folder, model, rows, packed=False)))
        measured = alternate(contestants, rounds, folder)
    ours, peer = (median(measured[name], "supervised_tokens_per_second") for name in ("whet", "trl"))
    memory = {name: median(measured[name], "peak_bytes") for name in ("whet", "trl")}
    without_packing = median(measured["trl padded"], "supervised_tokens_per_second") if padded else None
    speed = "no slower" if cell.goal is None else f"{cell.goal:g} times TRL's supervised tokens/s, packed"
    report(
        cell.name,
        unit="supervised tokens/s",
        ours=ours,
        peer=peer,
        ratio=ours / peer,
        goal=f"{speed}, with half its peak memory" if cell.goal is None else speed,
        peer_name="TRL SFTTrainer, packing, assistant_only_loss",
        peer_without_packing=without_packing,
        ours_peak_bytes=memory["whet"],
        peer_peak_bytes=memory["trl"],
        memory_ratio=memory["whet"] / memory["trl"],
        rounds=rounds,
        ours_each_round=[round(each["supervised_tokens_per_second"]) for each in measured["whet"]],
        peer_each_round=[round(each["supervised_tokens_per_second"]) for each in measured["trl"]],
        ours_supervised_tokens=median(measured["whet"], "supervised_tokens"),
        peer_supervised_tokens=median(measured["trl"], "supervised_tokens"),
        script="train.py",
        arguments={"cell": vars(cell)},
    )


def whet_command(cell: Cell, folder: Path, model: Path, rows: Path) -> list[str]:
    """`whet train` of the cell, from a YAML file as its user would write it."""
    config = folder / "bench.yaml"
    adapter = f"adapter: lora\nlora_r: {cell.lora_r}\nlora_alpha: {2 * cell.lora_r}\nlora_target_linear: true\n"
    text = CONFIG.format(
        model=model,
        rows=rows,
        folder=folder,
        sequence_len=cell.sequence_len,
        micro_batch_size=1,
        length="num_epochs: 1",
        adapter=adapter if cell.lora_r else "",
    )
    config.write_text(text.replace("bf16: false", f"bf16: {str(cell.bf16).lower()}"))
    script = REPOSITORY / "benchmarks" / "contestant_whet.py"
    return [sys.executable, str(script), "--config", str(config), "--warmup", str(WARMUP_STEPS)]


def trl_command(cell: Cell, folder: Path, model: Path, rows: Path, *, packed: bool = True) -> list[str]:
    """TRL's trainer on the same."""
    script = REPOSITORY / "benchmarks" / "contestant_trl.py"
    command = [sys.executable, str(script), "--model", str(model), "--rows", str(rows), "--output", str(folder / "trl")]
    command += ["--sequence-len", str(cell.sequence_len), "--lora-r", str(cell.lora_r), "--warmup", str(WARMUP_STEPS)]
    if cell.bf16:
        command.append("--bf16")
    if not packed:
        batch = cell.sequence_len // TOKENS_OF_A_CONVERSATION
        command += ["--no-packing", "--micro-batch-size", str(batch)]
    return command


if __name__ == "__main__":
    main()
