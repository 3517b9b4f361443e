"""The order of an epoch: shuffled by seed and epoch, countable before it is made."""

from __future__ import annotations

import numpy as np
import pytest

from whet.data.deck import Deck
from whet.data.mixing import Dealt, Mix
from whet.data.order import Order

LENGTHS = np.random.default_rng(0).integers(1, 60, 101)


def order(packed=True, seed=42, shuffle=True, micro_batch_size=3):
    return Order(LENGTHS, 64, packed, micro_batch_size, seed, shuffle)


@pytest.mark.parametrize("packed", [True, False])
def test_epochs_have_the_same_rows_count_and_other_contents(packed):
    rows = [order(packed).epoch(epoch) for epoch in range(3)]
    assert {len(r) for r in rows} == {order(packed).num_rows}
    assert len({r.members.tobytes() for r in rows}) == 3


@pytest.mark.parametrize("packed", [True, False])
def test_an_epoch_is_a_function_of_the_seed(packed):
    assert np.array_equal(order(packed).epoch(1).members, order(packed).epoch(1).members)
    assert not np.array_equal(order(packed).epoch(1).members, order(packed, seed=43).epoch(1).members)
    assert order(packed, seed=-1).num_rows == order(packed).num_rows


def test_the_order_of_seed_42_never_changes():
    """A recorded number: a resumed run of an earlier version must see the same samples."""
    assert Order([1] * 8, 8, False, 1, 42).epoch(0).members.tolist() == [3, 5, 4, 7, 6, 2, 1, 0]
    assert Order([3, 1, 4, 1, 5, 9, 2, 6], 10, True, 1, 42).epoch(3).members.tolist() == [5, 3, 7, 2, 4, 0, 6, 1]


def test_the_order_of_a_mix_with_seed_42_never_changes():
    lengths = np.arange(1, 9)
    deck = Deck.of(np.arange(8), lengths, 4, (6,), np.arange(8, dtype=np.uint64))
    mixed = Order(lengths, 16, True, 1, 42, mix=Mix((Dealt(deck, (6,)),)), balance_steps=2)
    assert [mixed.epoch(epoch).members.tolist() for epoch in (0, 1)] == [
        [6, 7, 3, 2, 2, 6, 5, 1, 5, 4, 3, 0],
        [6, 4, 1, 5, 4, 1, 0, 7, 7, 3, 2, 0],
    ]


def test_samples_of_equal_length_change_companions():
    equal = Order([8] * 64, 64, True, 1, 0)
    companions = [{frozenset(equal.epoch(e)[row].tolist()) for row in range(8)} for e in range(2)]
    assert companions[0] != companions[1]


def test_without_shuffle_samples_keep_their_order_in_every_epoch():
    single = order(packed=False, shuffle=False)
    assert single.epoch(0).members.tolist() == single.epoch(5).members.tolist() == list(range(101))
    packs = order(shuffle=False).epoch(0)
    firsts = [packs[row].min() for row in range(len(packs))]
    assert firsts == sorted(firsts)


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (1, 4), (2, 2), (4, 3)])
def test_counts_are_known_before_the_epoch(world_size, accumulation):
    o = order()
    micro = [o.micro_batches(0, rank, world_size, accumulation) for rank in range(world_size)]
    assert {len(m) for m in micro} == {o.num_micro_batches(world_size)}
    assert -(-len(micro[0]) // accumulation) == o.steps_per_epoch(accumulation, world_size)


def test_a_rank_with_nothing_left_gets_an_empty_micro_batch_and_the_last_is_spread_evenly():
    o = Order([1] * 10, 8, False, 2, 0)
    last = [o.micro_batches(0, rank, 4, 1)[-1] for rank in range(4)]
    assert [len(rows) for rows in last] == [1, 1, 0, 0]


def test_micro_batches_can_be_entered_anywhere():
    batches = order().micro_batches(2)
    assert [np.concatenate(b).tolist() for b in batches[3:]] == [np.concatenate(b).tolist() for b in list(batches)[3:]]
    assert np.array_equal(batches[-1][0], batches[len(batches) - 1][0])
    with pytest.raises(IndexError):
        batches[len(batches)]


def test_no_sample_gives_no_row():
    empty = Order([], 8, True, 1, 0)
    assert (empty.num_rows, empty.steps_per_epoch(1), len(empty.epoch(0))) == (0, 0, 0)
