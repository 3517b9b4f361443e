"""Packing a million lengths, against TRL's best-fit-decreasing packing of the same, with the lower bound beside both.

Two sets of lengths: drawn from the conversations of tests/data (skewed, few short ones to fill gaps with), and uniform.
TRL packs what it is given in batches; it is measured on all samples at once, which gives it its best fill, and in the
batches of 1,000 rows that are its default. Its tokens are single bytes here, so that hardly a byte is moved for them.
What is timed is the call that packs: ours from lengths to rows of sample ids, TRL's from a table of rows to a table of
packs. Then, ours alone: the order of a run's first epoch, and of the second, which has other companions in every pack.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from common import Contestant, alternate, median, report
from workbench import ROWS

CAPACITY = 2048


def skewed_lengths(num_samples: int) -> np.ndarray:
    """Tokens of conversations, at four characters a token; each drawn one is made up to a quarter longer or shorter."""
    conversations = [json.loads(line)["messages"] for line in ROWS.read_text(encoding="utf-8").splitlines()]
    characters = [sum(len(message["content"]) for message in turns) for turns in conversations]
    tokens = np.array(characters) // 4 + [5 * len(turns) for turns in conversations]
    random = np.random.default_rng(0)
    return np.clip(random.choice(tokens, num_samples) * random.uniform(0.8, 1.25, num_samples), 8, CAPACITY).astype(int)


def uniform_lengths(num_samples: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, CAPACITY + 1, num_samples)


LENGTHS = {"pydoc": skewed_lengths, "uniform": uniform_lengths}


def whet(lengths: np.ndarray) -> dict[str, Any]:
    """Seconds to pack, to make an order with its first epoch, and to change the epoch."""
    from whet.data.order import Order
    from whet.data.packing import fewest_packs, pack

    began = time.perf_counter()
    packs = pack(lengths, CAPACITY)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    order = Order(lengths, CAPACITY, packed=True, micro_batch_size=1, seed=0)
    order.epoch(0)
    first_epoch = time.perf_counter() - began
    began = time.perf_counter()
    order.epoch(1)
    return {
        "seconds": seconds,
        "packs": len(packs),
        "first_epoch_seconds": first_epoch,
        "next_epoch_seconds": time.perf_counter() - began,
        "fewest_packs": fewest_packs(lengths, CAPACITY),
    }


def trl(lengths: np.ndarray, batch_size: int) -> dict[str, Any]:
    """Seconds of ``pack_dataset`` with strategy bfd on rows in memory."""
    import pyarrow as pa
    from datasets import Dataset, disable_progress_bars
    from trl.data_utils import pack_dataset

    disable_progress_bars()
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = pa.array(np.zeros(int(offsets[-1]), dtype=np.int8))
    rows = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)
    dataset = Dataset(pa.table({"input_ids": rows}))
    began = time.perf_counter()
    packed = pack_dataset(
        dataset,
        CAPACITY,
        strategy="bfd",
        map_kwargs={"batch_size": batch_size, "keep_in_memory": True, "load_from_cache_file": False},
    )
    return {"seconds": time.perf_counter() - began, "packs": len(packed)}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--samples", type=int, default=1_000_000)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--only", choices=sorted(LENGTHS), help="one of the two sets of lengths")
    arguments.add_argument("--contestant", choices=["whet", "trl", "trl-default"])
    arguments.add_argument("--lengths", type=Path)
    options = arguments.parse_args()
    if options.contestant:
        lengths = np.load(options.lengths)
        run = {
            "whet": lambda: whet(lengths),
            "trl": lambda: trl(lengths, len(lengths)),
            "trl-default": lambda: trl(lengths, 1000),
        }
        print(json.dumps(run[options.contestant]()))
        return
    for name, make in LENGTHS.items():
        if options.only in (None, name):
            compare(name, make(options.samples), options.rounds)


def compare(name: str, lengths: np.ndarray, rounds: int) -> None:
    """Measure all contestants on the same lengths and write the report."""
    tokens = int(lengths.sum())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lengths.npy"
        np.save(file, lengths)
        command = [sys.executable, __file__, "--lengths", str(file), "--contestant"]
        names = ("whet", "trl", "trl-default")
        contestants = [Contestant(contestant, [*command, contestant]) for contestant in names]
        measured = alternate(contestants, rounds, Path(folder))
    ours, peer = median(measured["whet"], "seconds"), median(measured["trl"], "seconds")
    packs = {contestant: int(measured[contestant][0]["packs"]) for contestant in names}
    report(
        f"packing-{name}",
        unit="seconds to pack",
        ours=ours,
        peer=peer,
        ratio=peer / ours,
        goal="a million lengths in <= 0.5 s at >= 99.9% fill, an epoch's change in < 1 s",
        peer_name="TRL pack_dataset, bfd, all samples at once",
        num_samples=len(lengths),
        tokens=tokens,
        capacity=CAPACITY,
        ours_fill=tokens / packs["whet"] / CAPACITY,
        peer_fill=tokens / packs["trl"] / CAPACITY,
        ours_packs=packs["whet"],
        peer_packs=packs["trl"],
        limit=-(-tokens // CAPACITY),
        fewest_packs=measured["whet"][0]["fewest_packs"],
        limit_meaning="packs: tokens / capacity, rounded up; fewest_packs also counts which samples fit together",
        peer_default_seconds=median(measured["trl-default"], "seconds"),
        peer_default_fill=tokens / packs["trl-default"] / CAPACITY,
        first_epoch_seconds=median(measured["whet"], "first_epoch_seconds"),
        next_epoch_seconds=median(measured["whet"], "next_epoch_seconds"),
        rounds=rounds,
    )


if __name__ == "__main__":
    main()
