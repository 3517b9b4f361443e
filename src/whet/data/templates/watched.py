"""Strings that write down what a template asks about them.

A chat template's output depends on a message in two ways: it writes the message's text, and it may decide by it
(``{% if '</think>' in content %}``). `Watched` strings record every decision as a `Guard`. Two conversations of the
same shape that answer all guards alike therefore take the same way through the template, and its output differs in the
written texts alone. `whet.data.templates.skeleton` builds on that.

Only what is surely followed is allowed: writing, stripping, and a few tests with constant arguments. Everything else
that reads a character marks the watch as lost, and nothing is concluded from that render.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from whet.data.templates.traced import NO_OFFSET, Cuts, Run, Source, Traced


class Guard(NamedTuple):
    """A question that a template asked about a field of a message, and its answer.

    Attributes:
        source: the message and the field.
        cuts: how the text that was asked about was cut out of the field.
        test: a key of `TESTS`.
        argument: the constant it was asked with.
        answer: what it said.
    """

    source: Source
    cuts: tuple[tuple[str, str | None], ...]
    test: str
    argument: Any
    answer: bool


@dataclass
class Watch:
    """What one render asked.

    Attributes:
        guards: in the order they were asked.
        lost: the first operation that could not be followed; None if there was none.
    """

    guards: list[Guard] = field(default_factory=list)
    lost: str | None = None


TESTS: Mapping[str, Callable[[str, Any], bool]] = {
    "filled": lambda text, _: text != "",
    "contains": lambda text, part: part in text,
    "equals": lambda text, other: text == other,
    "begins": lambda text, start: text.startswith(start),
    "ends": lambda text, end: text.endswith(end),
    "alike": lambda text, cuts: cut(text, cuts[0]) == cut(text, cuts[1]),
}


def cut(text: str, cuts: tuple[tuple[str, str | None], ...]) -> str:
    """The text after the cuts, each the name of a method of ``str`` and its argument.

    >>> cut("  a b ", (("rstrip", None), ("lstrip", " ")))
    'a b'
    """
    for name, argument in cuts:
        text = getattr(text, name)(argument)
    return text


class Watched(Traced):
    """A traced string that writes down what is asked about it."""

    __slots__ = ("watch",)
    watch: Watch

    @classmethod
    def of(cls, text: str, source: Source, watch: Watch) -> Watched:
        """A message's field, whole."""
        return cls._made(text, (Run(0, len(text), source, 0),), watch)

    @classmethod
    def _made(cls, text: str, runs: tuple[Run, ...], watch: Watch) -> Watched:
        made = str.__new__(cls, text)
        made.runs = runs
        made.watch = watch
        return made

    def _with(self, text: str, runs: tuple[Run, ...]) -> Watched:
        return self._made(text, runs, self.watch)

    def lose(self) -> None:
        self._lost("a rewriting")

    def _lost(self, operation: str) -> None:
        self.watch.lost = self.watch.lost or operation

    def _cuts(self) -> tuple[Source, Cuts]:
        """The field this string is a cut of; no cuts (None) where it is not of one field alone."""
        if len(self.runs) == 1:
            run = self.runs[0]
            if run.begin == 0 and run.end == str.__len__(self):
                return run.source, run.cuts
        return self.runs[0].source, None

    def _asked(self, test: str, argument: Any) -> bool:
        answer = TESTS[test](str.__getitem__(self, slice(None)), argument)
        source, cuts = self._cuts()
        constant = type(argument) is str or argument is None
        if isinstance(argument, tuple):
            constant = all(type(item) is str for item in argument)
        if cuts is None or not constant:
            self._lost(test)
        else:
            self.watch.guards.append(Guard(source, cuts, test, argument, answer))
        return answer

    # -- followed ----------------------------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        return self._asked("filled", None)

    def __contains__(self, part: object) -> bool:
        if not isinstance(part, str):
            raise TypeError(f"'in <string>' requires string as left operand, not {type(part).__name__}")
        return self._asked("contains", part)

    def __eq__(self, other: object) -> bool:
        return self._asked("equals", other) if isinstance(other, str) else False

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]  # a template cannot look a message's text up unseen

    def startswith(self, prefix: str | tuple[str, ...], *bounds: Any) -> bool:
        if bounds:
            self._lost("startswith")
            return str.startswith(self, prefix, *bounds)
        return self._asked("begins", prefix)

    def endswith(self, suffix: str | tuple[str, ...], *bounds: Any) -> bool:
        if bounds:
            self._lost("endswith")
            return str.endswith(self, suffix, *bounds)
        return self._asked("ends", suffix)

    def strip(self, chars: str | None = None) -> str:
        return self._stripped("strip", chars)

    def lstrip(self, chars: str | None = None) -> str:
        return self._stripped("lstrip", chars)

    def rstrip(self, chars: str | None = None) -> str:
        return self._stripped("rstrip", chars)

    def _stripped(self, name: str, chars: str | None) -> str:
        text = getattr(str, name)(self, chars)
        source, cuts = self._cuts()
        if cuts is None or not (chars is None or type(chars) is str):
            self._lost(name)
            return getattr(Traced, name)(self, chars)  # type: ignore[no-any-return]
        skipped = 0 if name == "rstrip" else str.__len__(self) - len(str.lstrip(self, chars))
        before = self.runs[0].offset
        offset = NO_OFFSET if before < 0 or not text else before + skipped
        return self._with(text, (Run(0, len(text), source, offset, (*cuts, (name, chars))),))

    @property
    def __html__(self) -> Any:
        # markupsafe asks for it before it reads the characters to escape them; a plain string has none.
        self._lost("escaping")
        raise AttributeError("__html__")

    def __str__(self) -> str:
        return self

    def __iter__(self) -> Iterator[str]:
        # A generator: Jinja's test ``iterable`` only asks for it, and nothing is lost before a character is taken.
        self._lost("iteration")
        yield from Traced.__iter__(self)


def _losing(name: str) -> Callable[..., Any]:
    original = getattr(Traced, name, None) or getattr(str, name)

    def method(self: Watched, *args: Any, **kwargs: Any) -> Any:
        self._lost(name)
        return original(self, *args, **kwargs)

    method.__name__ = name
    return method


#: Methods that writing needs, and those that are not about the characters.
_FOLLOWED = frozenset(vars(Watched)) | frozenset(
    {
        *("__add__", "__radd__", "__class__", "__new__", "__init__", "__init_subclass__", "__subclasshook__"),
        *("__getattribute__", "__setattr__", "__delattr__", "__dir__", "__doc__", "__getnewargs__"),
        *("__reduce__", "__reduce_ex__", "__getstate__", "__sizeof__", "maketrans", "_part"),
    }
)

for _name in {name for kind in (str, Traced) for name in vars(kind) if callable(getattr(kind, name))} - _FOLLOWED:
    setattr(Watched, _name, _losing(_name))

for _name, _number in (("__int__", int), ("__float__", float)):
    # str has neither: the interpreter would read the characters without asking.
    def _to_number(self: Watched, _kind: Callable[[str], Any] = _number) -> Any:
        self._lost("a number")
        return _kind(str.__getitem__(self, slice(None)))

    setattr(Watched, _name, _to_number)
