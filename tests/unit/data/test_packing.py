"""Laws of packing: nothing lost, nothing over the edge, a count that the lengths alone decide."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.data.packing import EMPTY, Packs, Slots, fewest_packs, fill, joined, next_fit, pack

CAPACITY = 50
lengths_of_samples = st.lists(st.integers(1, CAPACITY), max_size=200)


def tokens_per_pack(packs, lengths):
    return [int(np.asarray(lengths)[packs[index]].sum()) for index in range(len(packs))]


@given(lengths_of_samples)
def test_packing_keeps_every_sample_once(lengths):
    packs = pack(lengths, CAPACITY)
    assert sorted(packs.members.tolist()) == list(range(len(lengths)))


@given(lengths_of_samples)
def test_no_pack_is_empty_or_over_capacity(lengths):
    assert all(0 < tokens <= CAPACITY for tokens in tokens_per_pack(pack(lengths, CAPACITY), lengths))


@given(lengths_of_samples, st.randoms(use_true_random=False))
def test_number_of_packs_depends_on_the_multiset_of_lengths_alone(lengths, random):
    shuffled = random.sample(lengths, len(lengths))
    assert len(pack(shuffled, CAPACITY)) == len(pack(lengths, CAPACITY))


@given(lengths_of_samples)
def test_packs_are_as_few_as_tokens_and_long_samples_allow_and_no_two_could_be_one(lengths):
    packs = pack(lengths, CAPACITY)
    assert len(packs) >= max(-(-sum(lengths) // CAPACITY), sum(2 * length > CAPACITY for length in lengths))
    tokens = sorted(tokens_per_pack(packs, lengths))
    assert len(tokens) < 2 or tokens[0] + tokens[1] > CAPACITY


def best_fit_decreasing(lengths):
    """Tokens of each pack, one sample at a time."""
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [index for index, left in enumerate(room) if left >= length]
        if fitting:
            room[min(fitting, key=lambda index: room[index])] -= length
        else:
            room.append(CAPACITY - length)
    return sorted(CAPACITY - left for left in room)


@given(lengths_of_samples)
def test_packing_is_best_fit_decreasing_or_takes_fewer_packs(lengths):
    packs, expected = pack(lengths, CAPACITY), best_fit_decreasing(lengths)
    assert len(packs) < len(expected) or sorted(tokens_per_pack(packs, lengths)) == expected


@given(lengths_of_samples)
def test_no_packing_beats_the_lower_bound(lengths):
    bound = fewest_packs(lengths, CAPACITY)
    assert -(-sum(lengths) // CAPACITY) <= bound <= len(pack(lengths, CAPACITY))
    assert sum(2 * length > CAPACITY for length in lengths) <= bound


@given(st.lists(st.integers(1, 12), max_size=7))
def test_the_lower_bound_holds_for_the_best_of_all_packings(lengths):
    def fewest(rest, rooms):
        if not rest:
            return len(rooms)
        length, later = rest[0], rest[1:]
        options = [[*rooms[:i], room - length, *rooms[i + 1 :]] for i, room in enumerate(rooms) if room >= length]
        return min(fewest(later, option) for option in [*options, [*rooms, 12 - length]])

    assert fewest_packs(lengths, 12) <= fewest(sorted(lengths, reverse=True), [])


def test_a_capacity_beyond_all_tokens_costs_nothing():
    packs = pack([3, 5, 2], 10**15)
    assert len(packs) == fewest_packs([3, 5, 2], 10**15) == 1
    assert sorted(packs.members.tolist()) == [0, 1, 2]


def test_gaps_that_best_fit_leaves_are_filled():
    """Best fit puts 30 + 20 first and is left with 21 and 14 in packs of 42 tokens; 21 + 15 + 14 has no gap."""
    lengths = [30, 21, 20, 15, 14] * 3
    assert len(best_fit_decreasing(lengths)) == 7
    assert len(pack(lengths, CAPACITY)) == fewest_packs(lengths, CAPACITY) == 6


@given(lengths_of_samples)
def test_next_fit_keeps_the_order_and_ends_a_pack_only_where_it_must(lengths):
    packs = next_fit(lengths, CAPACITY).fill(np.arange(len(lengths)))
    assert packs.members.tolist() == list(range(len(lengths)))
    tokens = tokens_per_pack(packs, lengths)
    assert all(0 < size <= CAPACITY for size in tokens)
    firsts = [lengths[packs[index][0]] for index in range(len(packs))]
    assert all(size + following > CAPACITY for size, following in zip(tokens, firsts[1:], strict=False))


def test_skewed_lengths_fill_more_than_99_9_percent():
    random = np.random.default_rng(0)
    for lengths in (
        np.clip(random.lognormal(5.5, 1.0, 20_000), 4, 2048).astype(int),
        random.integers(60, 500, 20_000),  # no short samples that would fit any gap
    ):
        assert fill(pack(lengths, 2048), lengths, 2048) >= 0.999


def test_an_empty_slot_leaves_the_other_samples_where_they_are():
    slots = Slots(np.array([0, 2, 3]), np.array([2, 0, 1]))
    packs = slots.fill(np.array([7, EMPTY, 9]))
    assert (packs.offsets.tolist(), packs.members.tolist()) == ([0, 2, 2], [9, 7])


def test_rows_are_summed_reordered_and_joined():
    packs = Packs(np.array([0, 2, 2, 3]), np.array([1, 0, 2]))
    assert packs.sums([10, 20, 40]).tolist() == [30, 0, 40]
    turned = packs.in_order(np.array([2, 0, 1]))
    assert (turned.offsets.tolist(), turned.members.tolist()) == ([0, 1, 3, 3], [2, 1, 0])
    both = joined([packs, turned])
    assert (both.offsets.tolist(), both.members.tolist()) == ([0, 2, 2, 3, 4, 6, 6], [1, 0, 2, 2, 1, 0])


def test_a_sample_longer_than_a_pack_is_our_fault():
    with pytest.raises(AssertionError, match="51 tokens does not fit a pack of 50"):
        pack([10, 51], CAPACITY)


def test_no_sample_gives_no_pack():
    assert len(pack([], CAPACITY)) == 0
    assert fill(pack([], CAPACITY), [], CAPACITY) == 0.0
