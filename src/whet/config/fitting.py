"""A value as its key wants it.

An unquoted word of YAML, a variable and an option are text whose type only the key knows: `no` is False for a switch
and text for a strategy, `1e-4` is a number for a rate and text for a revision. The schema's annotations decide.

- a switch takes true and false, and unquoted yes, no, on, off (booleans to YAML 1.1, for which many files are written);
- a number takes any spelling of one, quoted or not; a whole number also 1e3 and 4.0;
- text takes an unquoted word as it is written, whatever else YAML would make of it;
- an empty value is the same as no line at all: the default applies.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Secret

from whet.config.scalars import Scalar, as_number
from whet.config.schema import Section
from whet.config.source import Node

_YES = {"yes", "on"}
_NO = {"no", "off"}


@dataclass(frozen=True)
class Shape:
    """What a key accepts.

    Attributes:
        scalars: of str, int, float, bool.
        literals: the words it names.
        empty: None has a meaning of its own.
        items: annotation of a list's items, or None.
        pairs: annotations of a mapping's keys and values, or None.
        block: the section of a nested block, or None.
        anything: any value, typed by YAML alone.
    """

    scalars: frozenset[type] = frozenset()
    literals: tuple[Scalar, ...] = ()
    empty: bool = False
    items: Any = None
    pairs: tuple[Any, Any] | None = None
    block: type[Section] | None = None
    anything: bool = False

    def __or__(self, other: Shape) -> Shape:
        return Shape(
            self.scalars | other.scalars,
            self.literals + other.literals,
            self.empty or other.empty,
            self.items or other.items,
            self.pairs or other.pairs,
            self.block or other.block,
            self.anything or other.anything,
        )

    def __str__(self) -> str:
        """The shape in words, for an error.

        >>> print(shape_of(bool | Literal["auto"]))
        auto or true or false
        >>> print(shape_of(tuple[str, ...] | None))
        a list of texts
        """
        kinds = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
        words = [str(word) for word in self.literals]
        if float in self.scalars and int in self.scalars:
            kinds.pop(int)
        words += [kinds[kind] for kind in (int, float, str, bool) if kind in self.scalars and kind in kinds]
        if self.items is not None:
            plural = {str: "texts", int: "whole numbers", float: "numbers"}
            inner = shape_of(self.items)
            kind = next((plural[kind] for kind in plural if kind in inner.scalars), "mappings")
            words.append(f"a list of {kind}")
        if self.pairs is not None or self.block is not None or self.anything:
            words.append("a mapping")
        return " or ".join(words)


@cache
def shape_of(annotation: Any) -> Shape:
    """The shape that a schema annotation stands for."""
    if annotation is Any:
        return Shape(anything=True)
    if annotation is type(None):
        return Shape(empty=True)
    if annotation in (str, int, float, bool):
        return Shape(scalars=frozenset({annotation}))
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated or origin is Secret:
        return shape_of(arguments[0])
    if origin in (Union, types.UnionType):
        whole = Shape()
        for argument in arguments:
            whole = whole | shape_of(argument)
        return whole
    if origin is Literal:
        return Shape(literals=arguments)
    if origin is tuple:
        return Shape(items=arguments[0])
    if origin is dict:
        return Shape(pairs=(arguments[0], arguments[1]))
    assert isinstance(annotation, type), annotation
    assert issubclass(annotation, Section), annotation
    return Shape(block=annotation)


def fit(node: Node, annotation: Any) -> Any:
    """The node's value as plain Python of the type its key wants, where it can be; otherwise as YAML types it."""
    shape = shape_of(annotation)
    entries, items = node.entries, node.items
    if items is not None:
        if shape.items is not None:
            return tuple(fit(item, shape.items) for item in items)
        return [item.raw() for item in items]
    if entries is not None:
        return _fit_mapping(node, entries, shape)
    assert not isinstance(node.value, Mapping | tuple)
    return _fit_scalar(node.value, node.plain, shape)


def _takes_empty(annotation: Any) -> bool:
    return shape_of(annotation).empty


def _fit_mapping(node: Node, entries: Mapping[str, Node], shape: Shape) -> Any:
    if shape.block is not None:
        fields = shape.block.model_fields
        fitted = {
            name: fit(entry, fields[name].annotation) if name in fields else entry.raw()
            for name, entry in entries.items()
        }
        return {
            name: value
            for name, value in fitted.items()
            if value is not None or name not in fields or _takes_empty(fields[name].annotation)
        }
    if shape.pairs is not None:
        keys = shape_of(shape.pairs[0])
        return {_fit_scalar(entry.key, name, keys): fit(entry, shape.pairs[1]) for name, entry in entries.items()}
    return node.raw()


def _fit_scalar(value: Scalar, plain: str | None, shape: Shape) -> Scalar:
    if value is None or shape.anything:
        return value
    if plain is None:
        return _fit_quoted(value, shape)
    for literal in shape.literals:
        if (literal == value and type(literal) is type(value)) or literal == plain:
            return literal
    if type(value) in shape.scalars:
        return value
    if isinstance(value, float) and value.is_integer() and int in shape.scalars:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and float in shape.scalars:
        return float(value)
    if bool in shape.scalars and str not in shape.scalars and plain.lower() in _YES | _NO:
        return plain.lower() in _YES
    if str in shape.scalars:
        return plain
    return _spelt_number(value, shape)


def _fit_quoted(value: Scalar, shape: Shape) -> Scalar:
    return value if str in shape.scalars or value in shape.literals else _spelt_number(value, shape)


def _spelt_number(value: Scalar, shape: Shape) -> Scalar:
    if not isinstance(value, str) or not shape.scalars & {int, float}:
        return value
    number = as_number(value)
    if number is None:
        return value
    if isinstance(number, float) and float not in shape.scalars:
        return int(number) if number.is_integer() else value
    return number if int in shape.scalars else float(number)
