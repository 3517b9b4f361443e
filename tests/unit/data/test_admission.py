"""What becomes of a sample that is too long, too short or has no target."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.data.admission import Dropped, Kept, Limits, admit, num_supervised
from whet.data.tokenise import Encoded, EncodedPreference

STRATEGIES = ["drop", "truncate", "raise", "split"]


def sample(mask):
    return Encoded(np.arange(len(mask), dtype=np.int32), np.array(mask, dtype=bool))


def preference(prompt, chosen, rejected):
    return EncodedPreference(*(np.arange(length, dtype=np.int32) for length in (prompt, chosen, rejected)))


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 20), st.integers(0, 5), st.sampled_from(STRATEGIES))
def test_every_sample_kept_is_within_the_limits_and_has_a_target(mask, most, fewest, strategy):
    verdict = admit(sample(mask), Limits(most, fewest, strategy))
    if isinstance(verdict, Kept):
        assert verdict.samples
        for kept in verdict.samples:
            assert fewest <= len(kept) <= most
            assert num_supervised(kept) > 0
    assert verdict.tokens == len(mask)


@given(st.lists(st.booleans(), min_size=2, max_size=20), st.sampled_from(STRATEGIES))
def test_a_sample_that_fits_is_kept_as_it_is(mask, strategy):
    mask[-1] = True
    original = sample(mask)
    assert admit(original, Limits(20, 2, strategy)) == Kept((original,), len(mask))


@pytest.mark.parametrize("strategy", ["drop", "raise"])
def test_a_long_sample_is_dropped(strategy):
    dropped = Dropped("longer than sequence_len", 5, "5 tokens")
    assert admit(sample([1] * 5), Limits(4, 2, strategy)) == dropped
    assert admit(preference(3, 1, 2), Limits(4, 2, strategy)) == dropped


def test_a_long_sample_is_cut_to_its_beginning():
    verdict = admit(sample([0, 1, 1, 1, 1]), Limits(3, 2, "truncate"))
    assert verdict.done == "cut at sequence_len"
    assert [kept.input_ids.tolist() for kept in verdict.samples] == [[0, 1, 2]]


def test_a_sample_whose_targets_are_cut_off_is_dropped_for_its_own_reason():
    verdict = admit(sample([0, 0, 0, 1, 1]), Limits(3, 2, "truncate"))
    assert verdict == Dropped("no supervised token left after cutting", 5, "5 tokens")


def test_a_long_text_becomes_several_samples():
    verdict = admit(sample([1] * 8), Limits(3, 2, "split"))
    assert verdict.done == "split at sequence_len"
    assert [kept.input_ids.tolist() for kept in verdict.samples] == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_the_first_token_is_no_target():
    assert num_supervised(sample([1, 0, 1])) == 1
    verdict = admit(sample([1, 0, 0]), Limits(9, 2, "drop"))
    assert (verdict.reason, verdict.bad) == ("nothing to train", True)


def test_a_short_sample_is_dropped():
    assert admit(sample([1]), Limits(9, 2, "drop")).reason == "shorter than min_sample_len"


def test_answers_of_a_preference_are_cut_and_its_prompt_is_not():
    (cut,) = admit(preference(3, 4, 1), Limits(5, 2, "truncate")).samples
    assert [len(part) for part in (cut.prompt_ids, cut.chosen_ids, cut.rejected_ids)] == [3, 2, 1]
    assert admit(preference(5, 4, 1), Limits(5, 2, "truncate")).reason == "no supervised token left after cutting"
