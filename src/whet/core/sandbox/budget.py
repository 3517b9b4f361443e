"""What one render of a chat template may take, and what it has taken: steps, time, characters, items."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from whet.core.errors import DataError, Problem


@dataclass(frozen=True, slots=True)
class Limits:
    """What one render of a template may take.

    A conversation of a million tokens has about 5 million characters; the template of a large model takes about 30
    steps for each of its messages.

    Attributes:
        steps: turns of loops and calls of macros; a string of 128 characters that is made or searched counts as one.
        seconds: of the processor, for what takes long in one step. (A process may be stopped, or starved, for a while.)
        characters: of one string, the output included.
        made: of all strings that are made on the way.
        items: of one list or mapping, those inside it included.
        text: characters of the template itself.
    """

    steps: int = 1_000_000
    seconds: float = 20.0
    characters: int = 16_000_000
    made: int = 512_000_000
    items: int = 1_000_000
    text: int = 250_000


LIMITS = Limits()


class TooLarge(TemplateError):
    """A template, with this conversation, makes something that is too large. The row is at fault, or the template."""


class TooSlow(DataError):
    """A template takes too many steps or too long. It would for the next row as well, so nothing goes on."""


FIX = "use another chat_template, or correct this one: it does this much for one conversation"


class Spent(threading.local):
    """What the render of this thread has taken."""

    left = 0
    """Steps until the clock is read."""
    steps = 0
    made = 0
    items = 0
    deadline = float("inf")
    weights: Mapping[int, tuple[Any, int]] = {}


spent = Spent()

_CLOCK = 256
"""Steps between two looks at the clock."""

LARGE = 4096
"""Characters from which working on a string is counted."""

_WORK = 7
"""A string of ``2**7`` characters counts as one step."""

length_of = str.__len__
"""A traced string would be told that it was asked by ``len``."""


def begin() -> None:
    """A render, or the compilation of a template, begins in this thread."""
    spent.steps = spent.made = spent.items = 0
    spent.left = _CLOCK
    spent.weights = {}
    spent.deadline = time.thread_time() + LIMITS.seconds


def count() -> None:
    """A step is taken."""
    spent.left -= 1
    if spent.left < 0:
        look_at_the_clock()


def look_at_the_clock() -> None:
    """Raises TooSlow where the steps or the time of this render are used up."""
    spent.steps += _CLOCK - spent.left
    spent.left = _CLOCK
    if spent.steps > LIMITS.steps:
        raise TooSlow(Problem("chat template", f"it takes more than {LIMITS.steps:,} steps", FIX, "chat_template"))
    if time.thread_time() > spent.deadline:
        found = f"it takes longer than {LIMITS.seconds:g} seconds of a processor"
        raise TooSlow(Problem("chat template", found, FIX, "chat_template"))


def count_work(characters: int) -> None:
    """Characters are looked at, or made: steps, by their number. Raises TooSlow."""
    spent.left -= characters >> _WORK
    if spent.left < 0:
        look_at_the_clock()


def count_made(characters: int) -> None:
    """A string was made. Raises TooLarge where it is too long, or all of them are."""
    if characters > LIMITS.characters:
        raise TooLarge(too_long(characters))
    spent.made += characters
    if spent.made > LIMITS.made:
        raise TooLarge(f"it makes strings of more than {LIMITS.made:,} characters in all")
    count_work(characters)


def too_long(characters: int) -> str:
    """What to say of a text."""
    return f"it makes a text of {characters:,} characters, more than {LIMITS.characters:,}"


def weigh_new(value: list[Any] | tuple[Any, ...] | dict[Any, Any]) -> None:
    """A list or mapping was made: what is in it, all the way down, is counted.

    Raises:
        TooLarge: it is too much.
    """
    if not isinstance(spent.weights, dict):
        return
    spent.items += len(value)
    if spent.items > 5 * LIMITS.items:
        raise TooLarge(f"it makes lists of more than {5 * LIMITS.items:,} items in all")
    count_work(len(value) << 3)
    _weight(value, spent.weights)


def _weight(value: Any, weights: dict[int, tuple[Any, int]]) -> int:
    """How much is written out when a value is; what was weighed before is remembered, and so stays alive."""
    if isinstance(value, str):
        return 1 + (length_of(value) >> 4)
    if not isinstance(value, list | tuple | dict):
        return 1
    known = weights.get(id(value))
    if known is not None:
        return known[1]
    inside = value.values() if isinstance(value, dict) else value
    total = 1 + len(value) + sum(_weight(item, weights) for item in inside)
    if total > LIMITS.items:
        raise TooLarge(f"it makes a list or mapping of more than {LIMITS.items:,} items")
    weights[id(value)] = (value, total)
    return total
