"""What a call of a template would make, asked before it makes it, where its size can be known."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from typing import Any

from whet.core.sandbox import budget
from whet.core.sandbox.budget import LARGE, TooLarge, count_made, count_work, length_of, too_long, weigh_new

# Tuples: a union of types takes twice as long to be asked, and these are asked at each call of a template.
_CONTAINERS = (list, tuple, dict)


def sized(value: Any) -> Any:
    """A value that was just made; a string or container of it is small enough."""
    if isinstance(value, str):
        if length_of(value) > LARGE:
            count_made(length_of(value))
    elif isinstance(value, _CONTAINERS):
        weigh_new(value)
    return value


_WIDENING = frozenset({"center", "ljust", "rjust", "zfill", "to_bytes"})
_GROWING = _WIDENING | {"replace", "join", "expandtabs", "translate"}
"""Methods that make more than they are given."""


def check_method(owner: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """A method of a string or number is called; returns the arguments, an iterator among them read.

    Raises:
        TooLarge: it would make too much.
    """
    if name not in _GROWING and (not isinstance(owner, str) or length_of(owner) <= LARGE):
        return args
    if name in _WIDENING:
        _check_numbers((*args, *kwargs.values()))
    if not isinstance(owner, str):
        return args
    length = length_of(owner)
    if length > LARGE:
        count_work(length)
    if name == "replace" and len(args) >= 2:
        _check_replaced(owner, args[0], args[1])
    elif name == "join" and args:
        items = args[0] if isinstance(args[0], list | tuple) else list(args[0])
        _check_joined(owner, items)
        return (items, *args[1:])
    elif name in ("split", "rsplit", "splitlines"):
        separator = args[0] if args and isinstance(args[0], str) and args[0] else None
        pieces = str.count(owner, separator) if separator and name != "splitlines" else length // 4
        if pieces >= budget.LIMITS.items:
            raise TooLarge(f"it splits a text of {length:,} characters into {pieces:,} pieces or more")
    elif name == "expandtabs":
        size = next((value for value in (*args, *kwargs.values()) if isinstance(value, int)), 8)
        _check_total(length + str.count(owner, "\t") * max(size, 0))
    elif name == "translate" and args and isinstance(args[0], Mapping):
        longest = max((length_of(value) for value in args[0].values() if isinstance(value, str)), default=1)
        _check_total(length * longest)
    return args


_SLOW = {"urlize": 1, "striptags": 1, "wordwrap": 1, "xmlattr": 1, "title": 16, "indent": 16, "truncate": 16}
"""Filters that take more than a moment for each character -> how many times 64,000 they may have."""
_LISTING = frozenset({"list", "sort", "unique", "batch", "slice", "map", "select", "reject", "dictsort", "groupby"})


def check_filter(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, skip: int) -> tuple[Any, ...]:
    """A filter is called; returns the arguments, an iterator that is joined read.

    Args:
        skip: arguments that Jinja puts first (the context).

    Raises:
        TooLarge: it would make too much.
    """
    value, more = (args[skip] if len(args) > skip else None), (*args[skip + 1 :], *kwargs.values())
    _check_numbers(more)
    if isinstance(value, str):
        length = length_of(value)
        if length > LARGE:
            count_work(length)
        if name in _SLOW and length > 64_000 * _SLOW[name]:
            raise TooLarge(f"it gives the filter {name} a text of {length:,} characters")
        if name in _LISTING and length > budget.LIMITS.items:
            raise TooLarge(f"it makes a list of the {length:,} characters of a text")
    if name in _SLOW or name in ("tojson", "batch", "slice", "pprint"):
        for item in more:
            if (isinstance(item, str) and length_of(item) > 1000) or (isinstance(item, int) and abs(item) > 10_000):
                raise TooLarge(f"it gives the filter {name} an argument that is too large")
    if name == "replace" and len(more) >= 2:
        _check_replaced(str(value), more[0], more[1])
    elif name == "format" and isinstance(value, str):
        _check_percent(value, more)
    elif name == "indent" and isinstance(value, str):
        width = next((length_of(each) if isinstance(each, str) else each for each in more), 4)
        _check_total(length_of(value) + (str.count(value, "\n") + 1) * max(int(width), 0))
    elif name == "join" and value is not None and not isinstance(value, str):
        items = value if isinstance(value, list | tuple) else list(value)
        separator = next((each for each in more if isinstance(each, str)), "")
        _check_joined(separator, items)
        return (*args[:skip], items, *args[skip + 1 :])
    elif name == "sum" and any(isinstance(each, list | tuple) for each in more):
        items = value if isinstance(value, list | tuple) else list(value or ())
        if len(items) > 2000:
            raise TooLarge(f"it adds {len(items):,} lists to one another")
        return (*args[:skip], items, *args[skip + 1 :])
    return args


def _check_numbers(values: tuple[Any, ...]) -> None:
    for value in values:
        if isinstance(value, int) and value > budget.LIMITS.characters:
            raise TooLarge(f"it asks for a width of {_short(value)}")


def _short(number: int) -> str:
    return str(number) if number.bit_length() < 100 else f"2 to the power of {number.bit_length() - 1:,}"


def _check_total(characters: int) -> None:
    if characters > budget.LIMITS.characters:
        raise TooLarge(too_long(characters))


def _check_replaced(text: str, old: Any, new: Any) -> None:
    if isinstance(old, str) and isinstance(new, str) and length_of(new) > length_of(old):
        _check_total(length_of(text) + str.count(text, old) * (length_of(new) - length_of(old)))


def _check_joined(separator: str, items: list[Any] | tuple[Any, ...]) -> None:
    if len(items) > budget.LIMITS.items:
        raise TooLarge(f"it joins {len(items):,} texts")
    texts = sum(length_of(item) for item in items if isinstance(item, str))
    _check_total(texts + length_of(separator) * max(len(items) - 1, 0))


_NUMBERS = re.compile(r"\d+")


def check_width(spec: str) -> None:
    """The format of a value names no width that is too large. Raises TooLarge."""
    if length_of(spec) > 1000 or any(len(number) > 7 for number in _NUMBERS.findall(spec)):
        raise TooLarge(f"it asks for the width '{spec[:20]}'")


_PERCENT = re.compile(r"%[^a-zA-Z%]*")


def _check_percent(template: str, values: Any) -> None:
    given = values if isinstance(values, tuple) else (values,)
    places = _PERCENT.findall(template)
    for place in places:
        check_width(place)
        if "*" in place:
            _check_numbers(given)
    flat = [item for value in given for item in (value.values() if isinstance(value, Mapping) else (value,))]
    longest = max((length_of(value) for value in flat if isinstance(value, str)), default=0)
    _check_total(length_of(template) + len(places) * longest)


def modulo(left: Any, right: Any) -> Any:
    """``left % right``. Raises TooLarge."""
    check_modulo(left, right)
    return sized(left % right)


def check_modulo(left: Any, right: Any) -> None:
    """``left % right`` formats no text that is too long. Raises TooLarge."""
    if isinstance(left, str):
        _check_percent(left, right)


def times(left: Any, right: Any) -> Any:
    """``left * right``. Raises TooLarge."""
    for one, other in ((left, right), (right, left)):
        if isinstance(one, str | bytes | list | tuple) and isinstance(other, int):
            length = length_of(one) if isinstance(one, str) else len(one)
            limit = budget.LIMITS.characters if isinstance(one, str | bytes) else budget.LIMITS.items
            if length * other > limit:
                raise TooLarge(f"it repeats something to a length of {_short(length * other)}, more than {limit:,}")
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > 100_000:
        raise TooLarge("it computes a number of more than 100,000 bits")
    return sized(operator.mul(left, right))


def to_the_power(left: Any, right: Any) -> Any:
    """``left ** right``. Raises TooLarge."""
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > 100_000:
        raise TooLarge("it computes a number of more than 100,000 bits")
    return left**right
