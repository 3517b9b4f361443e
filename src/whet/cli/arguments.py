"""A command line, divided: what the command itself understands, and the config keys that override the YAML.

    whet train my.yaml --launcher torchrun --learning-rate 1e-4 -- --max-restarts 1
               └───────── own ───────────┘ └─── overrides ────┘    └─ launcher ──┘

Typer sees only its own part, so its parser needs no knowledge of the some three hundred keys, and ``--help`` no
knowledge of the schema.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

_NEGATIVE_NUMBER = re.compile(r"-\.?\d")


class Takes(Enum):
    """What may follow an option of the command."""

    NOTHING = "nothing"
    VALUE = "a value"
    PERHAPS_VALUE = "a value, or nothing for 'true'"


@dataclass(frozen=True, slots=True)
class Arguments:
    """One command line in three parts, each in the order it was typed."""

    own: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()

    def override_names(self) -> list[str]:
        """The option names among the overrides, as typed and without a value: ``--lora.r``."""
        return [token.partition("=")[0] for token in self.overrides if _is_option(token)]


def divide(tokens: Sequence[str], options: Mapping[str, Takes]) -> Arguments:
    """Divide the tokens that follow a command's name.

    An unknown long option takes the next token as its value unless that is an option too. Underscores and hyphens are
    the same in the names of the command's own options, as they are in keys.

    >>> divide(["my.yaml", "--bf16", "--lora.r", "8", "--", "--rdzv_id", "1"], {})
    Arguments(own=('my.yaml',), overrides=('--bf16', '--lora.r', '8'), launcher=('--rdzv_id', '1'))
    """
    mine, launcher = _split_at_dashes(tokens)
    own: list[str] = []
    overrides: list[str] = []
    position = 0
    while position < len(mine):
        token = mine[position]
        following = mine[position + 1] if position + 1 < len(mine) else None
        position += 1
        if not token.startswith("--"):
            own.append(token)
            continue
        name, equals, value = token.partition("=")
        spelled = name.replace("_", "-")
        if spelled not in options:
            overrides.append(token)
            if not equals and _is_value(following):
                overrides.append(str(following))
                position += 1
            continue
        takes = options[spelled]
        if equals:
            own.append(f"{spelled}={value}")
        elif takes is Takes.NOTHING:
            own.append(spelled)
        elif _is_value(following):
            own += [spelled, str(following)]
            position += 1
        else:
            own += [spelled, "true"] if takes is Takes.PERHAPS_VALUE else [spelled]
    return Arguments(tuple(own), tuple(overrides), tuple(launcher))


def _split_at_dashes(tokens: Sequence[str]) -> tuple[list[str], list[str]]:
    if "--" not in tokens:
        return list(tokens), []
    at = list(tokens).index("--")
    return list(tokens[:at]), list(tokens[at + 1 :])


def _is_option(token: str) -> bool:
    return token.startswith("-") and token != "-" and not _NEGATIVE_NUMBER.match(token)


def _is_value(token: str | None) -> bool:
    return token is not None and not _is_option(token)
