"""A chunk file gives back what was encoded; what is not whole, or of another, is no chunk file."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.data.encoded_samples import SAMPLES, content, kinds

from whet.core.errors import DataError
from whet.data import chunk_file
from whet.data.chunk_file import ChunkFile, ChunkWriter, Fault, read_account
from whet.data.samples import KINDS, Encoded, EncodedPrompt, EncodedSample, digest, extra

few = settings(max_examples=40, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def without_waiting_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_file, "sync", lambda path: None)
        yield


def written(folder: Path, rows: list[list[EncodedSample]], kind: Any, name: str = "c") -> ChunkFile:
    writer = ChunkWriter(kind)
    for line, samples in enumerate(rows):
        writer.add(2 * line, samples)
    writer.write(folder, name, "by hand")
    return ChunkFile(folder / f"{name}.arrow")


@given(data=st.data())
@few
def test_a_chunk_of_any_kind_reads_as_written(data: st.DataObject) -> None:
    kind = data.draw(kinds)
    rows = data.draw(st.lists(st.lists(SAMPLES[kind], max_size=3), max_size=6))
    with tempfile.TemporaryDirectory() as folder:
        file = written(Path(folder), rows, kind)
        samples = [sample for row in rows for sample in row]
        assert (file.kind if samples else kind) == kind
        assert len(file) == len(samples)
        assert file.line.tolist() == [2 * line for line, row in enumerate(rows) for _ in row]
        assert file.num_tokens.tolist() == [sample.num_tokens for sample in samples]
        assert file.num_supervised.tolist() == [sample.num_supervised for sample in samples]
        assert [row.tobytes() for row in file.digests] == [digest(sample) for sample in samples]
        for at, sample in enumerate(samples):
            for name in KINDS[kind][1]:
                got, expected = file.sequence(name, at), getattr(sample, name)
                assert (got.dtype, got.tolist()) == (expected.dtype, expected.tolist())
            assert file.extra(at) == (orjson.loads(extra(sample)) if extra(sample) else None)
        first = KINDS[kind][1][0]
        flat, offsets = file.flat(first)
        assert [flat[a:b].tolist() for a, b in itertools.pairwise(offsets)] == [
            getattr(sample, first).tolist() for sample in samples
        ]


@given(data=st.data())
@few
def test_what_is_collected_is_what_is_written(data: st.DataObject) -> None:
    """A writer is read in place of its file where nothing is written."""
    kind = data.draw(kinds)
    writer = ChunkWriter(kind)
    for line, sample in enumerate(data.draw(st.lists(SAMPLES[kind], max_size=5))):
        writer.add(line, (sample,))
    with tempfile.TemporaryDirectory() as folder:
        writer.write(Path(folder), "c", "")
        file = ChunkFile(Path(folder, "c.arrow"))
        for name in ("num_supervised", "num_tokens", "line"):
            assert getattr(writer, name).tolist() == getattr(file, name).tolist()
        for row in range(len(file)):
            for name in KINDS[kind][1]:
                assert writer.sequence(name, row).tolist() == file.sequence(name, row).tolist()


@given(data=st.data())
@settings(few, max_examples=200)
def test_digests_are_equal_for_equal_samples_and_no_others(data: st.DataObject) -> None:
    kind = data.draw(kinds)
    one, other = data.draw(SAMPLES[kind]), data.draw(SAMPLES[kind])
    assert (digest(one) == digest(other)) == (content(one) == content(other))


def test_the_same_columns_in_another_order_are_the_same_prompt() -> None:
    ids = np.array([1, 2], np.int32)
    one, other = (
        EncodedPrompt(ids, {"a": 1, "b": {"x": 1, "y": 2}}),
        EncodedPrompt(ids, {"b": {"y": 2, "x": 1}, "a": 1}),
    )
    assert digest(one) == digest(other)


def test_flags_and_ids_that_share_their_bytes_are_told_apart() -> None:
    def sample(ids: list[int], supervised: list[int]) -> Encoded:
        return Encoded(np.array(ids, np.int32), np.array(supervised, np.bool_))

    assert len({digest(sample([0] * n, [0] * n)) for n in range(6)}) == 6
    assert digest(sample([1], [0])) != digest(sample([0], [1]))


def test_a_view_of_ids_has_the_digest_of_its_copy() -> None:
    whole = np.arange(20, dtype=np.int32)
    flags = np.ones(20, np.bool_)
    assert digest(Encoded(whole[3:9:2], flags[3:9:2])) == digest(Encoded(whole[3:9:2].copy(), flags[3:9:2].copy()))


def test_all_samples_of_a_row_have_one_draw_and_equal_rows_have_equal_ones(tmp_path: Path) -> None:
    def sample(*ids: int) -> Encoded:
        return Encoded(np.array(ids, np.int32), np.ones(len(ids), np.bool_))

    rows = [[sample(1, 2), sample(3)], [sample(4)], [sample(1, 2), sample(3)]]
    one, two, three, four, five = written(tmp_path, rows, "tokens").draws.tolist()
    assert one == two == four == five != three


@given(data=st.data())
@few
def test_a_chunk_written_twice_has_the_same_bytes(data: st.DataObject) -> None:
    kind = data.draw(kinds)
    rows = data.draw(st.lists(st.lists(SAMPLES[kind], min_size=1, max_size=2), max_size=4))
    with tempfile.TemporaryDirectory() as folder:
        for name in ("one", "two"):
            written(Path(folder), rows, kind, name)
        assert Path(folder, "one.arrow").read_bytes() == Path(folder, "two.arrow").read_bytes()
        one, two = read_account(Path(folder), "one"), read_account(Path(folder), "two")
        assert one == two
        assert not list(Path(folder).glob(".*"))


def made(folder: Path) -> ChunkWriter:
    writer = ChunkWriter("tokens")
    writer.add(0, (Encoded(np.arange(9, dtype=np.int32), np.ones(9, np.bool_)),))
    writer.add(1, (Encoded(np.arange(3, dtype=np.int32), np.ones(3, np.bool_)),) * 2)
    for line in range(2, 10):
        writer.fault(line, "missing field", f"of {line}")
    writer.fault(10, "left out", "", bad=False)
    return writer


def test_an_account_reads_as_written(tmp_path: Path) -> None:
    account = made(tmp_path).write(tmp_path, "c", "tokenizers: no reason")
    assert read_account(tmp_path, "c") == account
    assert (account.kind, account.rows, account.samples, account.engine) == ("tokens", 11, 3, "tokenizers: no reason")
    assert account.faults == {
        "missing field": Fault(8, [(line, f"of {line}") for line in range(2, 7)]),
        "left out": Fault(1, [(10, "")], bad=False),
    }


def test_a_file_that_is_not_what_was_written_has_no_account(tmp_path: Path) -> None:
    assert read_account(tmp_path, "c") is None
    account = made(tmp_path).write(tmp_path, "c", "")
    arrow, record = tmp_path / "c.arrow", tmp_path / "c.json"
    data, text, status = arrow.read_bytes(), record.read_bytes(), arrow.stat()

    arrow.write_bytes(data[:-1])
    assert read_account(tmp_path, "c") is None  # cut off
    arrow.write_bytes(bytes(reversed(data)))
    assert read_account(tmp_path, "c") is None  # another file of this length
    arrow.write_bytes(data)
    assert read_account(tmp_path, "c") == account  # a copy
    assert arrow.stat().st_mtime_ns == status.st_mtime_ns  # which need not be hashed again
    arrow.unlink()
    assert read_account(tmp_path, "c") is None
    arrow.write_bytes(data)
    written = json.loads(text)
    others = [json.dumps({**written, **change}).encode() for change in ({"more": 1}, {"faults": 3})]
    for broken in (b"", b"{}", b"[1]", b"3", text[:-5], *others):
        record.write_bytes(broken)
        assert read_account(tmp_path, "c") is None
    record.unlink()
    assert read_account(tmp_path, "c") is None


def test_an_arrow_file_without_an_account_is_replaced(tmp_path: Path) -> None:
    """As a process leaves it that is killed between the two."""
    (tmp_path / "c.arrow").write_bytes(b"half")
    account = made(tmp_path).write(tmp_path, "c", "")
    assert read_account(tmp_path, "c") == account
    assert len(ChunkFile(tmp_path / "c.arrow")) == 3


def test_a_linked_file_keeps_its_bytes_when_the_pool_writes_another(tmp_path: Path) -> None:
    made(tmp_path).write(tmp_path, "c", "")
    os.link(tmp_path / "c.arrow", tmp_path / "linked.arrow")
    before = (tmp_path / "linked.arrow").read_bytes()
    ChunkWriter("tokens").write(tmp_path, "c", "")
    assert (tmp_path / "linked.arrow").read_bytes() == before


def test_a_broken_chunk_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    made(tmp_path).write(tmp_path, "c", "")
    (tmp_path / "c.arrow").write_bytes((tmp_path / "c.arrow").read_bytes()[:100])
    with pytest.raises(DataError, match=r"c\.arrow: the prepared samples cannot be read .* -> delete this folder"):
        ChunkFile(tmp_path / "c.arrow")
    with pytest.raises(DataError, match=r"nothing\.arrow"):
        ChunkFile(tmp_path / "nothing.arrow")
