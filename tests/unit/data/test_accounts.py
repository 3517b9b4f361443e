"""Every row is accounted for whatever becomes of its samples; repeats are found among all kinds; no row is parted."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.data.encoded_samples import SAMPLES, content, kinds

from whet.core.errors import DataError
from whet.data import repeats
from whet.data.admission import Strategy
from whet.data.assembly import Assembly, SetOptions, assemble
from whet.data.chunk_file import ChunkFile, ChunkWriter
from whet.data.chunks import Chunk
from whet.data.minhash import signatures
from whet.data.readers import BadRow
from whet.data.sample_table import EncodedChunk, EncodedPart
from whet.data.samples import (
    Encoded,
    EncodedPreference,
    EncodedPrompt,
    EncodedSample,
    EncodedStepwise,
    EncodedUnpaired,
    Kind,
    kind_of,
)

WHERE = {"val_set_size": "a.yaml:9:1", "test_datasets": "a.yaml:5:1"}

Rows = Sequence[Sequence[EncodedSample]]
"""The samples of each row; a row without any is one that could not be encoded."""


def part(folder: Path, name: str, chunks: Sequence[Rows], *, kind: Kind = "tokens", is_test: bool = False) -> Any:
    """A dataset; its rows are numbered from 1 through all of its chunks, each of which begins with a row not read."""
    encoded, first = [], 1
    for number, rows in enumerate(chunks):
        writer = ChunkWriter(kind)
        for line, samples in enumerate(rows):
            if samples:
                writer.add(line, samples)
            else:
                writer.fault(line, "missing field", "")
        account = writer.write(folder, f"{name}-{number}", "by hand")
        chunk = Chunk(f"{name}.jsonl", True, first + 1, "", num_lines=len(rows), faults=((first, BadRow("bad", "")),))
        first += 1 + len(rows)
        encoded.append(EncodedChunk(chunk, account, folder / f"{name}-{number}.arrow"))
    return EncodedPart(name, f"place of {name}", is_test, False, encoded)


def options(**keys: Any) -> SetOptions:
    return SetOptions(**{**dict.fromkeys(("sequence_len", "eval_sequence_len"), 8), **DEFAULTS, **keys})


DEFAULTS = {"excess_length_strategy": "drop", "min_sample_len": 2}


def made(folder: Path, *datasets: Rows, tests: Sequence[Rows] = (), kind: Kind = "tokens", **keys: Any) -> Assembly:
    """A set of datasets of one chunk each."""
    parts = [part(folder, f"d{number}", [rows], kind=kind) for number, rows in enumerate(datasets)]
    parts += [part(folder, f"t{number}", [rows], kind=kind, is_test=True) for number, rows in enumerate(tests)]
    return assemble(parts, options(**keys), WHERE)


def numbers(assembly: Assembly, samples: Any = None) -> list[int]:
    """The numbers of the rows of samples."""
    chosen = assembly.train if samples is None else samples
    return [int(assembly.index["number"][at]) for at in chosen]


def tallies(assembly: Assembly, dataset: int = 0) -> tuple[dict[str, int], dict[str, int]]:
    ledger = assembly.ledgers[dataset]
    dropped = {reason: tally.count for reason, tally in ledger.dropped.items() if reason != "bad"}
    return dropped, {done: tally.count for done, tally in ledger.cut.items()}


def text(*ids: int) -> Encoded:
    return Encoded(np.array(ids, dtype=np.int32), np.ones(len(ids), dtype=np.bool_))


def words(seed: int, length: int = 40) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(0, 30_000, length).tolist()
    return ids


def edited(ids: Sequence[int], at: int = -1) -> list[int]:
    changed = list(ids)
    changed[at] += 1
    return changed


# -- the account -----------------------------------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_every_row_is_kept_or_dropped_for_one_reason_whatever_becomes_of_its_samples(data: st.DataObject) -> None:
    kind = data.draw(kinds)
    rows = st.lists(st.lists(SAMPLES[kind], max_size=3), max_size=4)
    limits = st.integers(2, 10)
    chosen = options(
        sequence_len=data.draw(limits),
        eval_sequence_len=data.draw(limits),
        excess_length_strategy=data.draw(st.sampled_from(get_args(Strategy))),
        exact_deduplication=data.draw(st.booleans()),
        near_deduplication=data.draw(st.sampled_from([None, 0.5])),
        eval_overlap=data.draw(st.sampled_from(["report", "drop"])),
    )
    with tempfile.TemporaryDirectory() as folder:
        parts = [
            part(Path(folder), name, data.draw(st.lists(rows, max_size=2)), kind=kind, is_test=name == "test")
            for name in ("one", "two", "test")
        ]
        try:
            assembly = assemble(parts, chosen, WHERE)
        except DataError as error:
            found = str(error)
            assert "every row of the test datasets is also" in found
            return
    index = assembly.index
    rows_of = list(zip(index["source"].tolist(), index["number"].tolist(), strict=True))
    for number, (ledger, one) in enumerate(zip(assembly.ledgers, parts, strict=True)):
        assert ledger.read == sum(1 + encoded.chunk.num_lines for encoded in one.chunks)
        assert ledger.read == ledger.kept + ledger.num_dropped
        assert ledger.kept == len({row for row in rows_of if row[0] == number})
        assert ledger.samples == sum(source == number for source, _ in rows_of)
        assert all(tally.count <= ledger.read for tally in ledger.cut.values())
        for tally in (*ledger.dropped.values(), *ledger.cut.values()):
            assert len({place for place, _ in tally.examples}) == min(tally.count, 5)


def test_a_row_that_loses_some_samples_is_kept_and_told_of(tmp_path: Path) -> None:
    long, longer, short = text(*range(9)), text(*range(12)), text(1)
    rows = [
        (text(1, 2), long, longer, text(3, 4)),  # kept in part
        (long, short),  # dropped, for the first reason of its kind
        (longer,),
        (text(1, 2), text(5, 6)),  # half a duplicate
        (text(3, 4), text(1, 2)),  # nothing new
    ]
    assembly = made(tmp_path, rows, exact_deduplication=True)
    assert numbers(assembly) == [2, 2, 5]
    assert tallies(assembly) == (
        {"longer than sequence_len": 2, "exact duplicate": 1},
        {"dropped in part: longer than sequence_len": 1, "dropped in part: exact duplicate": 1},
    )
    (ledger,) = assembly.ledgers
    assert (ledger.read, ledger.kept, ledger.num_dropped, ledger.samples) == (6, 2, 4, 3)
    lost = ledger.cut["dropped in part: longer than sequence_len"]
    assert (lost.examples, lost.shortest, lost.longest) == ([("d0.jsonl:2", "9 tokens")], 9, 12)
    assert ledger.dropped["exact duplicate"].examples == [("d0.jsonl:6", "")]


# -- rows that repeat each other -------------------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_of_equal_samples_the_first_stays_in_training_and_in_test_datasets(data: st.DataObject) -> None:
    kind = data.draw(kinds)
    samples = [data.draw(st.lists(SAMPLES[kind], max_size=6)) for _ in range(3)]
    with tempfile.TemporaryDirectory() as name:
        parts = [
            part(Path(name), str(number), [[(one,) for one in part_samples]], kind=kind, is_test=number == 2)
            for number, part_samples in enumerate(samples)
        ]
        keys: dict[str, Any] = {"sequence_len": 99, "eval_sequence_len": 99, "min_sample_len": 0}
        everything = assemble(parts, options(**keys), WHERE)
        distinct = assemble(parts, options(**keys, exact_deduplication=True), WHERE)

    def kept(assembly: Assembly) -> list[tuple[int, int]]:
        return list(zip(assembly.index["source"].tolist(), assembly.index["number"].tolist(), strict=True))

    seen: set[Any] = set()
    firsts = []
    for source, number in kept(everything):
        key = (source == 2, content(samples[source][number - 2]))
        if key not in seen:
            firsts.append((source, number))
        seen.add(key)
    assert kept(distinct) == firsts
    assert distinct.findings.get("eval_overlap", {}).get("rows") == sum(source == 2 for source, _ in firsts)


def both_ways(ids: Sequence[int], other: Sequence[int], kind: Kind) -> tuple[EncodedSample, EncodedSample]:
    """A sample that says two things, and one that says them with a word changed."""
    return sample_of(kind, ids, other), sample_of(kind, edited(ids), other)


def sample_of(kind: Kind, ids: Sequence[int], other: Sequence[int]) -> EncodedSample:
    one, two, three = (np.array(values, np.int32) for values in (ids, other, words(99)))
    flags = np.ones(len(one), dtype=np.bool_)
    made: dict[Kind, EncodedSample] = {
        "tokens": Encoded(one, flags),
        "preference": EncodedPreference(one, two, three),
        "unpaired": EncodedUnpaired(one, two, True),
        "stepwise": EncodedStepwise(one, flags, flags),
        "prompts": EncodedPrompt(one),
    }
    return made[kind]


@pytest.mark.parametrize("kind", get_args(Kind))
def test_near_duplicates_are_found_among_samples_of_every_kind(tmp_path: Path, kind: Kind) -> None:
    first, nearly = both_ways(words(1), words(2), kind)
    unlike = sample_of(kind, words(3), words(4))
    keys: dict[str, Any] = {"kind": kind, "sequence_len": 999, "eval_sequence_len": 999, "near_deduplication": 0.7}
    rows = [(unlike,), (first,), (nearly,)]
    assembly = made(tmp_path, rows, **keys)
    assert numbers(assembly) == [2, 3]
    assert tallies(assembly)[0] == {"near duplicate": 1}
    found = assembly.findings["near_duplicates"]
    assert found == {"threshold": 0.7, "rows": 1, "examples": [("d0.jsonl:4", "d0.jsonl:3")]}
    overlapping = made(tmp_path, [(unlike,), (first,)], tests=[[(nearly,), (unlike,)]], **keys).findings["eval_overlap"]
    assert {key: overlapping[key] for key in ("rows", "exact", "near")} == {"rows": 2, "exact": 1, "near": 1}
    assert overlapping["examples"] == [("t0.jsonl:2", "d0.jsonl:3"), ("t0.jsonl:3", "d0.jsonl:2")]


def test_answers_of_opposite_worth_are_not_alike(tmp_path: Path) -> None:
    prompt, one, other = (np.array(words(n, length), np.int32) for n, length in ((1, 10), (2, 60), (3, 60)))
    keys: dict[str, Any] = {"sequence_len": 999, "near_deduplication": 0.5}
    pairs = [(EncodedPreference(prompt, one, other),), (EncodedPreference(prompt, other, one),)]
    assert numbers(made(tmp_path, pairs, kind="preference", **keys)) == [2, 3]
    judged = [(EncodedUnpaired(prompt, one, True),), (EncodedUnpaired(prompt, one, False),)]
    assert numbers(made(tmp_path, judged, kind="unpaired", **keys)) == [2, 3]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_signatures_are_of_the_ids_that_are_compared(data: st.DataObject) -> None:
    kind = data.draw(kinds)
    samples = data.draw(st.lists(SAMPLES[kind], min_size=1, max_size=6))
    with tempfile.TemporaryDirectory() as name:
        writer = ChunkWriter(kind_of(samples[0]))
        for line, sample in enumerate(samples):
            writer.add(line, (sample,))
        chunk = EncodedChunk(Chunk("a", True, 1, ""), writer.write(Path(name), "x", ""), Path(name) / "x.arrow")
        texts = repeats._Texts([chunk])
        at = np.zeros(len(samples), np.int32), np.arange(len(samples), dtype=np.int32)
        ids, offsets = repeats._flat(ChunkFile(chunk.path))
        read = texts.reader(*at)
        assert [read(row).tolist() for row in range(len(samples))] == [
            ids[begin:end].tolist() for begin, end in itertools.pairwise(offsets.tolist())
        ]
        assert texts.signatures(*at).tolist() == signatures(ids, offsets).tolist()


def test_a_chunk_file_is_opened_once_however_many_pairs_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = words(1)
    parts = [part(tmp_path, "a", [[(text(*edited(one, at)),) for at in range(begin, 40, 2)] for begin in (0, 1)])]
    opened: list[Path] = []

    def opening(path: Path) -> ChunkFile:
        opened.append(path)
        return ChunkFile(path)

    monkeypatch.setattr(repeats, "ChunkFile", opening)
    assembly = assemble(parts, options(sequence_len=99, near_deduplication=0.6), WHERE)
    assert assembly.findings["near_duplicates"]["rows"] > 20
    assert sorted(opened) == [chunk.path for chunk in parts[0].chunks]


# -- training and validation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["random", "tail"])
def test_a_row_of_several_samples_is_trained_on_or_validated_on(tmp_path: Path, way: str) -> None:
    whole = [(text(*range(n, n + 6)), text(n, n + 1)) for n in range(20)]
    cut = [(text(*range(n, n + 20)),) for n in range(100, 120)]
    keys: dict[str, Any] = {"val_set_from": way, "excess_length_strategy": "split", "seed": 3}
    assembly = made(tmp_path, whole, cut, val_set_size=7, eval_sequence_len=8, **keys)
    assert assembly.validation is not None
    sources = assembly.index["source"]
    train, validation = (
        set(zip(sources[samples].tolist(), numbers(assembly, samples), strict=True))
        for samples in (assembly.train, assembly.validation)
    )
    assert not train & validation
    assert len(assembly.train) + len(assembly.validation) == len(sources) == 2 * 20 + 3 * 20


def test_a_row_that_does_not_fit_whole_is_not_validated_on_in_part(tmp_path: Path) -> None:
    rows = [(text(*range(n, n + 10)),) for n in range(5)] + [(text(1, 2, n),) for n in range(50, 55)]
    keys: dict[str, Any] = {"excess_length_strategy": "split", "eval_sequence_len": 4, "val_set_size": 5}
    for way in ("random", "tail"):
        assembly = made(tmp_path, rows, val_set_from=way, **keys)  # pieces of 8 and 2 tokens, and 5 rows of 3
        assert assembly.validation is not None
        assert numbers(assembly, assembly.validation) == [7, 8, 9, 10, 11]
        assert len(assembly.train) == 10
