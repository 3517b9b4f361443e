"""The Jinja environment of chat templates, as transformers has it, in which strings keep their traces.

Settings, globals and filters are those of ``transformers.utils.chat_template_utils`` (sandbox, ``trim_blocks``,
``lstrip_blocks``, loop controls, ``{% generation %}``, ``tojson`` without HTML escapes, ``raise_exception``,
``strftime_now``): a template written for ``apply_chat_template`` renders to the same text here. What is added is
that every place where Jinja makes a new string out of others keeps their runs, and that the day is given.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime, time
from types import BuiltinMethodType
from typing import Any, cast

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.utils import Namespace
from markupsafe import Markup

from whet.core.sandbox import (
    BoundedEnvironment,
    BoundedFormatter,
    TooLarge,
    bounded_filter,
    budget,
    check_filter,
    check_modulo,
    checked_parts,
)
from whet.data.templates.traced import (
    GENERATION_BEGIN,
    GENERATION_END,
    Run,
    Source,
    Traced,
    TracedFormatter,
    concat,
    derive,
    lose_all,
    text_of,
)


class _GenerationBlocks(Extension):
    """``{% generation %}...{% endgeneration %}``: the author says that the model writes this; two marks enclose it."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it as an instance attribute

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_enclose"), [], [], body).set_lineno(line)

    def _enclose(self, caller: Macro) -> str:
        return concat((_mark(GENERATION_BEGIN), caller(), _mark(GENERATION_END)))


def _mark(message: int) -> Traced:
    return Traced("", (Run(0, 0, Source(message, "generation"), -1),))


class _SandboxedTracedFormatter(TracedFormatter, BoundedFormatter):
    """``str.format`` under the sandbox's rules, with runs."""


class _TemplateNamespace(Namespace):
    """``namespace()`` without names that begin with an underscore, as transformers has it."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _refuse_private(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        Namespace.__setitem__(self, name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template cannot store {name!r} on a namespace: it begins with an underscore")


class _TemplateDict:
    """``dict()`` for templates: it makes one, and gives no way to the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class Day:
    """The day that a template writes, all day long: what it makes of a conversation depends on nothing else.

    The time of day is midnight, so that samples prepared at noon and in the evening are the same.

    Attributes:
        day: the day.
        written: each format that was asked for, and what it was answered.
        refuses: why the day is not told any more; None while it is.
    """

    def __init__(self, day: date) -> None:
        self.day = day
        self.written: dict[str, str] = {}
        self.refuses: str | None = None

    def strftime_now(self, format: str) -> str:
        """What a template calls by this name.

        Raises:
            TemplateError: the day is not told any more.
        """
        if self.refuses is not None:
            raise TemplateError(self.refuses)
        text = datetime.combine(self.day, time.min).strftime(format)
        self.written[str(format)] = text
        return text


def _concat(parts: Iterable[str]) -> str:
    return concat(checked_parts(parts))


