"""An `Inspection` in the terminal: rows with what is trained in colour, or between marks where there are no colours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from whet.core.secrets import redact
from whet.reports.inspection import Inspection
from whet.reports.pieces import visible
from whet.reports.rows import WARNINGS, ShownRow
from whet.reports.rows import Text as Line

STYLES = {"trained": "green", "not trained": "bright_black", "special": "magenta", "cut away": "strike dim"}

CUT_SHOWN = 200
"""Characters of what was cut away."""

#: Where there are no colours, what is trained and what was cut away stands between these.
MARKS = {"trained": ("[[", "]]"), "cut away": ("~~", "~~")}


def print_inspection(inspection: Inspection, console: Console | None = None) -> None:
    """Print the rows, then the figures of the whole set."""
    console = console or Console(highlight=False)
    colours = console.color_system is not None and not console.no_color
    console.print(_legend(colours))
    for row in inspection.rows:
        console.print(shown_row(row, inspection.datasets, colours), soft_wrap=True)
    console.print(figures_of(inspection))


def shown_row(row: ShownRow, datasets: Sequence[str], colours: bool) -> Group:
    """A row with its head, and its turns below one another."""
    share = row.supervised / row.length if row.length else 0.0
    head = f"\n{row.place}  ({datasets[row.dataset]}, {row.split})  {row.length:,} tokens, {share:.0%} trained"
    parts: list[RenderableType] = [Text(visible(head), style="bold" if colours else "")]
    parts += [Text(f"! {': '.join(WARNINGS[key])}", style="yellow" if colours else "") for key in row.warnings]
    for line in row.texts:
        if line.title:
            parts.append(Text(f"{visible(line.title)}:", style="bold" if colours else ""))
        parts.append(_line(line, colours))
    return Group(*parts)


def _line(line: Line, colours: bool) -> Text:
    shown = Text()
    for kind, text in _runs(line):
        before, after = ("", "") if colours else MARKS.get(kind, ("", ""))
        if kind == "cut away" and len(text) > CUT_SHOWN:
            text = f"{text[:CUT_SHOWN]}... ({line.num_cut:,} tokens)"
        shown.append(f"{before}{visible(text)}{after}", style=STYLES[kind] if colours else "")
    return shown


def _runs(line: Line) -> Iterator[tuple[str, str]]:
    """Neighbouring pieces of one kind, as (kind, text). A special token that is trained is trained."""
    at = 0
    kind, texts = "", [""]
    for piece in line.pieces:
        now = _kind(line, at, piece.special)
        if now != kind and kind:
            yield kind, "".join(texts)
            texts = []
        kind = now
        texts.append(piece.text)
        at += len(piece.ids)
    if kind:
        yield kind, "".join(texts)


def _kind(line: Line, at: int, special: bool) -> str:
    if at >= line.kept:
        return "cut away"
    if line.supervised[at]:
        return "trained"
    return "special" if special else "not trained"


def _legend(colours: bool) -> Text:
    if colours:
        pieces = [part for name, style in STYLES.items() for part in ((name, style), "  ")]
        return Text.assemble(*pieces)
    trained, cut = "".join(MARKS["trained"]), "".join(MARKS["cut away"])
    return Text(f"trained text stands in {trained}, what sequence_len cut away in {cut}")


def figures_of(inspection: Inspection) -> Group:
    """Tables: warnings and roles of the rows shown; splits, packs and what was dropped of the whole set."""
    warnings = Counter(key for row in inspection.rows for key in row.warnings)
    total = sum(inspection.roles.values())
    tables = [
        _table(
            "splits",
            ["split"],
            ["samples", "tokens", "trained", "median", "95%", "longest"],
            [
                (
                    line.name,
                    f"{line.samples:,}",
                    f"{line.tokens:,}",
                    f"{line.supervised_share:.1%}",
                    *(f"{length:,}" for length in (line.median, line.p95, line.longest)),
                )
                for line in inspection.splits
            ],
        ),
        _table(
            "tokens by role, in these rows",
            ["role"],
            ["tokens", "share"],
            [(visible(role), f"{count:,}", f"{count / total:.1%}") for role, count in inspection.roles.items()],
        ),
        _table(
            "where training stops, in these rows",
            ["token"],
            ["times"],
            [(visible(repr(text)[1:-1]), f"{count:,}") for text, count in inspection.last_tokens],
        ),
        _table(
            "warnings, in these rows",
            ["warning"],
            ["rows"],
            [(WARNINGS[key][0], f"{count:,}") for key, count in warnings.most_common()],
        ),
        _table("dropped and cut", ["dataset", "what", "where"], ["rows"], list(_losses(inspection))),
        _table("encoding", ["dataset", "engine"], [], inspection.engines),
        *(_table(f"{each.title}: {each.note}", each.columns, [], each.pairs) for each in inspection.findings),
    ]
    shown: list[RenderableType] = [Text(), *(table for table in tables if table.row_count)]
    if inspection.packs is not None:
        packs = inspection.packs
        shown.append(Text(f"{packs.count:,} packs of {packs.capacity:,} tokens, {packs.fill:.1%} full"))
    return Group(*shown)


def _losses(inspection: Inspection) -> Iterator[tuple[str, ...]]:
    for ledger in inspection.ledgers:
        for verb, tallies in (("dropped: ", ledger.dropped), ("", ledger.cut)):
            for reason, tally in tallies.items():
                yield ledger.name, f"{verb}{reason}", tally.places, f"{tally.count:,}"


def _table(title: str, words: Sequence[str], numbers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=Text(visible(title)), title_justify="left", title_style="bold", header_style="bold")
    for word in words:
        table.add_column(word, overflow="fold")
    for number in numbers:
        table.add_column(number, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(visible(redact(cell))) for cell in row))
    return table
