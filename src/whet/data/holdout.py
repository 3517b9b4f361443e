"""Which samples train and which validate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from whet.core.errors import DataError, Problem
from whet.data.sample_table import Flags, Hashes, SampleTable
from whet.data.store import IntArray


def drawn(draws: Hashes, seed: int) -> Hashes:
    """uint64[N]: a number for each row from its content and the seed alone (the finalizer of splitmix64)."""
    with np.errstate(over="ignore"):
        mixed = draws + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        result: Hashes = mixed ^ (mixed >> np.uint64(31))
    return result


def from_the_end(table: SampleTable) -> Hashes:
    """uint64[N]: a number for each row, the less the later it stands."""
    rows = table.rows()
    return (rows[-1:] - rows).astype(np.uint64)


def draw_validation(draws: Hashes, fits: Flags, val_set_size: float, where: str) -> tuple[IntArray, IntArray]:
    """Split samples in training and validation.

    The samples with the smallest draws are taken; as a draw comes from the seed and a row's content, the same rows are
    taken in whatever order, and from whatever files, they were read. Samples of one row, and of equal rows, have one
    draw and are not parted: a few more than asked for may be taken, and none of a row that has one which does not fit.

    Args:
        draws: uint64[N].
        fits: bool[N], samples that may be taken (no longer than eval_sequence_len).
        val_set_size: a share of all samples, below 1, or a number of them.

    Returns:
        Sample numbers of both, each in order, each at least one, together all.

    Raises:
        DataError: nothing would be left to train on, or too few samples may be taken.
    """
    count = max(1, round(len(draws) * val_set_size)) if val_set_size < 1 else int(val_set_size)
    if count >= len(draws):
        found = f"val_set_size {val_set_size:g} takes all {len(draws):,} samples, nothing is left to train on"
        raise DataError(Problem(where, found, "set it lower, or to 0 for no validation"))
    allowed = fits & ~np.isin(draws, draws[~fits])
    candidates = draws[allowed]
    if count > len(candidates):
        found = f"val_set_size {val_set_size:g} takes {count:,} samples, only {len(candidates):,} fit eval_sequence_len"
        raise DataError(Problem(where, found, "set it lower, or raise eval_sequence_len"))
    taken = allowed & (draws <= np.partition(candidates, count - 1)[count - 1])
    if taken.all():
        found = f"val_set_size {val_set_size:g} takes all samples: the rows are equal, nothing is left to train on"
        raise DataError(Problem(where, found, "set it lower, or to 0 for no validation"))
    return np.flatnonzero(~taken), np.flatnonzero(taken)


def divided(
    table: SampleTable,
    val_set_size: float,
    val_set_from: Literal["random", "tail"],
    eval_sequence_len: int,
    seed: int,
    where: Mapping[str, str],
) -> tuple[IntArray, IntArray | None]:
    """Sample numbers to train and to validate on: test datasets are validated on, else ``val_set_size`` says how many.

    Raises:
        DataError: as `draw_validation`.
    """
    train, test = np.flatnonzero(~table.is_test), np.flatnonzero(table.is_test)
    if not val_set_size or not len(table):
        return train, test if len(test) else None
    fits = table.columns["end"] - table.columns["begin"] <= eval_sequence_len
    draws = from_the_end(table) if val_set_from == "tail" else drawn(table.draws, seed)
    return draw_validation(draws, fits, val_set_size, where["val_set_size"])


def shuffled_within(indices: IntArray, sources: npt.NDArray[np.integer], seed: int) -> IntArray:
    """Each dataset's samples in a random order of their own, the datasets in their order."""
    key = np.array([seed % 2**64, 2**64 - 1], dtype=np.uint64)
    random = np.random.Philox(key=key).random_raw(len(indices))
    shuffled: IntArray = indices[np.lexsort((random, sources[indices]))]
    return shuffled
