"""A loss that has run away."""

from __future__ import annotations

from collections.abc import Sequence


def is_out_of_hand(losses: Sequence[float], threshold: float, patience: int) -> bool:
    """Whether the latest ``patience`` losses are all above ``threshold``; one that is no number counts as above.

    >>> is_out_of_hand([2.0, 9.0, 9.5], threshold=8.0, patience=2)
    True
    >>> is_out_of_hand([9.0, 2.0, 9.5], threshold=8.0, patience=2)
    False
    """
    latest = losses[-patience:]
    return len(latest) == patience and not any(loss <= threshold for loss in latest)
