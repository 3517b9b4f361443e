"""The chunks of a source hold its rows, each once and in order, and an edit changes the chunk that it is in alone."""

from __future__ import annotations

import gzip
import io
import json
import random
import tracemalloc

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.config import DatasetConfig
from whet.core.errors import DataError
from whet.data.chunks import CUT, Cut, Line, chunks_of_lines, chunks_of_stream
from whet.data.readers import BadRow
from whet.data.sources import locate

SMALL = Cut(least=60, most=120, every=40)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def source(path, **options):
    return locate(DatasetConfig(path=str(path), **options), "a.yaml:3:5")


def chunks(path, **options):
    return list(source(path, **options).chunks())


def rows_of(chunks):
    return [row for chunk in chunks for row in chunk.rows()]


def many_rows(num_bytes):
    """Rows of a chat's usual sizes."""
    random_numbers = random.Random(3)
    rows, size = [], 0
    while size < num_bytes:
        text = random_numbers.randbytes(random_numbers.randrange(50, 1500)).hex()
        rows.append(orjson.dumps({"text": text, "number": len(rows)}) + b"\n")
        size += len(rows[-1])
    return rows


line_of_text = st.binary(max_size=90).map(lambda text: text.replace(b"\n", b"") + b"\n")


@given(st.lists(line_of_text), st.booleans())
def test_chunks_of_a_stream_hold_every_line_once(lines, whole):
    text = b"".join(lines)
    if not whole:
        text = text.removesuffix(b"\n")
    found = list(chunks_of_stream(io.BytesIO(text), "a.jsonl", cut=SMALL))
    by_number = {}
    for chunk in found:
        of_chunk = chunk.load().split(b"\n")[:-1]
        assert len(of_chunk) == chunk.num_lines
        by_number |= dict(enumerate(of_chunk, start=chunk.first))
    content = text.removeprefix(b"\xef\xbb\xbf")
    expected = dict(enumerate(content.split(b"\n"), start=1))
    assert {number: line for number, line in by_number.items() if line.strip()} == {
        number: line for number, line in expected.items() if line.strip()
    }


@given(st.lists(line_of_text.filter(lambda line: not line.isspace() and not line.startswith(b"\xef"))))
def test_a_stream_and_its_lines_one_by_one_are_cut_at_the_same_places(lines):
    streamed = chunks_of_stream(io.BytesIO(b"".join(lines)), "a", cut=SMALL)
    listed = chunks_of_lines((Line(number, "a", line) for number, line in enumerate(lines, start=1)), SMALL)
    assert [(chunk.first, chunk.digest) for chunk in streamed] == [(chunk.first, chunk.digest) for chunk in listed]


def test_chunks_of_a_file_are_spans_of_three_to_six_megabytes(in_empty_folder):
    rows = many_rows(20 << 20)
    (in_empty_folder / "a.jsonl").write_bytes(b"".join(rows))
    found = chunks("a.jsonl")
    sizes = [end - begin for _, begin, end in (chunk.span for chunk in found)]
    assert sum(sizes) == sum(map(len, rows))
    assert all(CUT.least < size <= CUT.most for size in sizes[:-1])
    assert [chunk.lines for chunk in found] == [None] * len(found)
    assert [row.value["number"] for row in rows_of(found)] == list(range(len(rows)))
    assert [row.number for row in rows_of(found)] == list(range(1, len(rows) + 1))


@pytest.mark.parametrize("edit", ["changed", "inserted", "removed"])
def test_an_edited_row_changes_the_digest_of_its_own_chunk_alone(in_empty_folder, edit):
    rows = many_rows(20 << 20)
    file = in_empty_folder / "a.jsonl"

    def digests():
        file.write_bytes(b"".join(rows))
        return {chunk.digest for chunk in chunks("a.jsonl")}

    before = digests()
    middle = len(rows) // 2
    if edit == "changed":
        rows[middle] = b'{"text": "another"}\n'
    elif edit == "inserted":
        rows.insert(middle, b'{"text": "new"}\n')
    else:
        del rows[middle]
    after = digests()
    assert len(before) >= 5
    assert 1 <= len(after - before) <= 2


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.txt"])
def test_the_memory_of_a_scan_is_that_of_some_chunks_whatever_the_file(in_empty_folder, name):
    def peak(num_copies):
        content = b"".join(many_rows(5 << 20)) * num_copies
        (in_empty_folder / name).write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)
        del content
        tracemalloc.start()
        for _ in source(name).chunks():
            pass
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(1)
    assert peak(8) < peak(4) + CUT.most


def test_lines_longer_than_a_chunk_are_chunks_of_their_own():
    lines = [b"a\n", b"b" * 500 + b"\n", b"c\n", b"d" * 500]
    found = list(chunks_of_stream(io.BytesIO(b"".join(lines)), "a", cut=SMALL))
    assert [chunk.load() for chunk in found] == [b"a\n", b"b" * 500 + b"\n", b"c\n", b"d" * 500 + b"\n"]
    assert [chunk.first for chunk in found] == [1, 2, 3, 4]


def test_equal_rows_have_equal_digests_wherever_they_stand(in_empty_folder):
    text = b'{"a": 1}\n{"a": 2}\n'
    (in_empty_folder / "a.jsonl").write_bytes(text)
    (in_empty_folder / "unended.jsonl").write_bytes(text.removesuffix(b"\n"))
    (in_empty_folder / "marked.jsonl").write_bytes(b"\xef\xbb\xbf" + text)
    (in_empty_folder / "lines.json").write_bytes(text)
    (in_empty_folder / "a.jsonl.gz").write_bytes(gzip.compress(text))
    (in_empty_folder / "longer.jsonl").write_bytes(b'{"a": 0}\n' + text)
    names = ("a.jsonl", "unended.jsonl", "marked.jsonl", "lines.json", "a.jsonl.gz")
    assert len({chunk.digest for name in names for chunk in chunks(name)}) == 1
    (sliced,) = chunks("longer.jsonl", split="train[1:]")
    assert sliced.digest == chunks("a.jsonl")[0].digest
    assert [row.place for row in sliced.rows()] == ["longer.jsonl:2", "longer.jsonl:3"]


