"""The known word closest to a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 100
"""Characters of a word that can be a mistyped one; comparing takes the square of its length."""


def nearest(word: str, choices: Iterable[str], likeness: float = 0.6) -> str | None:
    """Return the choice most like ``word``, capitals aside, or None when nothing is alike: below ``likeness`` of 1.

    >>> nearest("learing_rate", ["learning_rate", "lora_r"])
    'learning_rate'
    """
    if len(word) > LONGEST:
        return None
    known = {choice.lower(): choice for choice in choices}
    for cutoff in (max(0.8, likeness), likeness):
        found = difflib.get_close_matches(word.lower(), known, n=1, cutoff=cutoff)
        if found:
            return known[found[0]]
    return None


def suggestion(word: str, choices: Iterable[str]) -> str:
    """A sentence that names the nearest choice, or all of them when none is near.

    >>> suggestion("lor", ["lora", "qlora"])
    "did you mean 'lora'?"
    >>> suggestion("zzz", ["lora", "qlora"])
    'use one of: lora, qlora'
    """
    known = sorted(choices)
    close = nearest(word, known)
    return f"did you mean '{close}'?" if close else f"use one of: {', '.join(known)}"
