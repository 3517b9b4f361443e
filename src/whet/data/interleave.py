"""Which dataset the next sample of a stream comes from."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import lcm


def next_of(weights: Sequence[int], dealt: Sequence[int], lengths: Sequence[int]) -> int:
    """The dataset whose turn it is, so that at any moment each has its share of what was dealt, to within one sample.

    Of the datasets that are not ahead of their share, the one whose next sample would be through first if each were
    read at the pace of its share (the packet scheduler WF2Q of Bennett and Zhang, INFOCOM 1996, which proves the
    bound; taking the largest deficit first keeps it for two datasets, and not for more).

    Args:
        weights: of each dataset, above 0.
        dealt: what each has given.
        lengths: what the next sample of each counts.

    >>> turns, dealt = [], [0, 0]
    >>> for _ in range(6):
    ...     turns.append(next_of([2, 1], dealt, [1, 1]))
    ...     dealt[turns[-1]] += 1
    >>> turns
    [0, 1, 0, 0, 1, 0]
    """
    total_weight, total = sum(weights), sum(dealt)
    in_time = [at for at, weight in enumerate(weights) if dealt[at] * total_weight <= weight * total]
    return min(in_time, key=lambda at: (Fraction(dealt[at] + lengths[at], weights[at]), at))


def whole_weights(weights: Sequence[float]) -> list[int]:
    """The weights as whole numbers, so that what is made of them is exact.

    >>> whole_weights([0.5, 0.3, 0.2])
    [5, 3, 2]
    """
    fractions = [Fraction(weight).limit_denominator(1_000_000) for weight in weights]
    common = lcm(*(fraction.denominator for fraction in fractions))
    return [max(1, int(fraction * common)) for fraction in fractions]
