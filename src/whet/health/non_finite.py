"""Steps whose loss or gradient is no number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepFigures:
    """What one optimiser step measured.

    Attributes:
        loss: nats per supervised token.
        grad_norm: L2 norm over all trainable parameters, before clipping.
    """

    step: int
    loss: float
    grad_norm: float

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)

    def what_is_wrong(self) -> str:
        """A phrase for a message.

        >>> StepFigures(3, float("nan"), float("inf")).what_is_wrong()
        'the loss is nan and the gradient norm is inf'
        """
        named = {"the loss": self.loss, "the gradient norm": self.grad_norm}
        return " and ".join(f"{name} is {value}" for name, value in named.items() if not math.isfinite(value))


def trailing_non_finite(steps: Sequence[StepFigures]) -> int:
    """How many of the latest steps in a row were not finite.

    >>> steps = [StepFigures(1, 2.0, 1.0), StepFigures(2, math.nan, 1.0), StepFigures(3, 2.0, math.inf)]
    >>> trailing_non_finite(steps), trailing_non_finite(steps[:1])
    (2, 0)
    """
    count = 0
    for figures in reversed(steps):
        if figures.is_finite:
            break
        count += 1
    return count
