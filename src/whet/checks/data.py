"""The first rows of each dataset, all the way to labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from whet.checks.base import Subject
from whet.config import DatasetConfig
from whet.core.errors import Problem, RowError, RowLeftOut, WhetError
from whet.core.log import warn
from whet.data.finishing import Outcome
from whet.data.ledger import FIXES
from whet.data.readers import BadRow, Row
from whet.data.samples import Encoded, EncodedPrompt, EncodedSample
from whet.data.sources import locate
from whet.data.tokenise import SampleEncoder

ROWS_LOOKED_AT = 100


def check(subject: Subject) -> Iterator[str | Problem]:
    """Each dataset is there, its rows are of its type, and something in them is trained."""
    config = subject.config
    resolved = subject.resolved
    for key, datasets, limit in (
        ("datasets", config.data.datasets, resolved.sequence_len),
        ("test_datasets", config.data.test_datasets, resolved.eval_sequence_len),
    ):
        streamed = config.data.streaming and key == "datasets"
        for index, dataset in enumerate(datasets):
            where = config.where((key, index, "path"))
            try:
                yield from _check_dataset(subject, dataset, where, limit, streamed)
            except WhetError as error:
                yield from error.problems


def _check_dataset(
    subject: Subject, dataset: DatasetConfig, where: str, limit: int, streamed: bool
) -> Iterator[str | Problem]:
    folder = Path(subject.config.file).parent if subject.config.file else None
    rows = list(islice(locate(dataset, where, folder, streamed=streamed).rows(), ROWS_LOOKED_AT))
    if not rows:
        yield Problem(where, f"'{dataset.path}' holds no rows", "check the file, `split` and `shards`", "datasets")
        return
    encoder = SampleEncoder(dataset, subject.config, subject.tokenizer)
    if streamed and encoder.missing_tokens:  # of data that is prepared, `plan` tells when it looks for the set
        warn(encoder.missing_tokens)
    results = list(zip(rows, _encode(encoder, rows), strict=True))
    kept = [sample for _, result in results if not isinstance(result, RowError) for sample in result]
    yield from _problems_of(subject, results, num_kept=len(kept), where=where)
    if kept:
        yield _describe(dataset, limit, len(rows), kept)
    shortest = min(_limited_lengths(kept), default=0)
    cut = encoder.cuts_long_rows or subject.config.data.excess_length_strategy in ("truncate", "split")
    if shortest > limit and not cut and len(rows) < ROWS_LOOKED_AT:
        found = f"'{dataset.path}': every row is longer than sequence_len {limit} (shortest {shortest} tokens)"
        fix = f"raise sequence_len to at least {shortest}, or set `excess_length_strategy: truncate`"
        yield Problem(where, found, fix, "sequence_len")


def _encode(encoder: SampleEncoder, rows: list[Row]) -> list[Outcome]:
    """What becomes of each row; one that could not be read keeps its place."""
    encoded = iter(encoder.encode([row.value for row in rows if not isinstance(row.value, BadRow)]))
    return [
        RowError(row.value.reason, row.value.detail) if isinstance(row.value, BadRow) else next(encoded) for row in rows
    ]


def _problems_of(
    subject: Subject,
    results: list[tuple[Row, Outcome]],
    *,
    num_kept: int,
    where: str,
) -> Iterator[str | Problem]:
    """One problem (or, where the config drops bad rows and some are left, one fact) for each reason."""
    refused = [(row, result) for row, result in results if isinstance(result, RowError)]
    counts = Counter(error.reason for _, error in refused if not isinstance(error, RowLeftOut))
    drops = subject.config.data.on_bad_row == "drop" and num_kept > 0
    for reason, count in counts.items():
        row, error = next((row, error) for row, error in refused if error.reason == reason)
        found = f"{count} of the first {len(results)} rows: {error}"
        if drops:
            yield f"{row.place}: {found} (dropped, as on_bad_row says)"
        else:
            fix = FIXES.get(reason, "mend the rows, or write on_bad_row: drop")
            yield Problem(row.place, found, f"{fix} (dataset of {where})", "datasets")


def _describe(dataset: DatasetConfig, sequence_len: int, num_rows: int, kept: list[EncodedSample]) -> str:
    lengths = [sample.num_tokens for sample in kept]
    facts = [
        f"{dataset.path} ({dataset.type}): first {num_rows} rows",
        f"{sum(lengths):,} tokens",
        f"longest {max(lengths):,}",
    ]
    samples = [sample for sample in kept if isinstance(sample, Encoded)]
    if samples:
        share = sum(int(sample.supervised.sum()) for sample in samples) / max(1, sum(lengths))
        facts.append(f"{share:.0%} trained")
    too_long = sum(length > sequence_len for length in _limited_lengths(kept))
    if too_long:
        facts.append(f"{too_long} longer than sequence_len {sequence_len:,}")
    return ", ".join(facts)


def _limited_lengths(samples: list[EncodedSample]) -> list[int]:
    """Of all but prompts, which may have any length."""
    return [sample.num_tokens for sample in samples if not isinstance(sample, EncodedPrompt)]