def test_the_rows_of_chunks_are_those_of_the_source(in_empty_folder):
    (in_empty_folder / "a.jsonl").write_bytes(b'\xef\xbb\xbf\n{"a": 1}\r\n\n{"a": 2,}\n[3]\n\xff\n{"a": 4}')
    (in_empty_folder / "list.jsonl").write_text('[\n{"a": 1}\n]')
    (in_empty_folder / "a.json").write_text('[{"a": 1}, 2, {"a": [null]}]')
    (in_empty_folder / "lines.json").write_text('\n{"a": 1}\n\n{"a": 2}')
    (in_empty_folder / "a.csv").write_text('x,y\n"two\nlines",1\nb,2,3\n\nc,4\n')
    (in_empty_folder / "a.txt").write_bytes(b"one\n\n\xff\ntwo")
    pq.write_table(pa.table({"a": list(range(2500))}), in_empty_folder / "a.parquet")
    names = ("a.jsonl", "list.jsonl", "a.json", "lines.json", "a.csv", "a.txt", "a.parquet")
    for name in names:
        for options in ({}, {"split": "train[1:]"}, {"shards": 2}, {"split": "train[-2:]"}):
            assert rows_of(chunks(name, **options)) == list(source(name, **options).rows()), (name, options)


def test_a_folder_s_chunks_never_span_files(in_empty_folder):
    (in_empty_folder / "rows").mkdir()
    for name in ("b", "a"):
        (in_empty_folder / f"rows/{name}.jsonl").write_text('{"n": 1}\n{"n": 2}\n')
    for options in ({}, {"shards": 2}):
        assert [chunk.file for chunk in chunks("rows", **options)] == ["rows/a.jsonl", "rows/b.jsonl"]


def test_a_row_that_json_cannot_hold_is_a_bad_row(in_empty_folder):
    line = Line(1, "a", BadRow("cannot be written as JSON", "Integer exceeds 64-bit range"))
    pq.write_table(pa.table({"a": pa.array([10**25], pa.decimal128(30))}), in_empty_folder / "a.parquet")
    assert [row.value for row in rows_of(chunks("a.parquet"))] == [{"a": str(10**25)}]
    (found,) = chunks_of_lines([line])
    assert (found.load(), [row.value for row in found.rows()]) == (b"", [line.value])


def test_columns_of_json_bytes_and_maps_are_the_values_that_were_written(in_empty_folder):
    datasets = pytest.importorskip("datasets")
    tools = [{"name": "f", "parameters": {"default": None}}, {"other": 1}]
    features = datasets.Features({"tools": datasets.List(datasets.Json())})
    saved = datasets.Dataset.from_dict({"tools": [tools, []]}, features=features)
    table = saved.data.table.append_column("text", [pa.array(["né".encode(), b"\xff"], pa.binary())])
    pairs = pa.array([[("a", 1), ("b", None)], None], pa.map_(pa.string(), pa.int64()))
    pq.write_table(table.append_column("map", [pairs]), in_empty_folder / "a.parquet")
    saved.save_to_disk("saved")
    assert [row.value for row in rows_of(chunks("a.parquet"))] == [
        {"tools": tools, "text": "né", "map": {"a": 1, "b": None}},
        {"tools": [], "text": "<1 bytes>", "map": None},
    ]
    assert [row.value for row in rows_of(chunks("saved"))] == [{"tools": tools}, {"tools": []}]


def test_structs_of_columns_lose_the_nulls_that_the_columns_gave_them(in_empty_folder):
    tool = {"name": "f", "parameters": {"properties": {"x": {"type": "string"}}}}
    other = {"name": "g", "parameters": {"properties": {"y": {"type": "number"}}}}
    rows = [{"tools": [tool, other], "note": None}, {"tools": [], "note": "n"}]
    pq.write_table(pa.Table.from_pylist(rows), in_empty_folder / "a.parquet")
    assert [row.value for row in rows_of(chunks("a.parquet"))] == rows
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_parquet("a.parquet", cache_dir=str(in_empty_folder / "cache")).save_to_disk("saved")
    assert [row.value for row in rows_of(chunks("saved"))] == rows


def test_a_chunk_whose_file_changed_is_an_error(in_empty_folder):
    file = in_empty_folder / "a.jsonl"
    file.write_text('{"a": 1}\n')
    (found,) = chunks("a.jsonl")
    file.write_text('{"a": 2}\n')
    with pytest.raises(DataError, match=r"^a\.jsonl: the file changed while it was read -> run it again when"):
        found.load()
    file.unlink()
    with pytest.raises(DataError, match=r"^a\.jsonl: cannot be read \(No such file"):
        list(found.rows())


def test_a_file_of_blank_lines_has_no_chunks(in_empty_folder):
    (in_empty_folder / "a.jsonl").write_text("\n \n\n")
    assert chunks("a.jsonl") == []


def test_numbers_survive_a_row_that_could_not_be_read_at_the_beginning(in_empty_folder):
    (in_empty_folder / "a.csv").write_text("a\n1,2\n3\n")
    assert [(row.number, type(row.value)) for row in rows_of(chunks("a.csv"))] == [(2, BadRow), (3, dict)]
    assert json.loads(chunks("a.csv")[0].load()) == {"a": "3"}
