"""Jinja's sandbox with limits: a stranger's chat template ends, soon, and writes no more than memory holds.

Jinja's own sandbox keeps a template from what it must not touch, not from taking all time and all memory: loops in
loops, ``'a' * 10**10``, a list of lists of lists written out. Here each turn of a loop, each call of a macro and each
new string is counted, by calls that the compiler puts into the template's code. A clock is read now and then by the
same calls, so no thread, no signal and no other process is needed, and it works wherever a template is rendered.

What may be large is asked for its size before it is made, where the size can be known (``*``, ``center``, ``replace``,
formatting), and right after, where it is at most the sum of what was there already. Lists and mappings are weighed when
they are made, all that is in them included, so that nothing can be built of which writing it out takes for ever.

This is the one module of core that needs a package (jinja2): it is used by `whet.data`, for its own rendering, and by
`whet.model`, for transformers'.
"""

from __future__ import annotations

import functools
import operator
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import TemplateError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

from whet.core.errors import DataError, Problem


@dataclass(frozen=True, slots=True)
class Limits:
    """What one render of a template may take.

    A conversation of a million tokens has about 5 million characters; the template of a large model takes about 30
    steps for each of its messages.

    Attributes:
        steps: turns of loops and calls of macros; a string of 128 characters that is made or searched counts as one.
        seconds: of the clock, for what takes long in one step.
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


class TooLarge(TemplateError):
    """A template, with this conversation, makes something that is too large. The row is at fault, or the template."""


class TooSlow(DataError):
    """A template takes too many steps or too long. It would for the next row as well, so nothing goes on."""


FIX = "use another chat_template, or correct this one: it does this much for one conversation"


class _Spent(threading.local):
    """What the render of this thread has taken."""

    left = 0
    """Steps until the clock is read."""
    steps = 0
    made = 0
    items = 0
    deadline = float("inf")
    weights: Mapping[int, tuple[Any, int]] = {}


_spent = _Spent()

_CLOCK = 256
"""Steps between two looks at the clock."""
_LARGE = 4096
"""Characters from which working on a string is counted."""
_WORK = 7
"""A string of ``2**7`` characters counts as one step."""

# Tuples: a union of types takes twice as long to be asked, and these are asked at each call of a template.
_CONTAINERS = (list, tuple, dict)
_WITH_GROWING_METHODS = (str, int, bytes)

_length = str.__len__  # a traced string would be told that it was asked


class BoundedCode(CodeGenerator):
    """Compiles a template as Jinja does, with calls that count."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._branches: set[int] = set()
        self._terms: dict[int, int] = {}

    def blockvisit(self, nodes: Any, frame: Frame) -> None:
        """The body of a loop, a macro or a block begins with a count; a branch runs once for each of those."""
        if id(nodes) not in self._branches:
            self.writeline("environment.count()")
        super().blockvisit(nodes, frame)

    def visit_If(self, node: nodes.If, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor naming
        self._branches.update(id(body) for body in (node.body, node.else_, *(each.body for each in node.elif_)))
        super().visit_If(node, frame)

    def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor naming
        if node.test is not None:  # items that are passed over take steps too
            counted = nodes.EnvironmentAttribute("counted", lineno=node.lineno)
            node.test = nodes.And(counted, node.test, lineno=node.lineno).set_environment(self.environment)
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor naming
        self.write("environment.join_as_text((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Operand(self, node: nodes.Operand, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor naming
        if node.op not in ("in", "notin"):
            super().visit_Operand(node, frame)
            return
        self.write(f" {'in' if node.op == 'in' else 'not in'} environment.searched(")
        self.visit(node.expr, frame)
        self.write(")")

    def _counted(self, call: str, visit: Callable[[Any, Frame], None], node: Any, frame: Frame) -> None:
        self.write(f"environment.{call}(")
        visit(node, frame)
        self.write(")")

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor naming
        """Of ``a + b + c + ...`` the sum is sized, and every eighth on the way to it."""
        term = self._terms.get(id(node), 0)
        if isinstance(node.left, nodes.Add):
            self._terms[id(node.left)] = term + 1
        if term % 8:
            super().visit_Add(node, frame)
        else:
            self._counted("sized", super().visit_Add, node, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor naming
        self._counted("sized", super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor naming
        self._counted("sized", super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor naming
        if node.ctx == "load":
            self._counted("sized", super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)


class BoundedTemplate(jinja2.Template):
    """A template each of whose renders has a budget of its own."""

    environment: BoundedEnvironment

    def render(self, *args: Any, **kwargs: Any) -> str:
        self.environment.begin()
        return super().render(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Iterator[str]:
        self.environment.begin()
        yield from super().generate(*args, **kwargs)


def bounded_concat(parts: Any) -> str:
    """``"".join(parts)``, where that is not too long."""
    return "".join(checked_parts(parts))


def checked_parts(parts: Any) -> list[Any] | tuple[Any, ...]:
    """The parts of a string, as a list. Raises TooLarge where the string would be too long."""
    pieces: list[Any] | tuple[Any, ...] = parts if isinstance(parts, list | tuple) else list(parts)
    total = sum(map(_length, pieces))
    if total > _LARGE:
        _count_made(total)
    return pieces


class BoundedFormatter(SandboxedFormatter):
    """``str.format`` under the sandbox's rules, of bounded width."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        check_width(format_spec)
        written = super().format_field(value, format_spec)
        self.total = getattr(self, "total", 0) + _length(str(written))
        if self.total > LIMITS.characters:
            raise TooLarge(_too_long(self.total))
        return written


LIMITS = Limits()


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox; see the module."""

    code_generator_class = BoundedCode
    template_class = BoundedTemplate
    concat = staticmethod(bounded_concat)
    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.filters = _BoundedFilters(self.filters)
        self.globals.pop("lipsum", None)  # random words, as many as one likes
        self.binop_table = {**self.binop_table, "*": _times, "**": _to_the_power, "%": _modulo}

    # -- counting ----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A render, or the compilation of a template, begins in this thread."""
        _spent.steps = _spent.made = _spent.items = 0
        _spent.left = _CLOCK
        _spent.weights = {}
        _spent.deadline = time.monotonic() + LIMITS.seconds

    def count(self) -> None:
        """A step is taken."""
        _spent.left -= 1
        if _spent.left < 0:
            _look_at_the_clock()

    @property
    def counted(self) -> bool:
        """True, and a step is taken: for the tests of loops."""
        self.count()
        return True

    @staticmethod
    def sized(value: Any) -> Any:
        """A value that was just made; a string or container of it is small enough."""
        if isinstance(value, str):
            if _length(value) > _LARGE:
                _count_made(_length(value))
        elif isinstance(value, _CONTAINERS):
            weigh_new(value)
        return value

    @staticmethod
    def searched(value: Any) -> Any:
        """What stands on the right of ``in``."""
        if isinstance(value, str) and _length(value) > _LARGE:
            _count_work(_length(value))
        return value

    @staticmethod
    def join_as_text(parts: tuple[Any, ...]) -> str:
        """What Jinja's ``~`` makes of its operands."""
        return bounded_concat([part if isinstance(part, str) else str(part) for part in parts])

    # -- Jinja's seams -----------------------------------------------------------------------------------------------

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        self.begin()  # constant expressions are computed now
        return super()._generate(source, *args, **kwargs)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > LIMITS.text:
            found = f"the template has {len(source):,} characters, more than {LIMITS.text:,}"
            raise jinja2.TemplateSyntaxError(found, 1, name, filename)
        return super()._parse(source, name, filename)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """As the sandbox does; methods of strings and numbers are asked what they would make."""
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, _WITH_GROWING_METHODS):
            args = check_method(owner, __obj.__name__, args, kwargs)
        made = super().call(__context, __obj, *args, **kwargs)
        return made if made is True or made is False else __self.sized(made)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The sandbox's replacement of ``str.format`` and ``str.format_map``, of bounded width."""
        if super().wrap_str_format(value) is None:
            return None
        template: str = value.__self__

        @functools.wraps(value)
        def wrapper(*args: Any, **kwargs: Any) -> str:
            if value.__name__ == "format":
                return type(template)(BoundedFormatter(self).vformat(template, args, kwargs))
            if kwargs or len(args) != 1:
                raise TypeError("format_map() takes exactly one argument")
            return type(template)(BoundedFormatter(self).vformat(template, (), args[0]))

        return wrapper


class _BoundedFilters(dict[str, Callable[..., Any]]):
    """Filters that are asked what they would make; those that are put here later too."""

    def __init__(self, filters: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__({name: bounded_filter(name, function) for name, function in filters.items()})

    def __setitem__(self, name: str, function: Callable[..., Any]) -> None:
        super().__setitem__(name, bounded_filter(name, function))


def bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, whose arguments and result are looked at first and last."""

    skip = 1 if hasattr(function, "jinja_pass_arg") else 0
    sized = BoundedEnvironment.sized

    @functools.wraps(function)  # copies the mark of filters that want the context
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if len(args) == skip + 1 and not kwargs and isinstance(args[skip], str) and _length(args[skip]) <= _LARGE:
            return function(*args)  # of a short text alone no filter makes a long one
        return sized(function(*check_filter(name, args, kwargs, skip=skip), **kwargs))

    return wrapper


# -- what may be too much ---------------------------------------------------------------------------------------------


def _look_at_the_clock() -> None:
    _spent.steps += _CLOCK - _spent.left
    _spent.left = _CLOCK
    if _spent.steps > LIMITS.steps:
        raise TooSlow(Problem("chat template", f"it takes more than {LIMITS.steps:,} steps", FIX, "chat_template"))
    if time.monotonic() > _spent.deadline:
        found = f"it takes longer than {LIMITS.seconds:g} seconds"
        raise TooSlow(Problem("chat template", found, FIX, "chat_template"))


def _count_work(characters: int) -> None:
    _spent.left -= characters >> _WORK
    if _spent.left < 0:
        _look_at_the_clock()


def _count_made(characters: int) -> None:
    if characters > LIMITS.characters:
        raise TooLarge(_too_long(characters))
    _spent.made += characters
    if _spent.made > LIMITS.made:
        raise TooLarge(f"it makes strings of more than {LIMITS.made:,} characters in all")
    _count_work(characters)


def _too_long(characters: int) -> str:
    return f"it makes a text of {characters:,} characters, more than {LIMITS.characters:,}"


def weigh_new(value: list[Any] | tuple[Any, ...] | dict[Any, Any]) -> None:
    """A list or mapping was made: what is in it, all the way down, is counted.

    Raises:
        TooLarge: it is too much.
    """
    if not isinstance(_spent.weights, dict):
        return
    _spent.items += len(value)
    if _spent.items > 5 * LIMITS.items:
        raise TooLarge(f"it makes lists of more than {5 * LIMITS.items:,} items in all")
    _count_work(len(value) << 3)
    _weight(value, _spent.weights)


def _weight(value: Any, weights: dict[int, tuple[Any, int]]) -> int:
    """How much is written out when a value is; what was weighed before is remembered, and so stays alive."""
    if isinstance(value, str):
        return 1 + (_length(value) >> 4)
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


_WIDENING = frozenset({"center", "ljust", "rjust", "zfill", "to_bytes"})
_GROWING = _WIDENING | {"replace", "join", "expandtabs", "translate"}
"""Methods that make more than they are given."""


def check_method(owner: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """A method of a string or number is called; returns the arguments, an iterator among them read.

    Raises:
        TooLarge: it would make too much.
    """
    if name not in _GROWING and (not isinstance(owner, str) or _length(owner) <= _LARGE):
        return args
    if name in _WIDENING:
        _check_numbers((*args, *kwargs.values()))
    if not isinstance(owner, str):
        return args
    length = _length(owner)
    if length > _LARGE:
        _count_work(length)
    if name == "replace" and len(args) >= 2:
        _check_replaced(owner, args[0], args[1])
    elif name == "join" and args:
        items = args[0] if isinstance(args[0], list | tuple) else list(args[0])
        _check_joined(owner, items)
        return (items, *args[1:])
    elif name in ("split", "rsplit", "splitlines"):
        separator = args[0] if args and isinstance(args[0], str) and args[0] else None
        pieces = str.count(owner, separator) if separator and name != "splitlines" else length // 4
        if pieces >= LIMITS.items:
            raise TooLarge(f"it splits a text of {length:,} characters into {pieces:,} pieces or more")
    elif name == "expandtabs":
        size = next((value for value in (*args, *kwargs.values()) if isinstance(value, int)), 8)
        _check_total(length + str.count(owner, "\t") * max(size, 0))
    elif name == "translate" and args and isinstance(args[0], Mapping):
        longest = max((_length(value) for value in args[0].values() if isinstance(value, str)), default=1)
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
        length = _length(value)
        if length > _LARGE:
            _count_work(length)
        if name in _SLOW and length > 64_000 * _SLOW[name]:
            raise TooLarge(f"it gives the filter {name} a text of {length:,} characters")
        if name in _LISTING and length > LIMITS.items:
            raise TooLarge(f"it makes a list of the {length:,} characters of a text")
    if name in _SLOW or name in ("tojson", "batch", "slice", "pprint"):
        for item in more:
            if (isinstance(item, str) and _length(item) > 1000) or (isinstance(item, int) and abs(item) > 10_000):
                raise TooLarge(f"it gives the filter {name} an argument that is too large")
    if name == "replace" and len(more) >= 2:
        _check_replaced(str(value), more[0], more[1])
    elif name == "format" and isinstance(value, str):
        _check_percent(value, more)
    elif name == "indent" and isinstance(value, str):
        width = next((_length(each) if isinstance(each, str) else each for each in more), 4)
        _check_total(_length(value) + (str.count(value, "\n") + 1) * max(int(width), 0))
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
        if isinstance(value, int) and value > LIMITS.characters:
            raise TooLarge(f"it asks for a width of {_short(value)}")


def _short(number: int) -> str:
    return str(number) if number.bit_length() < 100 else f"2 to the power of {number.bit_length() - 1:,}"


def _check_total(characters: int) -> None:
    if characters > LIMITS.characters:
        raise TooLarge(_too_long(characters))


def _check_replaced(text: str, old: Any, new: Any) -> None:
    if isinstance(old, str) and isinstance(new, str) and _length(new) > _length(old):
        _check_total(_length(text) + str.count(text, old) * (_length(new) - _length(old)))


def _check_joined(separator: str, items: list[Any] | tuple[Any, ...]) -> None:
    if len(items) > LIMITS.items:
        raise TooLarge(f"it joins {len(items):,} texts")
    texts = sum(_length(item) for item in items if isinstance(item, str))
    _check_total(texts + _length(separator) * max(len(items) - 1, 0))


_NUMBERS = re.compile(r"\d+")


def check_width(spec: str) -> None:
    """The format of a value names no width that is too large. Raises TooLarge."""
    if _length(spec) > 1000 or any(len(number) > 7 for number in _NUMBERS.findall(spec)):
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
    longest = max((_length(value) for value in flat if isinstance(value, str)), default=0)
    _check_total(_length(template) + len(places) * longest)


def _modulo(left: Any, right: Any) -> Any:
    check_modulo(left, right)
    return BoundedEnvironment.sized(left % right)


def check_modulo(left: Any, right: Any) -> None:
    """``left % right`` formats no text that is too long. Raises TooLarge."""
    if isinstance(left, str):
        _check_percent(left, right)


def _times(left: Any, right: Any) -> Any:
    for one, other in ((left, right), (right, left)):
        if isinstance(one, str | bytes | list | tuple) and isinstance(other, int):
            length = _length(one) if isinstance(one, str) else len(one)
            limit = LIMITS.characters if isinstance(one, str | bytes) else LIMITS.items
            if length * other > limit:
                raise TooLarge(f"it repeats something to a length of {_short(length * other)}, more than {limit:,}")
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > 100_000:
        raise TooLarge("it computes a number of more than 100,000 bits")
    return BoundedEnvironment.sized(operator.mul(left, right))


def _to_the_power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > 100_000:
        raise TooLarge("it computes a number of more than 100,000 bits")
    return left**right
