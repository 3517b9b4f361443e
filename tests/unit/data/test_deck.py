"""Laws of a deck: slots that always fit, samples that come round evenly, whatever the fraction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.data.deck import TOLERANCE, Deck, denominator, highest_ranks, spread
from whet.data.packing import EMPTY

lengths_of_samples = st.lists(st.integers(1, 300), min_size=1, max_size=80)
denominators = st.integers(1, 30)


def deck_of(lengths, q, widths=(), seed=0):
    random = np.random.default_rng(seed).integers(0, 2**63, len(lengths), dtype=np.uint64)
    return Deck.of(np.arange(len(lengths)), np.array(lengths), q, widths, random)


@given(lengths_of_samples, denominators, st.integers(0, 90), st.integers(0, 200), st.booleans())
def test_what_is_dealt_always_fits_its_slot(lengths, q, width, begin, known):
    deck = deck_of(lengths, q, [width] if known else [], seed=begin)
    slots, samples = deck.slots(width), deck.deal(begin, width)
    assert len(slots) == len(samples)
    taken = samples != EMPTY
    assert (np.array(lengths)[samples[taken]] <= slots[taken]).all()
    assert (~taken).sum() <= 1


@given(lengths_of_samples, denominators, st.lists(st.integers(0, 70), min_size=1, max_size=6))
def test_parts_behind_each_other_show_each_sample_floor_or_ceil_of_what_was_asked(lengths, q, widths):
    deck, seen, total = deck_of(lengths, q), np.zeros(len(lengths), dtype=int), 0
    for width in widths:
        samples = deck.deal(total, width)
        seen += np.bincount(samples[samples != EMPTY], minlength=len(lengths))
        total += width
    assert set(seen.tolist()) <= {total // q, -(-total // q)}
    counted = np.empty(len(lengths), dtype=int)
    counted[deck.samples] = deck.times_seen(0, total)
    assert np.array_equal(seen, counted)


@given(st.integers(2, 40), st.integers(1, 40), st.integers(0, 500))
def test_a_whole_number_of_strata_gives_the_same_number_of_samples_every_time(q, num_strata, begin):
    deck, width = deck_of([5] * (q * num_strata), q), q // 2
    assert len(deck.deal(begin, width)) == num_strata * width
    assert (deck.deal(begin, width) != EMPTY).all()


@pytest.mark.parametrize("widths", [[12], [12, 3]])
def test_a_fraction_takes_samples_of_every_length_and_few_tokens_of_its_slots_are_lost(widths):
    lengths = np.clip(np.random.default_rng(1).lognormal(5, 1, 20_000), 4, 2048).astype(int)
    deck = deck_of(lengths, 29, widths)
    slots = deck.slots(12).sum()
    for begin in (0, 12, 24, 1000):
        tokens = lengths[deck.deal(begin, 12)].sum()
        assert 0.999 * slots <= tokens <= slots
        assert tokens == pytest.approx(lengths.sum() * 12 / 29, rel=5e-4)


@given(st.integers(0, 200), st.floats(0, 1))
def test_places_are_a_permutation(size, stride):
    assert sorted(spread(size, stride).tolist()) == list(range(size))


@settings(max_examples=40)
@given(st.integers(1, 60), st.floats(0, 1), st.data())
def test_no_window_has_a_higher_rank_than_was_planned(size, stride, data):
    width = data.draw(st.integers(0, size))
    rank_at = np.argsort(spread(size, stride))
    windows = [np.sort(np.roll(rank_at, -begin)[:width]) for begin in range(size)]
    assert np.array_equal(highest_ranks(size, width, stride), np.max(windows, axis=0))


@pytest.mark.parametrize(("size", "width"), [(7, 3), (29, 12), (100, 37)])
def test_a_stride_of_the_share_takes_every_so_many_th(size, width):
    assert highest_ranks(size, width, width / size).tolist() == [-(-(k + 1) * size // width) - 1 for k in range(width)]


def test_a_stratum_too_large_to_search_is_planned_for_its_longest():
    assert highest_ranks(5000, 3, 0.5).tolist() == [4999] * 3


@given(st.lists(st.floats(0.001, 20), min_size=1, max_size=4))
def test_times_are_kept_within_the_tolerance(times):
    """Four numbers at once may need a denominator beyond the largest that is looked at; then the best is taken."""
    q = denominator(times)
    limit = TOLERANCE if len(times) == 1 else 0.02
    assert all(abs(round(value * q) / q / value - 1) <= limit for value in times)


def test_nothing_asked_needs_no_fraction():
    assert denominator([0.0]) == denominator([]) == 1
