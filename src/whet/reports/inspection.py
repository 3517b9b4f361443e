"""The conductor: a prepared set -> what is shown of it, in the page or in the terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from whet.config import Config, DatasetConfig
from whet.config.resolve import ResolvedRun
from whet.core.errors import DataError, Problem
from whet.data.duplicates import near_duplicates
from whet.data.ledger import Ledger
from whet.data.minhash import signatures
from whet.data.store import PreparedSet
from whet.data.summary import SplitFigures, figures, ledgers_of
from whet.reports.figures import Histogram, PacksShown, length_histogram, packs_of, share_histogram
from whet.reports.manifest import Finding, engine_notes, findings
from whet.reports.pieces import TokenTexts
from whet.reports.rows import ShownRow, Text, lines_of, make_text, odd
from whet.reports.sampling import Chosen, draw, find
from whet.reports.source_rows import Key, Place, read_rows, split_place
from whet.reports.turns import RowReader, first_tokens

TEMPLATE_ROLE = "template"
STOPS_COUNTED = 8
LIKENESS = 0.8
"""Share of their text from which two rows count as nearly the same (Jaccard); what is usual for deduplication."""


@dataclass(frozen=True, eq=False)
class Inspection:
    """Everything that is shown.

    Attributes:
        name: of the config's file, without its ending.
        facts: what the set was made from and with, as (name, value).
        datasets: their names; rows refer to them by number.
        rows: the chosen samples.
        total: samples in the set.
        splits: figures of each split and of each dataset in it.
        lengths, supervised_shares: of every sample, by split.
        packs: of the first epoch; None where samples are not packed.
        roles: role -> its tokens in the rows shown.
        last_tokens: (text, how often) of the tokens that end what is trained, in the rows shown.
        ledgers: what became of every row, by dataset.
        engines: (dataset, the engine that encoded it and why).
        findings: near-duplicates and the like, where they were looked for.
    """

    name: str
    facts: tuple[tuple[str, str], ...]
    datasets: tuple[str, ...]
    rows: tuple[ShownRow, ...]
    total: int
    splits: tuple[SplitFigures, ...]
    lengths: Histogram
    supervised_shares: Histogram
    packs: PacksShown | None
    roles: Mapping[str, int]
    last_tokens: tuple[tuple[str, int], ...]
    ledgers: tuple[Ledger, ...]
    engines: tuple[tuple[str, str], ...]
    findings: tuple[Finding, ...]


def inspect(
    resolved: ResolvedRun, tokenizer: Any, prepared: PreparedSet, *, rows: int = 1000, row: str | None = None
) -> Inspection:
    """Choose samples of a prepared set and gather what is to be shown.

    Args:
        resolved: the run that the set was prepared for.
        tokenizer: as for the preparation.
        rows: how many samples to show; the documents of the first packs are among them, up to a fifth.
        row: show the samples of this row alone, named as ``chat.jsonl:12``.

    Raises:
        DataError: no sample comes from ``row``.
    """
    splits = {"train": prepared.train} | ({"validation": prepared.validation} if prepared.validation else {})
    packs = packs_of(resolved, prepared.train)
    ledgers = ledgers_of(prepared)
    chosen = _of_row(splits, row, ledgers) if row is not None else _choose(splits, packs, rows, resolved.seed)
    shown = _make_rows(chosen, splits, resolved.config, tokenizer)
    return Inspection(
        name=Path(resolved.config.file).stem or "data",
        facts=_facts(resolved, prepared),
        datasets=tuple(prepared.train.names),
        rows=shown,
        total=sum(map(len, splits.values())),
        splits=_split_figures(splits, resolved),
        lengths=length_histogram({name: split.lengths for name, split in splits.items()}),
        supervised_shares=share_histogram({name: split.supervised / split.lengths for name, split in splits.items()}),
        packs=packs,
        roles=tokens_by_role(shown),
        last_tokens=last_tokens(shown),
        ledgers=tuple(ledgers),
        engines=engine_notes(prepared.manifest),
        findings=findings(prepared.manifest),
    )


def _of_row(splits: Mapping[str, Any], row: str, ledgers: Sequence[Ledger]) -> list[Chosen]:
    if found := find(splits, row):
        return found
    for ledger in ledgers:
        for reason, tally in ledger.dropped.items():
            for place, detail in tally.examples:
                if place == row or place.endswith("/" + row):
                    raise DataError(Problem(place, f"dropped: {reason} ({detail})", "mend the row, or leave it out"))
    example = splits["train"].place(0)
    fix = f"write it as {example}; rows that were dropped are counted by `whet preprocess`, with why"
    raise DataError(Problem(row, "no sample comes from this row", fix))


def _choose(splits: Mapping[str, Any], packs: PacksShown | None, rows: int, seed: int) -> list[Chosen]:
    """A draw over the whole set; where that is not all of it, the documents of the first packs are put to it."""
    packed: dict[Chosen, None] = {}
    if packs is not None and sum(map(len, splits.values())) > rows:
        for pack in packs.first:
            if len(packed) + len(pack) > rows // 5:
                break
            packed |= dict.fromkeys(Chosen("train", sample) for sample in pack)
    order = list(splits)
    chosen = {*packed, *draw(splits, rows - len(packed), seed)}
    return sorted(chosen, key=lambda each: (order.index(each.split), each.number))


def _make_rows(
    chosen: Sequence[Chosen], splits: Mapping[str, Any], config: Config, tokenizer: Any
) -> tuple[ShownRow, ...]:
    readers = [RowReader(dataset, config, tokenizer) for _, _, dataset in _datasets(config)]
    rows = _read_again(chosen, splits, config, readers)
    texts = TokenTexts(tokenizer)
    limits = {name: _very_long(split.lengths) for name, split in splits.items()}
    made = []
    for each in chosen:
        split = splits[each.split]
        row = _make_row(each, split, readers[int(split.source[each.number])], rows.get(each), texts)
        made.append(row.warned("very_long") if row.length > limits[each.split] else row)
    return tuple(_with_likes(made))


def _with_likes(rows: Sequence[ShownRow]) -> list[ShownRow]:
    """The rows, of which those that nearly repeat an earlier one say so; only rows of one text are compared."""
    if any(len(row.texts) != 1 for row in rows) or not rows:
        return list(rows)
    ids = [np.array([token for piece in row.texts[0].pieces for token in piece.ids], np.int32) for row in rows]
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in ids])])
    earlier = near_duplicates(signatures(np.concatenate(ids), offsets), LIKENESS, ids.__getitem__)
    return [
        row if like < 0 else replace(row.warned("near_duplicate"), like=rows[like].place)
        for row, like in zip(rows, earlier.tolist(), strict=True)
    ]


def _make_row(
    each: Chosen, split: Any, reader: RowReader, row: Mapping[str, Any] | None, texts: TokenTexts
) -> ShownRow:
    made: list[Text] = []
    warnings: dict[str, None] = {}
    for line in lines_of(split, each.number, is_split=reader.is_split):
        turns = reader.turns(row, line.ids) if row is not None else ()
        made.append(make_text(line, turns, texts))
        if line.is_target:
            warnings |= dict.fromkeys(odd(made[-1], reader.stops, ends_with_row=not reader.is_split))
    return ShownRow(
        place=split.place(each.number),
        split=each.split,
        number=each.number,
        dataset=int(split.source[each.number]),
        length=int(split.lengths[each.number]),
        supervised=int(split.supervised[each.number]),
        texts=tuple(made),
        warnings=tuple(warnings),
    )


def _read_again(
    chosen: Sequence[Chosen], splits: Mapping[str, Any], config: Config, readers: Sequence[RowReader]
) -> dict[Chosen, Mapping[str, Any]]:
    """The rows that the samples come from, where they are messages and can still be read."""
    found: dict[Chosen, Mapping[str, Any]] = {}
    for source, (key, number, _) in enumerate(_datasets(config)):
        if readers[source].has_turns:
            of_dataset = [each for each in chosen if splits[each.split].source[each.number] == source]
            places = {each: _place(each, splits) for each in of_dataset}
            rows = read_rows(config, key, number, places.values())
            found |= {each: rows[place] for each, place in places.items() if place in rows}
    return found


def _place(each: Chosen, splits: Mapping[str, Any]) -> Place:
    split = splits[each.split]
    return split_place(split.place(each.number), int(split.row[each.number]))


def _datasets(config: Config) -> list[tuple[Key, int, DatasetConfig]]:
    """Every dataset with its key and number in the YAML, in the order in which samples refer to them."""
    keys: tuple[Key, Key] = ("datasets", "test_datasets")
    return [(key, number, dataset) for key in keys for number, dataset in enumerate(getattr(config.data, key))]


def _very_long(lengths: Any) -> float:
    return max(float(np.percentile(lengths, 99)), 2 * float(np.median(lengths))) if len(lengths) else math.inf


def _split_figures(splits: Mapping[str, Any], resolved: ResolvedRun) -> tuple[SplitFigures, ...]:
    """A line for each split, and below it one for each of its datasets where there are several."""
    lines = []
    for name, split in splits.items():
        sequence_len = resolved.sequence_len if name == "train" else resolved.eval_sequence_len
        lines.append(figures(name, split, sequence_len))
        sources = np.unique(split.source).tolist()
        if len(sources) > 1:
            lines += [figures(f"  {split.names[s]}", split, sequence_len, split.source == s) for s in sources]
    return tuple(lines)


def _facts(resolved: ResolvedRun, prepared: PreparedSet) -> tuple[tuple[str, str], ...]:
    config = resolved.config
    return (
        ("config", config.file),
        ("base_model", config.model.base_model),
        ("chat_template", resolved.chat_template),
        ("sequence_len", f"{resolved.sequence_len:,}"),
        ("sample_packing", "true" if resolved.sample_packing else "false"),
        ("seed", str(resolved.seed)),
        ("prepared set", str(prepared.path)),
        ("prepared", str(prepared.manifest.get("created", ""))[:19].replace("T", " ")),
    )


def tokens_by_role(rows: Sequence[ShownRow]) -> dict[str, int]:
    """Role -> tokens, over all texts of the rows whose turns are known; what the template wrote is a role too."""
    counts: Counter[str] = Counter()
    for row in rows:
        for text in row.texts:
            for turn in first_tokens(text.turns, text.kept):
                counts[TEMPLATE_ROLE] += turn.header
                counts[turn.role or TEMPLATE_ROLE] += turn.body
    return {role: count for role, count in counts.most_common() if count}


def last_tokens(rows: Sequence[ShownRow]) -> tuple[tuple[str, int], ...]:
    """The tokens that end a run of trained tokens, by how often: what the model learns to stop with.

    Where `sequence_len` has cut a run, its last token is none that the model should stop with, and is not counted.
    """
    counts: Counter[str] = Counter()
    for row in rows:
        for text in row.texts:
            ends = set(np.flatnonzero(text.supervised & ~np.append(text.supervised[1:], False)).tolist())
            ends -= {text.kept - 1} if text.num_cut else set()
            at = 0
            for piece in text.pieces:
                at += len(piece.ids)
                if at - 1 in ends:
                    counts[piece.text] += 1
    return tuple(counts.most_common(STOPS_COUNTED))
