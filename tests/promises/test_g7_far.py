"""G7 resume: the first batch of a run that is far along costs what the first batch of a new run costs.

Counted: the micro-batches that are made, and the epochs whose order is computed. `benchmarks/resume.py` measures time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import skip_first_batches
from tests.resuming import Bench

from whet.data.order import MicroBatches, Order
from whet.training.loader import EpochBatches, MicroBatchLoader


class Counted:
    """Counts what an order does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.micro_batches: list[int] = []
        self.epochs: list[int] = []
        make, compute = MicroBatches.__getitem__, Order._compute_epoch

        def made(batches: MicroBatches, index: Any) -> Any:
            self.micro_batches.append(index)
            return make(batches, index)

        def computed(order: Order, epoch: int) -> Any:
            self.epochs.append(epoch)
            return compute(order, epoch)

        monkeypatch.setattr(MicroBatches, "__getitem__", made)
        monkeypatch.setattr(Order, "_compute_epoch", computed)


class Numbers:
    """Samples that are their numbers, and the batch of some rows: the rows."""

    def __getitems__(self, rows: Any) -> Any:
        return rows


def test_at_step_a_million_one_micro_batch_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the fourth epoch of 300,000 steps, by accelerate's own way to skip."""
    order = Order(np.full(600_000, 8), 64, packed=False, micro_batch_size=1, seed=1)
    counted = Counted(monkeypatch)
    batches = EpochBatches(order, accumulation=2)
    loader = MicroBatchLoader(Numbers(), batches)  # type: ignore[arg-type]
    step, steps_per_epoch = 1_000_000, order.steps_per_epoch(2)
    epoch, trained = divmod(step, steps_per_epoch)
    assert (epoch, trained) == (3, 100_000)
    batches.pass_over(epoch, trained * 2)
    skipping = skip_first_batches(loader, trained * 2)
    batches.set_epoch(epoch)
    iterator = iter(skipping)
    step_rows = [next(iterator), next(iterator)]
    assert counted.micro_batches == [200_000, 200_001]
    assert counted.epochs == [3]
    assert [row.item() for rows in step_rows for row in rows] == order.step_samples(3, 100_000, 2).tolist()


def test_a_resumed_run_makes_no_micro_batch_that_it_does_not_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path / "bench")
    keys: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    bench.run(tmp_path / "out", **keys)
    counted = Counted(monkeypatch)
    bench.run(tmp_path / "out", resume=tmp_path / "out" / "checkpoint-2", **keys)
    assert counted.micro_batches == [4, 0, 1, 2, 3, 4], "of five an epoch, four are behind step 2"
