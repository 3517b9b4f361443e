"""How the next token is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from whet.core.errors import ConfigError, Problem
from whet.core.nearest import suggestion

# name -> (lowest, highest) value that means something.
LIMITS: Mapping[str, tuple[float, float]] = {
    "temperature": (0, 5),
    "top_p": (0, 1),
    "top_k": (0, 1000),
    "min_p": (0, 1),
    "repetition_penalty": (0.5, 3),
    "max_new_tokens": (1, 1_000_000),
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True, slots=True)
class Sampling:
    """The settings of one answer.

    Attributes:
        temperature: divides the logits before the softmax; 0 takes the likeliest token each time.
        top_p: keep the likeliest tokens up to this share of probability; 1 keeps all.
        top_k: keep this many likeliest tokens; 0 keeps all.
        min_p: keep tokens at least this probable relative to the likeliest; 0 keeps all.
        repetition_penalty: divide (multiply, where negative) the logits of tokens already there; 1 does nothing.
        max_new_tokens: the answer ends here at the latest.
        seed: of the random numbers of one answer; None draws a new one each time.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 1024
    seed: int | None = None

    def with_values(self, **values: Any) -> Sampling:
        """A copy with these settings; those that are None stay as they are.

        Raises:
            ConfigError: an unknown name, or a value that means nothing.

        >>> Sampling().with_values(temperature="0.7", top_k=None).temperature
        0.7
        """
        changes: dict[str, Any] = {name: _read(name, value) for name, value in values.items() if value is not None}
        return replace(self, **changes)

    def lines(self) -> list[str]:
        """One ``name value`` line for each setting."""
        return [f"{field.name} {getattr(self, field.name)}" for field in fields(self)]


def require_setting(name: str) -> None:
    """Do nothing for the name of a setting.

    Raises:
        ConfigError: for any other name, with the nearest one.
    """
    if name not in LIMITS:
        raise ConfigError(Problem("", f"there is no setting '{name}'", suggestion(name, LIMITS)))


def _read(name: str, value: Any) -> int | float:
    require_setting(name)
    lowest, highest = LIMITS[name]
    whole = name in ("top_k", "max_new_tokens", "seed")
    try:
        number = int(value) if whole else float(value)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise ConfigError(
            Problem(name, f"'{value}' is not {kind}", f"write one from {lowest:g} to {highest:g}")
        ) from None
    if not lowest <= number <= highest:
        raise ConfigError(Problem(name, f"{value} is out of range", f"write a number from {lowest:g} to {highest:g}"))
    return number
