"""G8: each sample exactly once an epoch; the same ids per optimiser step at 1, 2 or 4 ranks.

With a mix of datasets, each sample as often as the mix says; tests/unit/data/test_mixing.py has the same laws for it.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from whet.data.order import Order
from whet.methods.pairs import PAIRS, PairSamples

CAPACITY = 32
RANKS = (1, 2, 4)
orders = st.builds(
    Order,
    lengths=st.lists(st.integers(1, CAPACITY), max_size=120),
    sequence_len=st.just(CAPACITY),
    packed=st.booleans(),
    micro_batch_size=st.just(1),
    seed=st.integers(0, 2**32),
    shuffle=st.booleans(),
    neighbours=st.booleans(),
    balance_steps=st.sampled_from([None, 4]),
)


def ids_by_step(order, epoch, world_size, accumulation):
    """Sorted sample ids of each optimiser step, gathered from what the ranks are given."""
    ranks = [order.micro_batches(epoch, rank, world_size, accumulation) for rank in range(world_size)]
    steps = []
    for begin in range(0, len(ranks[0]), accumulation):
        rows = [row for micro in ranks for batch in micro[begin : begin + accumulation] for row in batch]
        steps.append(sorted(np.concatenate(rows).tolist()))
    return steps


@given(orders, st.integers(0, 3), st.sampled_from(RANKS), st.integers(1, 3))
def test_each_sample_exactly_once_an_epoch_at_any_number_of_ranks(order, epoch, world_size, accumulation):
    seen = [sample for step in ids_by_step(order, epoch, world_size, accumulation) for sample in step]
    assert sorted(seen) == list(range(order.num_samples))


@given(orders, st.integers(0, 3), st.integers(1, 3))
def test_the_same_ids_per_optimiser_step_at_1_2_and_4_ranks(order, epoch, windows):
    """The global batch is kept: 4 * windows rows."""
    at_one, at_two, at_four = (ids_by_step(order, epoch, ranks, 4 * windows // ranks) for ranks in RANKS)
    assert at_one == at_two == at_four
    assert at_one == [
        sorted(order.step_samples(epoch, step, 4 * windows).tolist())
        for step in range(order.steps_per_epoch(4 * windows))
    ]


@given(st.integers(0, 40), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
def test_a_step_has_the_same_micro_batches_at_1_2_and_4_ranks_where_they_are_dealt_whole(
    num_samples, micro_batch_size, windows, epoch
):
    """For losses that look at the rows of a micro-batch together, as some of DPO do."""
    order = Order([1] * num_samples, CAPACITY, False, micro_batch_size, 7, whole_micro_batches=True)
    accumulation = 4 * windows
    found = []
    for ranks in RANKS:
        each = [order.micro_batches(epoch, rank, ranks) for rank in range(ranks)]
        cut = range(0, len(each[0]), accumulation // ranks)
        steps = [[batch for of_rank in each for batch in of_rank[at : at + accumulation // ranks]] for at in cut]
        found.append([sorted(np.concatenate(batch).tolist() for batch in step if batch) for step in steps])
    assert found[0] == found[1] == found[2]


@given(st.integers(1, 30), st.integers(1, 3), st.integers(1, 3), st.sampled_from(RANKS))
def test_each_pair_of_answers_exactly_once_an_epoch_at_any_number_of_ranks(
    num_pairs, micro_batch_size, accumulation, num_ranks
):
    """Of DPO, as its trainer gets them; a rank without a pair gets one that does not count."""
    order = Order([2] * num_pairs, CAPACITY, False, micro_batch_size, 7, whole_micro_batches=True)
    rows = [{"number": number} for number in range(num_pairs)]
    samples = PairSamples(rows, order, lambda rows: {"numbers": [row["number"] for row in rows]})
    steps: dict[int, list[int]] = {}
    for rank in range(num_ranks):
        args = SimpleNamespace(
            process_index=rank,
            world_size=num_ranks,
            gradient_accumulation_steps=accumulation,
            dataloader_num_workers=0,
            dataloader_prefetch_factor=None,
            dataloader_pin_memory=False,
        )
        batches = list(samples.loader(args))
        assert len(batches) == order.num_micro_batches(num_ranks)
        for number, batch in enumerate(batches):
            pairs = batch[PAIRS].tolist()
            assert batch["numbers"] == (pairs or [0]), "every rank computes something"
            steps.setdefault(number // accumulation, []).extend(pairs)
    assert [sorted(step) for step in steps.values()] == [
        sorted(order.step_samples(0, step, accumulation, num_ranks).tolist()) for step in steps
    ]
    assert sorted(pair for step in steps.values() for pair in step) == list(range(num_pairs))


@given(st.lists(st.integers(1, CAPACITY), max_size=120), st.integers(0, 3))
def test_micro_batch_size_and_accumulation_divide_the_same_steps(lengths, epoch):
    narrow = Order(lengths, CAPACITY, True, 1, 7)
    wide = Order(lengths, CAPACITY, True, 4, 7)
    assert ids_by_step(narrow, epoch, 1, 4) == ids_by_step(wide, epoch, 1, 1)
