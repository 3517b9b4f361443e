"""Laws of near-duplicates: the alike are found, the unlike left, the first stays, and nothing depends on blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.data import duplicates, minhash
from whet.data.duplicates import bands_for, near_duplicates, overlap
from whet.data.minhash import estimate, jaccard, shingle_hashes, signatures

rows_of_ids = st.lists(st.lists(st.integers(0, 131_071), max_size=40), max_size=12)


def flat(rows):
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return np.concatenate([np.zeros(0, np.int32), *(np.asarray(row, np.int32) for row in rows)]), offsets


def signed(rows):
    return signatures(*flat(rows))


def random_row(random, length=200):
    return random.integers(0, 131_072, length)


def with_edits(random, row, count):
    edited = row.copy()
    edited[random.choice(len(row), count, replace=False)] = random.integers(0, 131_072, count)
    return edited


def edited_pairs(random, count):
    """Rows 2n and 2n + 1 are of every similarity."""
    rows = []
    for _ in range(count):
        row = random_row(random, int(random.integers(40, 400)))
        rows += [row, with_edits(random, row, int(random.integers(0, max(2, len(row) // 4))))]
    return rows


# --- signatures ------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), max_size=30), st.lists(st.integers(0, 9), max_size=30))
def test_jaccard_is_that_of_the_sets_of_shingles(first, second):
    def shingles(row):
        return {tuple(row[i : i + 5]) for i in range(len(row) - 4)} or {tuple(row)}

    left, right = shingles(first), shingles(second)
    assert len(shingle_hashes(np.array(first, np.int32))) == len(left)
    found = jaccard(np.array(first, np.int32), np.array(second, np.int32))
    assert found == pytest.approx(len(left & right) / len(left | right))


@given(rows_of_ids, st.integers(0, 12))
def test_a_signature_depends_on_its_row_alone(rows, cut):
    whole = signed(rows)
    assert whole.shape == (len(rows), 128)
    assert whole.dtype == np.uint32
    np.testing.assert_array_equal(whole, np.concatenate([signed(rows[:cut]), signed(rows[cut:])]))


@given(rows_of_ids)
def test_signatures_do_not_depend_on_blocks(rows):
    expected = signed(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minhash, "_TOKENS_AT_ONCE", 7)
        np.testing.assert_array_equal(signed(rows), expected)


def test_signatures_of_a_slice_of_a_larger_array_begin_where_its_offsets_say():
    ids, offsets = flat([[1] * 9, [2, 3, 4, 5, 6, 7], [8]])
    np.testing.assert_array_equal(signatures(ids, offsets[1:]), signed([[2, 3, 4, 5, 6, 7], [8]]))


@pytest.mark.parametrize("length", [8, 20, 100, 300, 1500])
def test_the_estimate_is_unbiased_and_its_error_nearly_that_of_128_draws(length):
    random = np.random.default_rng(length)
    rows, others = [random_row(random, length).astype(np.int32) for _ in range(400)], []
    for row in rows:
        kept = int(length * random.uniform(0.5, 1))
        others.append(np.concatenate([row[:kept], random_row(random, length - kept)]).astype(np.int32))
    truth = np.array(list(map(jaccard, rows, others)))
    errors = estimate(signed(rows), signed(others)) - truth
    assert abs(errors.mean()) < 0.01
    assert np.sqrt((errors**2).mean()) < 1.35 * np.sqrt((truth * (1 - truth)).mean() / 128) + 1e-9


@pytest.mark.parametrize("num_hashes", [16, 100, 256])
@pytest.mark.parametrize("shingle", [1, 3, 9])
def test_any_number_of_places_and_any_shingle(num_hashes, shingle):
    random = np.random.default_rng(0)
    row = random_row(random)
    found = signatures(*flat([row, row, random_row(random), row[:2]]), shingle, num_hashes)
    assert found.shape == (4, num_hashes)
    assert (found != 2**32 - 1).all()
    assert (found[0] == found[1]).all()
    assert estimate(found[:1], found[2:3])[0] < 0.2


# --- near duplicates -------------------------------------------------------------------------------------------------


@given(rows_of_ids, st.randoms(use_true_random=False), st.sampled_from([0.5, 0.8, 1.0]))
def test_rows_that_are_equal_are_found_and_the_first_stays(rows, random, threshold):
    copies = [row for row in rows for _ in range(random.randint(1, 3))]
    random.shuffle(copies)
    found = near_duplicates(signed(copies), threshold)
    for number, row in enumerate(copies):
        assert found[number] >= 0 or row not in copies[:number]


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
def test_alike_rows_are_found_and_unlike_ones_are_not(threshold):
    rows = [row.astype(np.int32) for row in edited_pairs(np.random.default_rng(1), 1500)]
    truth = np.array([jaccard(rows[number], rows[number + 1]) for number in range(0, len(rows), 2)])
    found = near_duplicates(signed(rows), threshold)
    assert (found[::2] == -1).all(), "rows that have nothing in common"
    merged = found[1::2] >= 0
    alike, unlike = truth >= min(threshold + 0.1, 1), truth <= threshold - 0.2
    assert alike.sum() >= 20
    assert unlike.sum() >= 20
    assert merged[alike].mean() >= 0.95
    assert not merged[unlike].any()


def test_the_tokens_decide_where_they_are_given():
    rows = [row.astype(np.int32) for row in edited_pairs(np.random.default_rng(2), 1500)]
    truth = np.array([jaccard(rows[number], rows[number + 1]) for number in range(0, len(rows), 2)])
    merged = near_duplicates(signed(rows), 0.8, rows.__getitem__)[1::2] >= 0
    assert not merged[truth < 0.8].any()
    assert merged[truth >= 0.85].mean() >= 0.95
    assert merged[truth >= 0.8].mean() >= 0.9


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.integers(0, 120))
def test_later_rows_change_nothing_for_earlier_ones(seed, cut):
    found = signed(clusters(seed))
    np.testing.assert_array_equal(near_duplicates(found[:cut], 0.7), near_duplicates(found, 0.7)[:cut])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32))
def test_every_repeat_resembles_an_earlier_row_that_stays(seed):
    found = signed(clusters(seed))
    nearest = near_duplicates(found, 0.7)
    repeats = np.flatnonzero(nearest >= 0)
    assert (nearest[repeats] < repeats).all()
    assert (nearest[nearest[repeats]] == -1).all()
    assert (estimate(found[repeats], found[nearest[repeats]]) >= 0.7).all()


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**32))
def test_near_duplicates_do_not_depend_on_blocks(seed):
    found = signed(clusters(seed))
    expected = near_duplicates(found, 0.7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_PAIRS_AT_ONCE", 5)
        patch.setattr(duplicates, "_COMPARED_AT_ONCE", 3)
        np.testing.assert_array_equal(near_duplicates(found, 0.7), expected)


def clusters(seed):
    """120 rows in chains: each a few edits away from the one before it, shuffled."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(12):
        row = random_row(random, 80)
        for _ in range(10):
            rows.append(row)
            row = with_edits(random, row, int(random.integers(0, 3)))
    return [rows[number] for number in random.permutation(len(rows))]


