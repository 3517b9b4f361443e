"""Strategies that draw encoded samples of every kind."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from whet.data.samples import (
    KINDS,
    Encoded,
    EncodedPreference,
    EncodedPrompt,
    EncodedSample,
    EncodedStepwise,
    EncodedUnpaired,
    Kind,
)

#: Few ids and short lengths, so that equal samples are drawn often.
ids = st.lists(st.integers(0, 3), max_size=12).map(lambda values: np.array(values, dtype=np.int32))

columns: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.sampled_from(["answer", "level", "ü"]),
    st.one_of(st.text(max_size=3), st.integers(-3, 3), st.none(), st.lists(st.booleans(), max_size=2)),
    max_size=3,
)


@st.composite
def _flagged(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    numbers = draw(ids)
    flags = [
        np.array(draw(st.lists(st.booleans(), min_size=len(numbers), max_size=len(numbers))), dtype=np.bool_)
        for _ in range(2)
    ]
    return numbers, flags[0], flags[1]


SAMPLES: dict[Kind, st.SearchStrategy[EncodedSample]] = {
    "tokens": _flagged().map(lambda drawn: Encoded(*drawn[:2])),
    "preference": st.builds(EncodedPreference, ids, ids, ids),
    "unpaired": st.builds(EncodedUnpaired, ids, ids, st.booleans()),
    "stepwise": _flagged().map(lambda drawn: EncodedStepwise(drawn[0], drawn[1], drawn[1] & drawn[2])),
    "prompts": st.builds(EncodedPrompt, ids, columns),
}

kinds: st.SearchStrategy[Kind] = st.sampled_from(sorted(KINDS))


def content(sample: EncodedSample) -> tuple[Any, ...]:
    """A sample as a value that can be compared."""
    arrays = tuple(tuple(getattr(sample, name).tolist()) for name in KINDS[_kind(sample)][1])
    if isinstance(sample, EncodedUnpaired):
        return (*arrays, sample.label)
    if isinstance(sample, EncodedPrompt):
        return (*arrays, repr(sorted(sample.columns.items(), key=lambda pair: pair[0])))
    return arrays


def _kind(sample: EncodedSample) -> Kind:
    return next(kind for kind, (made, _) in KINDS.items() if type(sample) is made)
