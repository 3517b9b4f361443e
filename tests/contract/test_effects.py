"""Each key says what another value of it does to a run that is resumed."""

from __future__ import annotations

from collections import Counter

from whet.config.changes import NAMES
from whet.config.effects import Effect, classified, effect_of
from whet.config.schema import fields


def test_every_key_has_one_answer() -> None:
    counts = Counter(classified())
    assert sorted(counts) == sorted(fields()), "a new key goes into the table of whet/config/effects.py"
    assert set(counts.values()) == {1}


def test_a_key_without_an_answer_is_refused() -> None:
    assert effect_of("key_of_tomorrow").effect is Effect.CHANGES


def test_what_is_fixed_says_why() -> None:
    assert all(effect_of(key).why for key in fields() if effect_of(key).effect is Effect.FIXED)


def test_names_beside_the_keys_are_no_keys() -> None:
    assert not set(NAMES) & fields().keys()
