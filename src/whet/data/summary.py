"""A prepared set as a person wants to see it: what was read, what was dropped and why, lengths, packs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console, Group
from rich.table import Table

from whet.config.resolve import ResolvedRun
from whet.data.ledger import Ledger, Tally
from whet.data.packing import fill, pack
from whet.data.store import AnySplit, PreparedSet


@dataclass(frozen=True, slots=True)
class SplitFigures:
    """The figures of a split, or of one dataset's part in it.

    Attributes:
        name: "train", "validation", or the dataset.
        samples: how many.
        tokens, supervised: tokens in all, and those that are targets.
        shortest, median, p95, longest: lengths in tokens.
        packs: rows of `sequence_len` tokens that packing makes of them.
        fill: share of the packs that holds tokens.
    """

    name: str
    samples: int
    tokens: int
    supervised: int
    shortest: int
    median: int
    p95: int
    longest: int
    packs: int
    fill: float

    @property
    def supervised_share(self) -> float:
        return self.supervised / self.tokens if self.tokens else 0.0


def ledgers_of(prepared: PreparedSet) -> list[Ledger]:
    """The account of each dataset, from the manifest."""
    return [Ledger.from_dict(values) for values in prepared.manifest["ledgers"]]


def figures(name: str, split: AnySplit, sequence_len: int, chosen: npt.NDArray[np.bool_] | None = None) -> SplitFigures:
    """The figures of the chosen samples of a split; of all of them by default."""
    lengths = split.lengths if chosen is None else split.lengths[chosen]
    supervised = split.supervised if chosen is None else split.supervised[chosen]
    if not len(lengths):
        return SplitFigures(name, 0, 0, 0, 0, 0, 0, 0, 0, 0.0)
    packs = pack(lengths, max(sequence_len, int(lengths.max())))
    shortest, median, p95, longest = np.percentile(lengths, [0, 50, 95, 100]).round().astype(int).tolist()
    return SplitFigures(
        name,
        samples=len(lengths),
        tokens=int(lengths.sum(dtype=np.int64)),
        supervised=int(supervised.sum(dtype=np.int64)),
        shortest=shortest,
        median=median,
        p95=p95,
        longest=longest,
        packs=len(packs),
        fill=fill(packs, lengths, sequence_len),
    )


def summary(prepared: PreparedSet, sequence_len: int, eval_sequence_len: int) -> Group:
    """The tables of a prepared set: rows by dataset, drops by reason with their places, tokens and lengths by split."""
    ledgers = ledgers_of(prepared)
    parts: list[Table] = [_rows_table(ledgers)]
    if any(ledger.dropped or ledger.cut for ledger in ledgers):
        parts.append(_losses_table(ledgers))
    if repeats := _repeats_table(prepared.manifest):
        parts.append(repeats)
    rows = _split_figures(prepared.train, "train", sequence_len)
    if prepared.validation is not None:
        rows += _split_figures(prepared.validation, "validation", eval_sequence_len)
    parts += [_tokens_table(rows), _lengths_table(rows)]
    return Group(*parts, *_engine_lines(prepared.manifest))


def print_summary(prepared: PreparedSet, resolved: ResolvedRun) -> None:
    """Print `summary` on standard output."""
    Console().print(summary(prepared, resolved.sequence_len, resolved.eval_sequence_len))


def _split_figures(split: AnySplit, name: str, sequence_len: int) -> list[SplitFigures]:
    """A line for each dataset where there are several, then the split itself."""
    sources = np.unique(split.source).tolist()
    parts = [figures(f"  {split.names[source]}", split, sequence_len, split.source == source) for source in sources]
    return [figures(name, split, sequence_len), *(parts if len(parts) > 1 else [])]


def _rows_table(ledgers: Sequence[Ledger]) -> Table:
    table = _table("rows", ["dataset"], ["read", "kept", "dropped", "samples"])
    lines = [(ledger.name, ledger.read, ledger.kept, ledger.num_dropped, ledger.samples) for ledger in ledgers]
    for name, *counts in lines:
        table.add_row(name, *(f"{count:,}" for count in counts))
    if len(lines) > 1:
        totals = [sum(counts) for counts in zip(*(line[1:] for line in lines), strict=True)]
        table.add_section()
        table.add_row("total", *(f"{count:,}" for count in totals))
    return table


def _losses_table(ledgers: Sequence[Ledger]) -> Table:
    table = _table("dropped and cut", ["dataset", "what", "where"], ["rows"])
    for ledger in ledgers:
        for verb, tallies in (("dropped: ", ledger.dropped), ("", ledger.cut)):
            for reason, tally in tallies.items():
                table.add_row(ledger.name, f"{verb}{reason}{_range(tally)}", tally.places, f"{tally.count:,}")
    return table


def _repeats_table(manifest: Mapping[str, Any]) -> Table | None:
    """Rows that nearly repeat others, and test rows that stand in the training data; None where there are none."""
    table = _table("repeated rows", ["what", "for example"], ["rows"])
    near, shared = manifest.get("near_duplicates", {}), manifest.get("eval_overlap", {})
    counts = [
        (f"dropped: alike from {near.get('threshold')} on", near.get("rows", 0), near.get("examples", [])),
        ("test rows that are training rows", shared.get("exact", 0), shared.get("examples", [])),
        ("test rows that are nearly training rows", shared.get("near", 0), shared.get("examples", [])),
    ]
    for what, count, examples in counts:
        if count:
            table.add_row(
                what, "\n".join(f"{_base(one)} = {_base(other)}" for one, other in examples[:3]), f"{count:,}"
            )
    return table if table.row_count else None


def _engine_lines(manifest: Mapping[str, Any]) -> list[str]:
    """What made ids of the texts; once where it is the same for all datasets."""
    engines: Mapping[str, str] = manifest.get("engines", {})
    if len(set(engines.values())) == 1:
        return [f"ids by {engine}" for engine in set(engines.values()) if engine]
    return [f"{name}: ids by {engine}" for name, engine in engines.items() if engine]


def _base(place: str) -> str:
    """A row's place without the folders of its file."""
    return place.rsplit("/", 1)[-1]


def _range(tally: Tally) -> str:
    return f" ({tally.shortest:,} to {tally.longest:,} tokens)" if tally.longest else ""


def _tokens_table(rows: Sequence[SplitFigures]) -> Table:
    table = _table("tokens", ["split"], ["samples", "tokens", "supervised", "share", "packs", "fill"])
    for row in rows:
        counts = (f"{count:,}" for count in (row.samples, row.tokens, row.supervised))
        table.add_row(row.name, *counts, f"{row.supervised_share:.1%}", f"{row.packs:,}", f"{row.fill:.2%}")
    return table


def _lengths_table(rows: Sequence[SplitFigures]) -> Table:
    table = _table("lengths in tokens", ["split"], ["shortest", "median", "95%", "longest"])
    for row in rows:
        table.add_row(row.name, *(f"{length:,}" for length in (row.shortest, row.median, row.p95, row.longest)))
    return table


def _table(title: str, words: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for word in words:
        table.add_column(word, overflow="fold")
    for number in numbers:
        table.add_column(number, justify="right", no_wrap=True)
    return table
