"""Jinja's immutable sandbox, in which what a template takes is counted and bounded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

from whet.core.sandbox import budget, growth
from whet.core.sandbox.budget import LARGE, TooLarge, count_made, count_work, length_of, too_long
from whet.core.sandbox.compiled import BoundedCode
from whet.core.sandbox.growth import check_filter, check_method, check_width, sized

_WITH_GROWING_METHODS = (str, int, bytes)


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
    total = sum(map(length_of, pieces))
    if total > LARGE:
        count_made(total)
    return pieces


class BoundedFormatter(SandboxedFormatter):
    """``str.format`` under the sandbox's rules, of bounded width."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        check_width(format_spec)
        written = super().format_field(value, format_spec)
        self.total = getattr(self, "total", 0) + length_of(str(written))
        if self.total > budget.LIMITS.characters:
            raise TooLarge(too_long(self.total))
        return written


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox, with limits."""

    code_generator_class = BoundedCode
    template_class = BoundedTemplate
    concat = staticmethod(bounded_concat)
    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.filters = _BoundedFilters(self.filters)
        self.globals.pop("lipsum", None)  # random words, as many as one likes
        self.binop_table = {**self.binop_table, "*": growth.times, "**": growth.to_the_power, "%": growth.modulo}

    # What compiled templates call.
    begin = staticmethod(budget.begin)
    count = staticmethod(budget.count)
    sized = staticmethod(growth.sized)

    @property
    def counted(self) -> bool:
        """True, and a step is taken: for the tests of loops."""
        budget.count()
        return True

    @staticmethod
    def searched(value: Any) -> Any:
        """What stands on the right of ``in``."""
        if isinstance(value, str) and length_of(value) > LARGE:
            count_work(length_of(value))
        return value

    @staticmethod
    def join_as_text(parts: tuple[Any, ...]) -> str:
        """What Jinja's ``~`` makes of its operands."""
        return bounded_concat([part if isinstance(part, str) else str(part) for part in parts])

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        self.begin()  # constant expressions are computed now
        return super()._generate(source, *args, **kwargs)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > budget.LIMITS.text:
            found = f"the template has {len(source):,} characters, more than {budget.LIMITS.text:,}"
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

    @functools.wraps(function)  # copies the mark of filters that want the context
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if len(args) == skip + 1 and not kwargs and isinstance(args[skip], str) and length_of(args[skip]) <= LARGE:
            return function(*args)  # of a short text alone no filter makes a long one
        return sized(function(*check_filter(name, args, kwargs, skip=skip), **kwargs))

    return wrapper
