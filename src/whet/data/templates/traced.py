"""Strings that remember where their characters came from.

A chat template is a program; the only sure way to know which characters of its output are a message's is to let the
message's strings carry that knowledge through the program. ``Traced`` is a ``str`` in every respect (equality, hash,
``isinstance``, every method's text) that also holds *runs*: ranges of its characters with the message and field they
derive from. Each method takes its text from ``str`` itself and only adds the runs, so tracing cannot change a render.

A run of no characters is kept on purpose: it marks where an empty message was written.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, SupportsIndex

#: Message numbers that are no message: the tools of the conversation, a text made of several messages,
#: and the two ends of a ``{% generation %}`` block.
TOOLS, MIXED, GENERATION_BEGIN, GENERATION_END = -1, -2, -3, -4

#: Offset of a run whose characters do not correspond one to one with the field's (JSON, replaced text).
NO_OFFSET = -1


class Source(NamedTuple):
    """The message (its number in the conversation) and the field of it that characters derive from."""

    message: int
    field: str


#: How a string was cut out of a field: ``(("strip", None),)``; empty: not at all; None: in another way.
Cuts = tuple[tuple[str, str | None], ...] | None


class Run(NamedTuple):
    """Characters ``[begin, end)`` derive from ``source``; they are its characters from ``offset`` on.

    ``offset`` is ``NO_OFFSET`` where the text was rewritten on the way. ``cuts`` is kept by
    `whet.data.templates.watched` alone; elsewhere a part of a field has None.
    """

    begin: int
    end: int
    source: Source
    offset: int
    cuts: Cuts = ()


class Traced(str):
    """A string with runs, in order of their beginning and without overlap.

    >>> content = trace("  hello ", Source(1, "content"))
    >>> text = "<a>" + content.strip() + "</a>"
    >>> text, text.runs[0].begin, text.runs[0].end, text.runs[0].offset
    ('<a>hello</a>', 3, 8, 2)
    """

    __slots__ = ("runs",)
    runs: tuple[Run, ...]

    def __new__(cls, text: object = "", runs: tuple[Run, ...] | None = None) -> Traced:
        made = super().__new__(cls, text)
        made.runs = runs if runs is not None else getattr(text, "runs", ())
        return made

    def _with(self, text: str, runs: tuple[Run, ...]) -> Traced:
        """Another string, of the kind that this one is."""
        return Traced(text, runs)

    def lose(self) -> None:
        """Called when something is made of this string, or decided by it, in a way that its runs cannot follow."""

    def __contains__(self, part: object) -> bool:
        if isinstance(part, Traced):
            part.lose()
        return str.__contains__(self, part)  # type: ignore[operator]  # raises TypeError as str does

    # -- one string out of several ------------------------------------------------------------------------------

    def __str__(self) -> str:
        return self

    def __format__(self, spec: str) -> str:
        return self if not spec else derive(str.__format__(self, spec), self)

    def __add__(self, other: str) -> str:
        return concat((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return concat((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, count: SupportsIndex) -> str:
        return concat([self] * int(count))

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        return percent(self, values)

    def __rmod__(self, template: str) -> str:
        return percent(template, self) if isinstance(template, str) else NotImplemented

    def join(self, parts: Iterable[str]) -> str:
        pieces: list[str] = []
        for part in parts:
            if not isinstance(part, str):
                raise TypeError(f"sequence item {len(pieces) // 2}: expected str instance, {type(part).__name__} found")
            pieces += (part, self)
        return concat(pieces[:-1])

    def format(self, *args: Any, **kwargs: Any) -> str:
        return TracedFormatter().vformat(self, args, kwargs)

    def format_map(self, mapping: Mapping[str, Any]) -> str:  # type: ignore[override]  # typeshed's is a private protocol
        return TracedFormatter().vformat(self, (), mapping)

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:
        text = str.replace(self, old, new, count)
        if not old:
            return derive(text, self, new)
        pieces: list[str] = []
        begin, left = 0, int(count)
        while left and (found := self.find(old, begin)) >= 0:
            end = found + len(old)
            written = new if sources_of(new) else derive(str.__str__(new), self._part(found, end))
            pieces += (self._part(begin, found), written)
            begin, left = end, left - 1
        return concat([*pieces, self._part(begin, len(self))])

    # -- parts of it --------------------------------------------------------------------------------------------

    def _part(self, begin: int, end: int) -> Traced:
        """``self[begin:end]`` for ``0 <= begin <= end <= len(self)``."""
        runs = []
        for run in self.runs:
            first, last = max(run.begin, begin), min(run.end, end)
            if first < last or (first == last and run.begin == run.end):
                offset = run.offset if run.offset < 0 else run.offset + first - run.begin
                runs.append(Run(first - begin, last - begin, run.source, offset, None))
        if begin == end and not runs and self.runs:
            runs.append(Run(0, 0, self.runs[0].source, NO_OFFSET, None))
        return Traced(str.__getitem__(self, slice(begin, end)), tuple(runs))

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        if isinstance(key, slice):
            begin, end, step = key.indices(len(self))
            if step == 1:
                return self._part(begin, max(begin, end))
            return concat([self._part(at, at + 1) for at in range(begin, end, step)])
        at = range(len(self))[key]  # raises IndexError as str does
        return self._part(at, at + 1)

    def __iter__(self) -> Iterator[str]:
        return (self._part(at, at + 1) for at in range(len(self)))

    def strip(self, chars: str | None = None) -> str:
        begin = len(self) - len(str.lstrip(self, chars))
        return self._part(begin, max(begin, len(str.rstrip(self, chars))))

    def lstrip(self, chars: str | None = None) -> str:
        return self._part(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None) -> str:
        return self._part(0, len(str.rstrip(self, chars)))

    def removeprefix(self, prefix: str) -> str:
        return self._part(len(prefix) if self.startswith(prefix) else 0, len(self))

    def removesuffix(self, suffix: str) -> str:
        return self._part(0, len(self) - len(suffix) if suffix and self.endswith(suffix) else len(self))

    def _located(self, pieces: Iterable[str]) -> list[str]:
        """The same pieces, traced; each is found after the one before it."""
        found: list[str] = []
        at = 0
        for piece in pieces:
            at = self.find(piece, at)
            found.append(self._part(at, at + len(piece)))
            at += len(piece)
        return found

    def _spaced(self, pieces: Iterable[str], gap: int) -> list[str]:
        """The same pieces, traced; ``gap`` characters lie between neighbours."""
        found: list[str] = []
        at = 0
        for piece in pieces:
            found.append(self._part(at, at + len(piece)))
            at += len(piece) + gap
        return found

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        pieces = str.split(self, sep, maxsplit)
        return self._located(pieces) if sep is None else self._spaced(pieces, len(sep))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        pieces = str.rsplit(self, sep, maxsplit)
        return self._located(pieces) if sep is None else self._spaced(pieces, len(sep))

    def splitlines(self, keepends: bool = False) -> list[str]:
        lines = self._spaced(str.splitlines(self, True), 0)
        ends = (len(line) for line in str.splitlines(self, keepends))
        return [line[:end] for line, end in zip(lines, ends, strict=True)]

    def partition(self, sep: str) -> tuple[str, str, str]:
        first, middle, last = self._spaced(str.partition(self, sep), 0)
        return first, middle, last

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        first, middle, last = self._spaced(str.rpartition(self, sep), 0)
        return first, middle, last

    # -- the same characters, written otherwise -----------------------------------------------------------------

    def _rewritten(self, text: str) -> str:
        """``text`` is this string, character for character if the lengths agree."""
        return Traced(text, self.runs) if len(text) == len(self) else derive(text, self)

    def upper(self) -> str:
        return self._rewritten(str.upper(self))

    def lower(self) -> str:
        return self._rewritten(str.lower(self))

    def casefold(self) -> str:
        return self._rewritten(str.casefold(self))

    def title(self) -> str:
        return self._rewritten(str.title(self))

    def capitalize(self) -> str:
        return self._rewritten(str.capitalize(self))

    def swapcase(self) -> str:
        return self._rewritten(str.swapcase(self))

    def translate(self, table: Any) -> str:
        return self._rewritten(str.translate(self, table))

    def expandtabs(self, tabsize: SupportsIndex = 8) -> str:
        return self._rewritten(str.expandtabs(self, tabsize))

    def center(self, width: SupportsIndex, fillchar: str = " ") -> str:
        return self._rewritten(str.center(self, width, fillchar))

    def ljust(self, width: SupportsIndex, fillchar: str = " ") -> str:
        return self._rewritten(str.ljust(self, width, fillchar))

    def rjust(self, width: SupportsIndex, fillchar: str = " ") -> str:
        return self._rewritten(str.rjust(self, width, fillchar))

    def zfill(self, width: SupportsIndex) -> str:
        return self._rewritten(str.zfill(self, width))


def trace(value: Any, source: Source) -> Any:
    """The value with every string in it traced to ``source``; containers keep their types, None and numbers pass."""
    if isinstance(value, str):
        return Traced(value, (Run(0, len(value), source, 0),))
    if isinstance(value, Mapping):
        return {trace(key, source): trace(item, source) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([trace(item, source) for item in value])
    return value


def sources_of(value: Any) -> set[Source]:
    """Everything that the strings inside ``value`` derive from."""
    if isinstance(value, Traced):
        return {run.source for run in value.runs}
    if isinstance(value, Mapping):
        return {source for pair in value.items() for item in pair for source in sources_of(item)}
    if isinstance(value, list | tuple):
        return {source for item in value for source in sources_of(item)}
    return set()


def derive(text: str, *origins: Any) -> str:
    """``text``, marked as made from everything in ``origins``; unmarked when nothing in them is traced."""
    sources = sources_of(origins)
    if not sources:
        return text
    lose_all(origins)
    messages = {source.message for source in sources}
    if len(sources) == 1:
        (source,) = sources
    else:
        source = Source(messages.pop() if len(messages) == 1 else MIXED, "*")
    return Traced(text, (Run(0, len(text), source, NO_OFFSET, None),))


def lose_all(value: Any) -> None:
    """Tell every string inside ``value`` that something is made of it, or decided by it, that runs cannot follow."""
    if isinstance(value, Traced):
        value.lose()
    elif isinstance(value, Mapping):
        for pair in value.items():
            lose_all(pair)
    elif isinstance(value, list | tuple):
        for item in value:
            lose_all(item)


def concat(parts: Iterable[str]) -> str:
    """``"".join(parts)`` with the runs of every part."""
    pieces = parts if isinstance(parts, list | tuple) else list(parts)
    runs: list[Run] = []
    model: Traced | None = None
    at = 0
    for piece in pieces:
        if isinstance(piece, Traced):
            runs += [Run(begin + at, end + at, source, offset, cuts) for begin, end, source, offset, cuts in piece.runs]
            model = piece if model is None or type(model) is Traced else model
        at += str.__len__(piece)
    text = "".join(pieces)
    return model._with(text, tuple(runs)) if runs and model is not None else text


def text_of(value: object) -> str:
    """``str(value)``; the text of a container is marked as made from what is in it."""
    return value if isinstance(value, str) else derive(str(value), value)


# No key holds what opens another one: each place is then looked at once, whatever a template writes.
_PERCENT = re.compile(r"%(?:\((?P<key>[^()%]*)\))?[-#0 +]*\d*(?:\.\d+)?[hlL]?(?P<kind>[diouxXeEfFgGcrsa%])")


def percent(template: str, values: Any) -> str:
    """``template % values``, traced piece by piece where every specifier takes exactly one value."""
    plain = str.__mod__(template, values)
    remaining = iter(values if isinstance(values, tuple) else (values,))
    pieces: list[str] = []
    at = 0
    for match in _PERCENT.finditer(template):
        pieces.append(template[at : match.start()])
        at = match.end()
        if match["kind"] == "%":
            pieces.append("%")
            continue
        value = values[match["key"]] if match["key"] is not None else next(remaining, "")
        simple = match.group() == "%s" and isinstance(value, str)
        specifier = "%" + match.group().rpartition(")")[2] if match["key"] is not None else match.group()
        pieces.append(value if simple else derive(str.__mod__(specifier, (value,)), value))
    traced = concat([*pieces, template[at:]])
    return traced if str.__eq__(traced, plain) else derive(plain, template, values)


class TracedFormatter(string.Formatter):
    """``str.format`` whose result keeps the runs of its template and of the values put in."""

    def vformat(self, format_string: str, args: Any, kwargs: Any) -> str:
        plain = super().vformat(str.__str__(format_string), args, kwargs)
        fields = list(self.parse(format_string))
        if sources_of(format_string) or any("{" in (spec or "") for _, _, spec, _ in fields):
            return derive(plain, format_string, args, kwargs)
        pieces: list[str] = []
        position = 0
        for literal, name, spec, conversion in fields:
            pieces.append(literal)
            if name is None:
                continue
            if name == "" or name[0] in ".[":
                name, position = f"{position}{name}", position + 1
            value, _ = self.get_field(name, args, kwargs)
            written = self.convert_field(value, conversion)
            whole = isinstance(written, str) and not spec and not conversion
            pieces.append(written if whole else derive(self.format_field(written, spec or ""), value))
        traced = concat(pieces)
        return traced if str.__eq__(traced, plain) else derive(plain, args, kwargs)
