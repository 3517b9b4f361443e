"""Figures of whole sets: every sample is counted once."""

from __future__ import annotations

import numpy as np
import pytest

from whet.data.order import Order
from whet.reports.figures import fill_histogram, length_histogram, pack_sizes, share_histogram

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    "lengths", [np.array([5]), np.full(10, 7), RANDOM.integers(1, 100_000, 5000), np.array([1, 4096])]
)
def test_every_length_is_in_one_bin(lengths: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
    histogram = length_histogram({"train": lengths, "validation": lengths[:1]})
    assert sum(histogram.counts["train"]) == len(lengths)
    assert sum(histogram.counts["validation"]) == 1
    assert len(histogram.counts["train"]) == len(histogram.edges) - 1
    below = [
        int(((lengths >= low) & (lengths < high)).sum())
        for low, high in zip(histogram.edges, histogram.edges[1:], strict=False)
    ]
    assert list(histogram.counts["train"])[:-1] == below[:-1]


def test_a_tail_is_in_the_last_bin_and_said_to_be() -> None:
    histogram = length_histogram({"train": np.concatenate([np.full(999, 50), [100_000]])})
    assert histogram.open_ended
    assert histogram.counts["train"][-1] >= 1
    assert histogram.edges[-1] < 1000


def test_shares_and_fills_count_their_ends() -> None:
    shares = share_histogram({"train": np.array([0.0, 0.049, 0.05, 1.0])})
    assert shares.counts["train"][0] == 2
    assert shares.counts["train"][1] == 1
    assert shares.counts["train"][-1] == 1
    fills = fill_histogram(np.concatenate([np.full(999, 1.0), [0.2]]))
    assert sum(fills.counts["packs"]) == 1000
    assert fills.edges[0] == 0.9


def test_sizes_of_packs_are_the_tokens_in_them() -> None:
    lengths = RANDOM.integers(1, 100, 500)
    order = Order(lengths, 128, packed=True, micro_batch_size=1, seed=3)
    packs = order.epoch(0)
    sizes = pack_sizes(packs, order.lengths)
    assert sizes.tolist() == [int(lengths[packs[number]].sum()) for number in range(len(packs))]
    assert sizes.max() <= 128
