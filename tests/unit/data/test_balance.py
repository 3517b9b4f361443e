"""Rows dealt so that steps take equal time: nothing lost, steps filled, costs even."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.data.balance import balanced
from whet.data.order import Order

LENGTHS = np.clip(np.random.default_rng(5).lognormal(5.5, 1.0, 6000), 4, 2048).astype(np.int64)


def random_of(size, seed=0):
    return np.random.default_rng(seed).integers(0, 2**63, size, dtype=np.uint64)


def spread_of(values):
    return float(np.std(values) / np.mean(values))


@given(st.lists(st.integers(1, 10**6), max_size=60), st.integers(1, 9), st.integers(0, 30))
def test_every_row_is_dealt_once(costs, rows_per_step, first):
    costs = np.array(costs, dtype=np.int64)
    assert sorted(balanced(costs, random_of(len(costs)), rows_per_step, first).tolist()) == list(range(len(costs)))


@pytest.mark.parametrize("first", [0, 3, 8])
def test_steps_cost_about_the_same(first):
    costs = np.random.default_rng(2).integers(1_000, 100_000, 805)
    order = balanced(costs, random_of(805), 8, first)
    begin = -first % 8
    whole = costs[order[begin : begin + (805 - begin) // 8 * 8]].reshape(-1, 8)
    chance = costs[: len(whole) * 8].reshape(-1, 8)
    assert spread_of(whole.sum(axis=1)) < 0.2 * spread_of(chance.sum(axis=1))
    assert (np.diff(whole, axis=1) <= 0).all(), "from dear to cheap within a step"


def orders(**keys):
    plain = Order(LENGTHS, 2048, True, keys.get("micro_batch_size", 1), 7)
    even = Order(LENGTHS, 2048, True, keys.get("micro_batch_size", 1), 7, balance_steps=keys["balance_steps"])
    return plain, even


def test_balanced_packs_are_as_many_and_hold_every_sample_once():
    plain, even = orders(balance_steps=8)
    assert even.num_rows == plain.num_rows
    assert sorted(even.epoch(0).members.tolist()) == list(range(len(LENGTHS)))


@pytest.mark.parametrize("epoch", [0, 3])
def test_the_sum_of_squared_lengths_spreads_less_over_steps(epoch):
    plain, even = orders(balance_steps=8)
    spreads = []
    for order in (plain, even):
        costs = [
            int((LENGTHS[order.step_samples(epoch, step, 8)] ** 2).sum())
            for step in range(order.steps_per_epoch(8) - 1)
        ]
        spreads.append(spread_of(costs))
    assert spreads[1] < 0.2 * spreads[0]


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(2, 1), (4, 2), (2, 4)])
def test_the_sum_of_squared_lengths_spreads_less_over_ranks(world_size, micro_batch_size):
    """In each micro-batch, and in the whole step."""
    accumulation = 8
    size = world_size * micro_batch_size * accumulation
    uneven = []
    for order in orders(balance_steps=size, micro_batch_size=micro_batch_size):
        ranks = [order.micro_batches(0, rank, world_size, accumulation) for rank in range(world_size)]
        costs = np.array([[sum((LENGTHS[row] ** 2).sum() for row in batch) for batch in list(r)[:-1]] for r in ranks])
        whole = costs.shape[1] // accumulation * accumulation
        steps = costs[:, :whole].reshape(world_size, -1, accumulation).sum(axis=2)
        uneven.append([np.ptp(values, axis=0).mean() / values.mean() for values in (costs, steps)])
    assert uneven[1][0] < 0.6 * uneven[0][0]
    assert uneven[1][1] < 0.6 * uneven[0][1]


def test_epochs_group_their_rows_otherwise():
    _, even = orders(balance_steps=4)
    steps = [[frozenset(even.step_samples(epoch, step, 4).tolist()) for step in range(50)] for epoch in range(2)]
    assert not set(steps[0]) & set(steps[1])