def test_a_long_text_that_all_rows_share_neither_hides_repeats_nor_costs_a_square():
    random = np.random.default_rng(3)
    shared = random_row(random, 300)
    rows = [np.concatenate([shared, random_row(random, 80)]) for _ in range(1500)]
    copies = [with_edits(random, row, 1) for row in rows]
    found = signed([*rows, *copies])
    assert 0.6 < estimate(found[:100], found[100:200]).mean() < 0.75
    nearest = near_duplicates(found, 0.9)
    assert (nearest[:1500] == -1).mean() > 0.99
    assert (nearest[1500:] == np.arange(1500)).mean() >= 0.95
    bands, _ = bands_for(0.9, 128)
    assert duplicates._buckets(found, np.arange(3000), 0.9, 0).count.sum() <= 3000 * bands * 3 * 16


def test_tokens_are_asked_for_a_few_pairs_of_a_row_at_most():
    random = np.random.default_rng(4)
    shared = random_row(random, 300)
    rows = [np.concatenate([shared, random_row(random, 34)]).astype(np.int32) for _ in range(300)]
    asked = []
    nearest = near_duplicates(signed(rows), 0.85, lambda row: asked.append(row) or rows[row])
    assert (nearest == -1).all()
    assert 0 < len(asked) <= 2 * 300 * 8


@given(st.floats(0.1, 1.0))
def test_bands_meet_the_recall_at_the_threshold_itself(threshold):
    bands, width = bands_for(threshold, 128)
    assert bands * width <= 128
    assert 1 - (1 - threshold**width) ** bands >= 0.95


def test_no_rows_and_one_row():
    assert near_duplicates(signed([]), 0.8).tolist() == []
    assert near_duplicates(signed([[1, 2, 3]]), 0.8).tolist() == [-1]


# --- overlap of training and evaluation ------------------------------------------------------------------------------


def digests(rows):
    """uint64[N, 2]; any that are equal for equal rows alone."""
    known = {}
    numbers = [known.setdefault(tuple(map(int, row)), len(known)) for row in rows]
    return np.array([(number // 3, number) for number in numbers], dtype=np.uint64).reshape(-1, 2)


@given(st.lists(st.integers(0, 20), max_size=30), st.lists(st.integers(0, 20), max_size=30))
def test_overlap_finds_exactly_the_rows_that_are_in_both(train, evaluation):
    both = digests([[number] for number in [*train, *evaluation]])
    found = overlap(both[: len(train)], both[len(train) :])
    expected = [train.index(number) if number in train else -1 for number in evaluation]
    assert found.train_row.tolist() == expected
    assert found.num_exact == sum(row >= 0 for row in expected)
    assert found.num_near == 0


@pytest.mark.parametrize("with_tokens", [False, True])
def test_overlap_counts_exact_and_near_rows_and_names_pairs(with_tokens):
    random = np.random.default_rng(5)
    train = [random_row(random).astype(np.int32) for _ in range(200)]
    new = [random_row(random).astype(np.int32) for _ in range(50)]
    near = [with_edits(random, train[number], 1) for number in (7, 9, 11)]
    # The evaluation rows repeat each other too, which is no overlap with training.
    evaluation = [*new, new[0], train[3], train[5], *near]
    both = digests([*train, *evaluation])
    tokens = [*train, *evaluation].__getitem__ if with_tokens else None
    found = overlap(both[:200], both[200:], signed(train), signed(evaluation), 0.8, tokens)
    assert (found.num_exact, found.num_near) == (2, 3)
    assert found.rows.tolist() == [51, 52, 53, 54, 55]
    assert found.train_row[found.rows].tolist() == [3, 5, 7, 9, 11]
    assert found.examples(4) == [(53, 7), (54, 9), (55, 11), (51, 3)]


def test_reference_rows_are_not_judged():
    random = np.random.default_rng(6)
    row = random_row(random)
    found = near_duplicates(signed([row, row, random_row(random), row]), 0.8, num_reference=2)
    assert found.tolist() == [-1, -1, -1, 0]
