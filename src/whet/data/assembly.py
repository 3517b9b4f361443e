"""Encoded chunks -> the samples of a prepared set: limits, duplicates, the training and the validation split.

Works on arrays of lengths and hashes; ids are read only where rows are compared for near duplicates or cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from whet.core.errors import DataError, Problem
from whet.data.admission import Limits, Strategy
from whet.data.holdout import divided, shuffled_within
from whet.data.ledger import IN_TRAINING, Ledger
from whet.data.refusals import Demands, with_rows
from whet.data.repeats import without_duplicates, without_near_duplicates, without_overlap
from whet.data.sample_table import EncodedPart, SampleTable
from whet.data.store import Index, IntArray


@dataclass(frozen=True, slots=True)
class SetOptions:
    """All that decides, beside the encoded rows, which samples a set has. Every field is part of the set's name.

    Attributes:
        sequence_len, eval_sequence_len: most tokens of a sample, in training and of test datasets.
        excess_length_strategy: what becomes of longer ones.
        min_sample_len: fewest tokens.
        exact_deduplication: keep one of equal rows.
        near_deduplication: similarity from which rows count as repeated; None: they are not compared.
        eval_overlap: what to do about test rows that are training rows too.
        val_set_size: share, or number, of samples to validate on.
        val_set_from: "random" draws them by content and seed, "tail" takes the last.
        shuffle_before_merging: shuffle each dataset once.
        seed: of what is drawn; None where nothing is.
    """

    sequence_len: int
    eval_sequence_len: int
    excess_length_strategy: Strategy
    min_sample_len: int
    exact_deduplication: bool = False
    near_deduplication: float | None = None
    eval_overlap: Literal["report", "drop", "raise"] = "report"
    val_set_size: float = 0.0
    val_set_from: Literal["random", "tail"] = "random"
    shuffle_before_merging: bool = False
    seed: int | None = None


@dataclass(frozen=True, eq=False)
class Assembly:
    """The samples of a set.

    Attributes:
        index: see `whet.data.store.COLUMNS`; chunks are numbered through all parts.
        train, validation: sample numbers; validation None without one.
        ledgers: the account of each part.
        findings: what else a person wants to know, for the manifest.
    """

    index: Index
    train: IntArray
    validation: IntArray | None
    ledgers: Sequence[Ledger]
    findings: Mapping[str, Any] = field(default_factory=dict)


def assemble(
    parts: Sequence[EncodedPart], options: SetOptions, where: Mapping[str, str], demands: Sequence[Demands] = ()
) -> Assembly:
    """Decide which samples a set has.

    Args:
        parts: training datasets, then test datasets.
        options: see `SetOptions`.
        where: places in the YAML of `val_set_size` and `test_datasets`, for errors.
        demands: of each part, or none; rows that break them are told beside a split that cannot be made.

    Raises:
        DataError: nothing would be left to train or to validate on, or test rows are training rows and may not be.
    """
    table = SampleTable.of(parts, [_limits(part, options) for part in parts])
    findings: dict[str, Any] = {}
    if options.exact_deduplication:
        table = without_duplicates(table)
    if options.near_deduplication is not None:
        table, findings["near_duplicates"] = without_near_duplicates(table, options.near_deduplication)
    if any(part.is_test for part in parts):
        table, findings["eval_overlap"] = without_overlap(
            table, options.eval_overlap, options.near_deduplication, where["test_datasets"]
        )
        _refuse_nothing_to_validate_on(table, where)
    table.settle()
    seed = options.seed or 0
    try:
        train, validation = divided(
            table, options.val_set_size, options.val_set_from, options.eval_sequence_len, seed, where
        )
    except DataError as error:
        raise with_rows(error, table.ledgers, demands) from error
    if options.shuffle_before_merging:
        train = shuffled_within(train, table.columns["source"], seed)
    return Assembly(table.columns, train, validation, table.ledgers, findings)


def _limits(part: EncodedPart, options: SetOptions) -> Limits:
    """What the samples of a dataset must keep to."""
    most = options.eval_sequence_len if part.is_test else options.sequence_len
    return Limits(most, options.min_sample_len, "split" if part.cuts_long_rows else options.excess_length_strategy)


def _refuse_nothing_to_validate_on(table: SampleTable, where: Mapping[str, str]) -> None:
    """Whatever else may leave test datasets empty is told from their ledgers."""
    if not table.is_test.any() and any(IN_TRAINING in ledger.dropped for ledger in table.ledgers):
        found = "every row of the test datasets is also a row of the training datasets"
        raise DataError(Problem(where["test_datasets"], found, "use rows that are not trained on"))
