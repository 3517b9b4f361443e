"""Laws of packing: nothing lost, nothing over the edge, a count that the lengths alone decide."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.data.packing import fill, pack

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


@given(lengths_of_samples)
def test_packing_equals_best_fit_decreasing_one_sample_at_a_time(lengths):
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [index for index, left in enumerate(room) if left >= length]
        if fitting:
            room[min(fitting, key=lambda index: room[index])] -= length
        else:
            room.append(CAPACITY - length)
    expected = sorted(CAPACITY - left for left in room)
    assert sorted(tokens_per_pack(pack(lengths, CAPACITY), lengths)) == expected


def test_skewed_lengths_fill_more_than_99_5_percent():
    lengths = np.clip(np.random.default_rng(0).lognormal(5.5, 1.0, 20_000), 4, 2048).astype(int)
    assert fill(pack(lengths, 2048), lengths, 2048) >= 0.995


def test_a_sample_longer_than_a_pack_is_our_fault():
    with pytest.raises(AssertionError, match="51 tokens does not fit a pack of 50"):
        pack([10, 51], CAPACITY)


def test_no_sample_gives_no_pack():
    assert len(pack([], CAPACITY)) == 0
    assert fill(pack([], CAPACITY), [], CAPACITY) == 0.0
