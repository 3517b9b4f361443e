"""Texts with places to fill: ``"Q: {instruction}"``. Braces that are text are written twice, as in Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter

from whet.core.nearest import suggestion


class WrongFormat(ValueError):
    """A format that cannot be used: what is wrong with it, and the cure."""

    def __init__(self, found: str, fix: str) -> None:
        self.found, self.fix = found, fix
        super().__init__(found, fix)


@dataclass(frozen=True, slots=True)
class Pieces:
    """A format taken apart: ``literals[0] + names[0]'s value + literals[1] + ... + literals[-1]``."""

    literals: tuple[str, ...]
    names: tuple[str, ...]

    def fill(self, values: dict[str, str]) -> list[str]:
        """The pieces of the text, in order, with the values in their places."""
        parts = [self.literals[0]]
        for name, literal in zip(self.names, self.literals[1:], strict=True):
            parts += (values[name], literal)
        return parts


def pieces(text: str, allowed: Sequence[str]) -> Pieces:
    """Take a format apart.

    >>> pieces("{{Q}}: {instruction}.", ["instruction"])
    Pieces(literals=('{Q}: ', '.'), names=('instruction',))

    Raises:
        WrongFormat: a place that is not among ``allowed``, or a brace that neither opens nor closes one.
    """
    literals, names, before = [], [], ""
    try:
        parsed = list(Formatter().parse(text))
    except ValueError:
        raise WrongFormat(
            "has a brace that opens or closes nothing", "write {{ or }} for a brace that is text"
        ) from None
    for literal, name, spec, conversion in parsed:
        before += literal
        if name is None:
            continue
        if name not in allowed:
            shown = "{" + name + "}"
            near = suggestion(name, allowed).replace("'", "") if name else f"use one of: {', '.join(sorted(allowed))}"
            raise WrongFormat(
                f"has a place {shown}", f"{near} (in braces; write {{{{ and }}}} for braces that are text)"
            )
        if spec or conversion:
            raise WrongFormat(
                f"changes {{{name}}} with '!{conversion}'" if conversion else f"changes {{{name}}} with ':{spec}'",
                f"write {{{name}}}",
            )
        literals.append(before)
        names.append(name)
        before = ""
    return Pieces((*literals, before), tuple(names))
