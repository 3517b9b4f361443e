"""Rows dealt to optimiser steps so that each step takes equal time.

Packs hold about equally many tokens, but attention costs the square of a document's length: a pack of one long document
is dearer than one of many short ones. Within a step, rows stand from dear to cheap and are dealt to the ranks to and
fro; so at any number of ranks all compute on rows of about one cost at a time, and on as much in the whole step.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from whet.data.packing import IntArray
from whet.data.sorting import by_random

_NOISE = 0.2
"""How much the costs of the first rows are blurred, so that an epoch groups its rows otherwise than the one before."""


def balanced(costs: IntArray, random: npt.NDArray[np.uint64], rows_per_step: int, first: int = 0) -> IntArray:
    """int64[R]: an order of rows in which the steps' sums of costs are about equal.

    Rows are cut, from dear to cheap, into as many strata as a step has rows. Each stratum gives every step one row: the
    dearest to the step with the least so far.

    Args:
        costs: int64[R], of each row: the sum of the squares of its documents' lengths.
        random: uint64[R], decides everything else.
        rows_per_step: rows of a full step.
        first: rows that the epoch has before these; where they end in the middle of a step, it is filled first.
    """
    shuffled = by_random(random)
    head = min(-first % rows_per_step, len(costs))
    num_steps, tail = divmod(len(costs) - head, rows_per_step)
    ends = [shuffled[:head], shuffled[head : head + tail]]
    body = shuffled[head + tail :]
    blurred = costs[body] * (1 + _NOISE * (random[body] % np.uint64(1024) / 1024 - 0.5))
    by_cost = body[np.argsort(-blurred, kind="stable")]
    steps = _dealt(by_cost.reshape(rows_per_step, num_steps), costs, random)
    return np.concatenate([_from_dear(ends[0], costs), steps.ravel(), _from_dear(ends[1], costs)])


def _dealt(strata: IntArray, costs: IntArray, random: npt.NDArray[np.uint64]) -> IntArray:
    """[steps, rows of a step] of int64[rows of a step, steps], each stratum from dear to cheap."""
    rows_per_step, num_steps = strata.shape
    steps = np.empty((num_steps, rows_per_step), dtype=np.int64)
    sums = np.zeros(num_steps)
    for number, stratum in enumerate(strata):
        stratum = stratum[np.argsort(random[stratum] if number == 0 else -costs[stratum], kind="stable")]
        cheapest = np.argsort(sums, kind="stable")
        steps[cheapest, number] = stratum
        sums[cheapest] += costs[stratum]
    return np.take_along_axis(steps, np.argsort(-costs[steps], axis=1, kind="stable"), axis=1)


def _from_dear(rows: IntArray, costs: IntArray) -> IntArray:
    return rows[np.argsort(-costs[rows], kind="stable")]