class TracingEnvironment(BoundedEnvironment):
    """transformers' chat-template environment, within limits, with strings that keep their runs.

    The calls that `whet.core.sandbox` puts into compiled templates keep runs here: ``a ~ b`` is joined with them, and
    ``a in b`` is compiled so that `a` sees it.

    Args:
        day: what ``strftime_now`` tells; today where it is left out.
    """

    concat = staticmethod(_concat)  # Jinja calls it as a plain function

    def __init__(self, day: Day | None = None) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationBlocks, loopcontrols],
            finalize=text_of,
        )
        self.filters = {name: _keeping_runs(name, function) for name, function in self.filters.items()}
        self.filters["join"] = _keeping_runs_of_join(self.filters["join"])
        self.filters["tojson"] = bounded_filter("tojson", self._tojson)
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = (day or Day(date.today())).strftime_now
        self.globals["dict"] = _TemplateDict()
        self.globals["namespace"] = _TemplateNamespace
        self.tests["sequence"] = _is_sequence(cast(Callable[..., bool], self.tests["sequence"]))
        self.tests["in"] = lambda value, others: value in self.searched(others)
        self.tests["sameas"] = _is_same
        self._remembered: tuple[Any, dict[int, dict[str, str]]] = (None, {})
        self.binop_table["%"] = _modulo

    def remember(self, value: Any) -> None:
        """Write the JSON of a traced value, and of what is in it, once: it is given to the template again and again,
        which cannot change it (`ImmutableSandboxedEnvironment`). What was remembered before is forgotten."""
        self._remembered = (value, {id(part): {} for part in _containers(value)})

    def _tojson(
        self,
        x: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        options = {
            "ensure_ascii": ensure_ascii,
            "indent": indent,
            "separators": separators,
            "sort_keys": sort_keys,
        }
        texts = self._remembered[1].get(id(x))
        if texts is None:
            return derive(json.dumps(x, **options), x)
        key = repr(options)
        if key not in texts:
            texts[key] = derive(json.dumps(x, **options), x)
        return texts[key]

    @staticmethod
    def join_as_text(parts: tuple[Any, ...]) -> str:
        """What Jinja's ``~`` makes of its operands."""
        return _concat([text_of(part) for part in parts])

    @staticmethod
    def searched(value: Any) -> Any:
        """What stands on the right of ``in``; a string there is one that tells the left side of the search."""
        BoundedEnvironment.searched(value)
        return Traced(value) if isinstance(value, str) and not isinstance(value, Traced) else value

    def getattr(self, obj: Any, attribute: str) -> Any:
        """As the sandbox does; what a traced string has beyond `str` is not there for a template."""
        if isinstance(obj, Traced) and not hasattr(str, attribute):
            return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """As the sandbox does; see `getattr`. A traced string that something is looked up by is told."""
        if isinstance(argument, Traced):
            argument.lose()
        if isinstance(obj, Traced) and isinstance(argument, str) and not hasattr(str, argument):
            return self.undefined(obj=obj, name=argument)
        return super().getitem(obj, argument)

    def call(__self, __context: Context, __callable: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """As the sandbox does; a literal string's method is the traced one, so that it keeps its arguments' runs.

        Traced strings are told when they are given to what compares their characters unseen.
        """
        owner = getattr(__callable, "__self__", None)
        if isinstance(owner, str):
            unseen = __callable.__name__ not in ("join", "format", "format_map")
        else:
            unseen = isinstance(__callable, BuiltinMethodType) and not isinstance(owner, list | tuple | Mapping)
        if unseen:
            lose_all([*args, *(value for name, value in kwargs.items() if name not in _JINJAS_OWN)])
        if isinstance(__callable, BuiltinMethodType) and type(__callable.__self__) is str:
            __callable = getattr(Traced(__callable.__self__), __callable.__name__)
        return super().call(__context, __callable, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The sandbox's replacement of ``str.format`` and ``str.format_map``, with runs."""
        sandboxed = super().wrap_str_format(value)
        if sandboxed is None or isinstance(value.__self__, Markup):
            return sandboxed
        template: str = value.__self__

        @functools.wraps(value)
        def wrapper(*args: Any, **kwargs: Any) -> str:
            formatter = _SandboxedTracedFormatter(self)
            if value.__name__ == "format":
                return formatter.vformat(template, args, kwargs)
            if kwargs or len(args) != 1:
                raise TypeError("format_map() takes exactly one argument")
            return formatter.vformat(template, (), args[0])

        return wrapper


def _modulo(left: Any, right: Any) -> Any:
    check_modulo(left, right)
    return BoundedEnvironment.sized((Traced(left) if type(left) is str else left) % right)


def _containers(value: Any) -> Iterator[Any]:
    """A list or mapping, and all that are in it."""
    if isinstance(value, Mapping | list):
        yield value
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _containers(item)


def _is_sequence(test: Callable[..., bool]) -> Callable[[Any], bool]:
    """Jinja's test, which takes the length of what it is asked about; a string need not be asked."""
    return lambda value: isinstance(value, str) or test(value)


def _is_same(value: Any, other: Any) -> bool:
    """Jinja's test ``sameas``; whether equal strings are one object is chance, so nothing may be learnt from it."""
    lose_all((value, other))
    return value is other


#: Arguments that Jinja's compiler adds to a call.
_JINJAS_OWN = frozenset({"_loop_vars", "_block_vars"})

#: Filters that give a string on as it is, or do with it what its own methods do.
_PASSING = frozenset({"d", "default", "format", "string", "trim"})

#: Filters that put a string together anew, out of pieces that are traced only in part.
_REBUILDING = frozenset({"center", "indent", "title", "truncate", "urlize", "wordwrap"})


def _keeping_runs(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose new string counts as made from its arguments when it loses their runs on the way.

    Strings given to a filter that may read their characters unseen (``wordcount``, ``int``, ``e``) are told.
    """

    @functools.wraps(function)  # copies the mark of filters that want the context
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if name not in _PASSING:
            _lose_strings((*args, *kwargs.values()))
        elif name == "trim":
            _lose_strings((*args[1:], *kwargs.values()))
        lifted = [Traced(arg) if type(arg) is str else arg for arg in args]
        result = function(*lifted, **kwargs)
        if isinstance(result, Markup):
            return _Marked(result)
        if type(result) is str or (isinstance(result, Traced) and (name in _REBUILDING or not result.runs)):
            return derive(str.__str__(result), args, kwargs)
        return result

    return wrapper


class _Marked(Markup):
    """Markup that tells a traced string when they are compared: neither's class is the other's, so it is not asked."""

    __slots__ = ()
    __hash__ = str.__hash__


def _comparing(name: str) -> Callable[[Any, Any], Any]:
    plain = getattr(Markup, name)

    def method(self: _Marked, other: Any) -> Any:
        lose_all(other)
        return plain(self, other)

    return method


for _name in ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__contains__"):
    setattr(_Marked, _name, _comparing(_name))


def _lose_strings(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, Traced):
            value.lose()


def _keeping_runs_of_join(function: Callable[..., Any]) -> Callable[..., Any]:
    """The ``join`` filter: piece by piece where its items are strings and no attribute is taken of them."""

    @functools.wraps(function)
    def wrapper(eval_ctx: Any, value: Any, d: str = "", attribute: str | int | None = None) -> Any:
        _, value, *_ = check_filter("join", (eval_ctx, value, d), {}, skip=1)
        if isinstance(value, str) and str.__len__(value) > budget.LIMITS.items:
            raise TooLarge("it joins the characters of a long text")
        items = list(value) if not isinstance(value, str) else list(iter(value))
        plain = function(eval_ctx, items, d, attribute)
        traced = Traced(text_of(d)).join([text_of(item) for item in items])
        return traced if str.__eq__(traced, plain) else derive(plain, items, d)

    return wrapper


def _raise_exception(message: str) -> None:
    raise TemplateError(message)
