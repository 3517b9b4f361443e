"""Encoded chunks become a set: limits, duplicates and the two splits, every row of them accounted for."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.core.errors import DataError
from whet.data import chunk_file
from whet.data.assembly import Assembly, SetOptions, assemble
from whet.data.chunk_file import ChunkWriter
from whet.data.chunks import Chunk
from whet.data.holdout import draw_validation, drawn
from whet.data.sample_table import EncodedChunk, EncodedPart
from whet.data.samples import Encoded, EncodedSample, Kind, kind_of

WHERE = {"val_set_size": "a.yaml:9:1", "test_datasets": "a.yaml:7:1"}

#: A row is the list of its samples, or None if it could not be encoded.
Row = list[EncodedSample] | None


@pytest.fixture(autouse=True, scope="module")
def without_waiting_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_file, "sync", lambda path: None)
        yield


def text(*ids: int) -> list[EncodedSample]:
    return [Encoded(np.array(ids, np.int32), np.ones(len(ids), np.bool_))]


def options(**changed: Any) -> SetOptions:
    defaults = {"sequence_len": 10, "eval_sequence_len": 10, "excess_length_strategy": "drop", "min_sample_len": 2}
    return SetOptions(**{**defaults, **changed})


def part(folder: Path, name: str, rows: Sequence[Row], sizes: Sequence[int] = (), **about: Any) -> EncodedPart:
    """A dataset of one file, in chunks of these many rows (all that are left in the last)."""
    chunks, first = [], 0
    bounds = [*np.cumsum(sizes).tolist(), len(rows)] if len(rows) else []
    for number, end in enumerate(min(bound, len(rows)) for bound in bounds):
        mine = rows[first:end]
        kind: Kind = next((kind_of(row[0]) for row in rows if row), "tokens")
        writer = ChunkWriter(kind)
        for line, row in enumerate(mine):
            if row is None:
                writer.fault(line, "missing field", "x")
            else:
                writer.add(line, row)
        account = writer.write(folder / name, str(number), "")
        chunk = Chunk(f"{name}.jsonl", True, first + 1, str(number))
        chunks.append(EncodedChunk(chunk, account, folder / name / f"{number}.arrow"))
        first = end
    return EncodedPart(name, "", about.pop("is_test", False), about.pop("cuts_long_rows", False), chunks)


def rows_of(assembly: Assembly, which: str = "train") -> list[tuple[int, int]]:
    """(source, row number) of the samples of a split."""
    samples = getattr(assembly, which)
    return list(
        zip(assembly.index["source"][samples].tolist(), assembly.index["number"][samples].tolist(), strict=True)
    )


def dropped(assembly: Assembly, part: int = 0) -> dict[str, int]:
    return {reason: tally.count for reason, tally in assembly.ledgers[part].dropped.items()}


few_ids = st.lists(st.integers(0, 2), min_size=1, max_size=14)
some_rows = st.lists(st.one_of(st.none(), few_ids.map(lambda ids: text(*ids))), min_size=1, max_size=12)
cuts = st.lists(st.integers(0, 4), max_size=3)


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_every_row_is_kept_or_dropped(data: st.DataObject) -> None:
    chosen = options(
        excess_length_strategy=data.draw(st.sampled_from(["drop", "truncate", "split"])),
        exact_deduplication=data.draw(st.booleans()),
        min_sample_len=data.draw(st.integers(0, 3)),
        sequence_len=data.draw(st.integers(2, 14)),
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = [data.draw(some_rows), data.draw(some_rows)]
        parts = [
            part(Path(folder), name, mine, data.draw(cuts), cuts_long_rows=name == "b" and data.draw(st.booleans()))
            for name, mine in zip("ab", rows, strict=True)
        ]
        assembly = assemble(parts, chosen, WHERE)
        for number, (ledger, mine) in enumerate(zip(assembly.ledgers, rows, strict=True)):
            assert ledger.read == len(mine) == ledger.kept + ledger.num_dropped
            assert ledger.samples == np.count_nonzero(assembly.index["source"] == number)
            assert ledger.kept == len({row for source, row in rows_of(assembly) if source == number})
        lengths = assembly.index["end"] - assembly.index["begin"]
        assert (lengths <= chosen.sequence_len).all()
        assert (assembly.index["num_supervised"] > 0).all()
        assert assembly.train.tolist() == list(range(len(lengths)))
        assert assembly.validation is None
        if chosen.exact_deduplication:
            kept: Any = [rows[source][row - 1] for source, row in dict.fromkeys(rows_of(assembly))]
            keys = [tuple(sample.input_ids.tolist()) for (sample,) in kept]
            assert len(set(keys)) == len(keys)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_of_equal_rows_the_first_stays(data: st.DataObject) -> None:
    rows = [
        [text(*ids) for ids in data.draw(st.lists(few_ids.map(lambda i: [9, *i]), min_size=1, max_size=8))]
        for _ in "ab"
    ]
    with tempfile.TemporaryDirectory() as folder:
        parts = [part(Path(folder), name, mine, data.draw(cuts)) for name, mine in zip("ab", rows, strict=True)]
        assembly = assemble(parts, options(exact_deduplication=True, sequence_len=20), WHERE)
        seen: set[tuple[int, ...]] = set()
        kept = []
        for source, mine in enumerate(rows):
            for number, (sample,) in enumerate(mine, start=1):
                key = tuple(sample.input_ids.tolist())  # type: ignore[union-attr]
                if key not in seen:
                    kept.append((source, number))
                seen.add(key)
        assert rows_of(assembly) == kept
        total = sum(map(len, rows))
        assert sum(dropped(assembly, n).get("exact duplicate", 0) for n in (0, 1)) == total - len(kept)


def test_a_row_cut_in_pieces_is_a_duplicate_once(tmp_path: Path) -> None:
    long = text(*range(25))
    parts = [part(tmp_path, "a", [long, text(1, 2), long], cuts_long_rows=True)]
    assembly = assemble(parts, options(exact_deduplication=True), WHERE)
    assert rows_of(assembly) == [(0, 1)] * 3 + [(0, 2)]
    assert dropped(assembly) == {"exact duplicate": 1}
    assert (assembly.ledgers[0].kept, assembly.ledgers[0].samples) == (2, 4)


def words(seed: int, count: int = 200, changed: int = 0) -> list[EncodedSample]:
    ids = np.random.default_rng(seed).integers(0, 5000, count)
    ids[:changed] = 7000 + np.arange(changed)
    return text(*ids.tolist())


def test_rows_that_nearly_repeat_another_are_dropped_and_named(tmp_path: Path) -> None:
    rows = [words(1), words(2), words(1, changed=3), words(3), words(1, changed=150)]
    chosen = options(near_deduplication=0.8, sequence_len=500)
    assembly = assemble([part(tmp_path, "a", rows, [2])], chosen, WHERE)
    assert rows_of(assembly) == [(0, 1), (0, 2), (0, 4), (0, 5)]
    assert assembly.ledgers[0].dropped["near duplicate"].examples == [("a.jsonl:3", "nearly repeats a.jsonl:1")]
    assert assembly.findings["near_duplicates"] == {
        "threshold": 0.8,
        "rows": 1,
        "examples": [("a.jsonl:3", "a.jsonl:1")],
    }


@pytest.mark.parametrize("near", [None, 0.8])
def test_test_rows_of_the_training_rows_are_told_dropped_or_refused(tmp_path: Path, near: float | None) -> None:
    train = part(tmp_path, "a", [words(n) for n in range(4)])
    test = part(tmp_path, "b", [words(8), words(2), words(3, changed=3)], is_test=True)
    common = {"near_deduplication": near, "sequence_len": 500, "eval_sequence_len": 500}
    told = assemble([train, test], options(**common), WHERE)
    assert rows_of(told, "validation") == [(1, 1), (1, 2), (1, 3)]
    found = told.findings["eval_overlap"]
    assert (found["rows"], found["exact"], found["near"]) == (3, 1, 0 if near is None else 1)
    left = assemble([train, test], options(**common, eval_overlap="drop"), WHERE)
    assert rows_of(left, "validation") == ([(1, 1), (1, 3)] if near is None else [(1, 1)])
    assert dropped(left, 1) == {"also in the training data": 1 if near is None else 2}
    assert len(left.train) == 4
    with pytest.raises(
        DataError, match=r"^a\.yaml:7:1: [12] test rows are training rows too \(b\.jsonl:[23] = a\.json"
    ):
        assemble([train, test], options(**common, eval_overlap="raise"), WHERE)


def test_nothing_left_to_test_on_is_an_error(tmp_path: Path) -> None:
    parts = [part(tmp_path, "a", [text(1, 2)]), part(tmp_path, "b", [text(1, 2)], is_test=True)]
    for deduplicated in (False, True):
        chosen = options(exact_deduplication=deduplicated, eval_overlap="drop")
        with pytest.raises(DataError, match="every row of the test datasets is also a row of the training datasets"):
            assemble(parts, chosen, WHERE)


def test_test_datasets_have_their_own_limit(tmp_path: Path) -> None:
    parts = [part(tmp_path, "a", [text(*range(8))]), part(tmp_path, "b", [text(*range(9))], is_test=True)]
    assembly = assemble(parts, options(sequence_len=8, eval_sequence_len=9), WHERE)
    assert (rows_of(assembly), rows_of(assembly, "validation")) == ([(0, 1)], [(1, 1)])


# -- the validation split ----------------------------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_equal_rows_and_pieces_of_a_row_are_never_parted(data: st.DataObject) -> None:
    rows = [text(9, *ids) for ids in data.draw(st.lists(few_ids, min_size=2, max_size=10))]
    size = data.draw(st.sampled_from([0.2, 0.5, 2, 3]))
    with tempfile.TemporaryDirectory() as folder:
        parts = [part(Path(folder), "a", rows, data.draw(cuts), cuts_long_rows=True)]
        chosen = options(sequence_len=4, val_set_size=size, seed=data.draw(st.integers(0, 3)))
        try:
            assembly = assemble(parts, chosen, WHERE)
        except DataError as error:
            assert "nothing is left to train on" in str(error)  # noqa: PT017
            return
    texts = {
        which: {tuple(rows[row - 1][0].input_ids.tolist()) for _, row in rows_of(assembly, which)}  # type: ignore[union-attr]
        for which in ("train", "validation")
    }
    assert texts["train"]
    assert texts["validation"]
    assert not texts["train"] & texts["validation"]
    assert len(assembly.validation) >= (max(1, round(size * len(assembly.index["row"]))) if size < 1 else size)  # type: ignore[arg-type]
    both = [*assembly.train.tolist(), *assembly.validation.tolist()]  # type: ignore[union-attr]
    assert sorted(both) == list(range(len(assembly.index["row"])))


@given(st.permutations(range(12)), st.integers(0, 12), st.lists(st.integers(1, 4), max_size=3))
@settings(max_examples=40, deadline=None)
def test_the_same_rows_are_drawn_in_whatever_order_and_files(order: list[int], at: int, sizes: list[int]) -> None:
    rows = [text(n, n + 1, n + 2) for n in range(12)]

    def validated(*parts: tuple[str, list[int]]) -> set[int]:
        with tempfile.TemporaryDirectory() as folder:
            made = [part(Path(folder), name, [rows[n] for n in numbers], sizes) for name, numbers in parts if numbers]
            assembly = assemble(made, options(val_set_size=4, seed=5), WHERE)
            listed = [numbers for _, numbers in parts if numbers]
            return {listed[source][row - 1] for source, row in rows_of(assembly, "validation")}

    assert validated(("a", order[:at]), ("b", order[at:])) == validated(("c", list(range(12))))


def test_the_tail_parts_no_row(tmp_path: Path) -> None:
    rows = [text(n, *range(1, length)) for n, length in enumerate((4, 9, 4, 11))]
    parts = [part(tmp_path, "a", rows, cuts_long_rows=True)]
    for size, expected in ((1, [4]), (3, [4]), (4, [3, 4]), (5, [2, 3, 4])):
        chosen = options(sequence_len=4, val_set_size=size, val_set_from="tail")
        assembly = assemble(parts, chosen, WHERE)
        assert sorted({row for _, row in rows_of(assembly, "validation")}) == expected
        assert sorted({row for _, row in rows_of(assembly)} | set(expected)) == [1, 2, 3, 4]
        assert not {row for _, row in rows_of(assembly)} & set(expected)


def test_the_answers_of_a_conversation_stay_together_in_the_tail(tmp_path: Path) -> None:
    """Answers that are samples of their own are several rows of the file."""
    rows: list[Row] = [[*text(1, 2), *text(1, 2, 3)], [*text(4, 5), *text(4, 5, 6)]]
    assembly = assemble([part(tmp_path, "a", rows)], options(val_set_size=2, val_set_from="tail"), WHERE)
    assert rows_of(assembly, "validation") == [(0, 2)] * 2
    assembly = assemble([part(tmp_path, "a", rows)], options(val_set_size=1, val_set_from="tail"), WHERE)
    assert rows_of(assembly, "validation") == [(0, 2)] * 2


@given(
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=12),
    st.one_of(st.sampled_from([0.1, 0.5]), st.integers(1, 8)),
)
def test_what_is_drawn_has_the_smallest_draws_that_may_be_taken(rows: list[tuple[int, bool]], size: float) -> None:
    draws, allowed = np.array([draw for draw, _ in rows], np.uint64), np.array([may for _, may in rows])
    try:
        train, validation = draw_validation(draws, allowed, size, "here")
    except DataError as error:
        count = max(1, round(len(rows) * size)) if size < 1 else int(size)
        # Only where there are too few, or where nothing would be left.
        may_be_taken = [draw for draw, _ in rows if (draw, False) not in rows]
        rest = {draw for draw, _ in rows} - set(sorted(may_be_taken)[:count])
        assert count >= len(rows) or count > len(may_be_taken) or not rest, error  # noqa: PT017
        return
    assert len(train)
    assert len(validation)
    assert len(train) + len(validation) == len(rows)
    assert allowed[validation].all()
    left = [draw for draw, _ in rows if (draw, False) not in rows and draw not in draws[validation]]
    assert draws[validation].max() < min(left, default=99)
    assert not set(draws[validation].tolist()) & set(draws[train].tolist())


def test_validation_never_takes_everything() -> None:
    for draws, told in ((np.arange(5), "takes all 5 samples, nothing"), (np.zeros(6), "the rows are equal, nothing")):
        with pytest.raises(DataError, match=rf"^a\.yaml:9:1: val_set_size 5 .*{told} is left to train on"):
            draw_validation(draws.astype(np.uint64), np.ones(len(draws), bool), 5, "a.yaml:9:1")


def test_draws_depend_on_the_seed_and_spread_evenly() -> None:
    content = np.arange(4000, dtype=np.uint64)
    one, other = drawn(content, 1), drawn(content, 2)
    assert len(set(one.tolist())) == 4000
    assert abs(float((one < other).mean()) - 0.5) < 0.05
    assert abs(float((one < np.uint64(2**63)).mean()) - 0.5) < 0.05


def test_each_dataset_is_shuffled_within_itself(tmp_path: Path) -> None:
    parts = [part(tmp_path, name, [text(n, 1, 2) for n in range(30)], [7, 7]) for name in "ab"]
    plain = assemble(parts, options(), WHERE)
    shuffled = assemble(parts, options(shuffle_before_merging=True, seed=3), WHERE)
    assert sorted(rows_of(shuffled)) == rows_of(plain)
    assert rows_of(shuffled) != rows_of(plain)
    assert [source for source, _ in rows_of(shuffled)] == [0] * 30 + [1] * 30
    again = assemble(parts, options(shuffle_before_merging=True, seed=4), WHERE)
    assert rows_of(again) != rows_of(shuffled)
