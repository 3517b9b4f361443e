"""Fast sorts give what NumPy's stable ones do."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from whet.data.sorting import by_length, by_random

SIZES = st.integers(0, 300)


@given(arrays(np.uint64, SIZES, elements=st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 9))))
def test_random_numbers_are_sorted_stably(keys: np.ndarray) -> None:
    assert np.array_equal(by_random(keys), np.argsort(keys, kind="stable"))


@given(arrays(np.int64, SIZES, elements=st.one_of(st.integers(0, 9), st.integers(0, 2**16), st.integers(0, 2**40))))
def test_lengths_are_sorted_stably(lengths: np.ndarray) -> None:
    assert np.array_equal(by_length(lengths), np.argsort(lengths, kind="stable"))
