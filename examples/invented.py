"""Values that nobody has written before: names, places, codes, numbers, dates.

Both the base model's corpus and the quickstart's task draw from here, so that a model that is to write down a value
has to copy it from its input; it cannot have learnt it by heart. Standard library only; everything follows from a seed.
"""

# ruff: noqa: SIM905 - syllables are easier to read and to add to as words than as quoted lists

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field

_ONSETS = (*"b d f g h j k l m n p r s t v z".split(), *"br ch dr fl gr kl pr sh sk sl st th tr w".split())
_VOWELS = "a e i o u a e i o ai ei ou".split()
_CODAS = (*"n r l s m k t nd rk".split(), *[""] * 9)
NUM_SYLLABLES = 400
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


def _syllables() -> tuple[str, ...]:
    """The inventory, about a third of what can be pronounced: few enough for each to become one token."""
    possible = sorted({onset + vowel + coda for onset in _ONSETS for vowel in _VOWELS for coda in _CODAS})
    return tuple(random.Random(NUM_SYLLABLES).sample(possible, NUM_SYLLABLES))


SYLLABLES = _syllables()
_VALUES = re.compile(r"[A-Z]{2}-\d{4}|[A-Za-z]+|\d+")


def values_in(text: str) -> set[str]:
    """The words, whole numbers and order codes of a text: what "appears verbatim" means in this folder."""
    return set(_VALUES.findall(text))


@dataclass
class Inventor:
    """Draws invented values, none of which is in ``avoid``.

    Attributes:
        rng: where the randomness comes from.
        avoid: words, numbers and codes that must never be drawn (the held-out ones).
    """

    rng: random.Random
    avoid: frozenset[str] = field(default_factory=frozenset)

    def stem(self, syllables: int | None = None) -> str:
        """A pronounceable lower-case word of two or three syllables, such as ``tavork``."""
        count = syllables or self.rng.choices((2, 3), (3, 1))[0]
        return "".join(self.rng.choices(SYLLABLES, k=count))

    def word(self, syllables: int | None = None) -> str:
        """A capitalised stem: a given name, a family name, a place."""
        while True:
            word = self.stem(syllables).capitalize()
            if word not in self.avoid:
                return word

    def person(self) -> str:
        """A given and a family name."""
        return f"{self.word()} {self.word()}"

    def number(self, low: int = 1, high: int = 99_999) -> int:
        """A whole number with each count of digits about equally likely."""
        while True:
            digits = self.rng.randint(len(str(low)), len(str(high)))
            number = self.rng.randint(max(low, 10 ** (digits - 1)), min(high, 10**digits - 1))
            if str(number) not in self.avoid:
                return number

    def code(self) -> str:
        """An order code such as ``KX-4821``."""
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        while True:
            code = f"{self.rng.choice(letters)}{self.rng.choice(letters)}-{self.rng.randint(0, 9999):04d}"
            if code not in self.avoid:
                return code

    def date(self) -> tuple[int, int, int]:
        """Year, month and day of a date that every calendar has."""
        return self.rng.randint(1950, 2049), self.rng.randint(1, 12), self.rng.randint(1, 28)
