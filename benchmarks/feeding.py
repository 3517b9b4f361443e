"""What feeding costs: microseconds to make a batch, and the share of a run's step time that is spent waiting for data.

A batch is a packed row of the Python-documentation conversations, read from the prepared set on disk and made into
tensors in the training process itself. The share is `data_wait_share` of the run's metrics.jsonl, first step left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from common import report
from train import CONFIG
from workbench import make_model, make_rows


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--steps", type=int, default=8)
    arguments.add_argument("--rounds", type=int, default=5)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = make_rows(folder)
        model = make_model(folder, hidden_size=256, num_layers=4, vocab_size=8192)
        for sequence_len in (2048, 16384):
            config = folder / f"bench-{sequence_len}.yaml"
            # The model is made for 8,192 positions; nothing here depends on what it learns.
            config.write_text(
                CONFIG.format(
                    model=model,
                    rows=rows,
                    folder=folder / str(sequence_len),
                    sequence_len=sequence_len,
                    micro_batch_size=1,
                    length=f"max_steps: {options.steps}",
                    adapter="overrides_of_model_config: {max_position_embeddings: 16384}\n",
                )
            )
            measure(config, sequence_len, options.rounds)


def measure(path: Path, sequence_len: int, rounds: int) -> None:
    """Train, then make the batches of the first epoch again, alone."""
    from whet import load_config, stages, train
    from whet.data.batch import flatten
    from whet.training.tokenizer import run_tokenizer

    config = load_config(path)
    result = train(config)
    lines = map(json.loads, (result.output_dir / "metrics.jsonl").read_text().splitlines())
    shares = [line["data_wait_share"] for line in lines if line["kind"] == "train"][1:]
    resolved = stages.resolve_run(config)
    prepared = stages.prepare_data(resolved, run_tokenizer(config))
    order, _ = stages.plan_run(resolved, prepared)
    assert order is not None
    batches = list(order.micro_batches(0))[:200]
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        for batch in batches:
            flatten(prepared.train, batch)
        seconds.append((time.perf_counter() - began) / len(batches))
    report(
        f"feeding-{sequence_len}",
        unit="share of step time spent waiting for data",
        ours=statistics.median(shares),
        peer=None,
        ratio=None,
        limit=0.0,
        goal="below 0.5% of step time",
        microseconds_per_batch=1e6 * statistics.median(seconds),
        documents_per_batch=sum(len(row) for batch in batches for row in batch) / len(batches),
        steps=len(shares) + 1,
        rounds=rounds,
    )


if __name__ == "__main__":
    main()
