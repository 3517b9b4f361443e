"""What users have instead of rows: every mistake is an error that says where it is and what to do."""

from __future__ import annotations

import bz2
import gzip
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from whet.config import DatasetConfig
from whet.core.errors import DataError
from whet.data.sources import locate

LINES = b"".join(b'{"text": "row %d"}\n' % number for number in range(20_000))


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parquet():
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": [f"row {number}" for number in range(20_000)]}), sink)
    return sink.getvalue().to_pybytes()


def chunks(path, **options):
    return list(locate(DatasetConfig(path=str(path), **options), "a.yaml:3:5").chunks())


BROKEN = {
    "cut.jsonl.gz": gzip.compress(LINES)[:-500],
    "unended.jsonl.gz": gzip.compress(LINES)[:-4],
    "cut.csv.zst": pa.Codec("zstd").compress(LINES, asbytes=True)[:-300],
    "cut.json.bz2": bz2.compress(LINES)[:-300],
    "other.jsonl.gz": LINES,
    "cut.parquet": parquet()[:-100],
    "middle.parquet": parquet()[:200] + b"\xff" * 200 + parquet()[400:],
    "empty.parquet": b"",
    "empty.arrow": b"",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_not_whole_is_named(in_empty_folder, name):
    (in_empty_folder / name).write_bytes(BROKEN[name])
    with pytest.raises(
        DataError, match=rf"^{name}: cannot be read \(.+\) -> check that the file is whole and may be r"
    ):
        chunks(name)


def test_files_compressed_in_several_parts_are_read_whole(in_empty_folder):
    half = len(LINES) // 2
    (in_empty_folder / "a.jsonl.gz").write_bytes(gzip.compress(LINES[:half]) + gzip.compress(LINES[half:]))
    assert sum(len(list(chunk.rows())) for chunk in chunks("a.jsonl.gz")) == 20_000


def test_a_file_that_may_not_be_read_is_named(in_empty_folder, monkeypatch):
    (in_empty_folder / "a.jsonl").write_bytes(LINES)

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(DataError, match=r"^a\.jsonl: cannot be read \(Permission denied\) -> check that the file is"):
        chunks("a.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_file_that_is_written_to_while_it_is_read_is_an_error(in_empty_folder, name):
    content = LINES * 20
    (in_empty_folder / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    reading = locate(DatasetConfig(path=name), "").chunks()
    next(reading)
    with (in_empty_folder / name).open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(
        DataError, match=rf"^{name}: (the file changed while it was read -> run it again|cannot be read)"
    ):
        list(reading)


def test_a_pipe_is_refused_and_not_waited_for(in_empty_folder):
    os.mkfifo("pipe.jsonl")
    message = r"^a\.yaml:3:5: 'pipe\.jsonl' is no regular file -> write the rows to a file"
    with pytest.raises(DataError, match=message):
        chunks("pipe.jsonl")
    with pytest.raises(DataError, match=message):
        chunks("json", data_files="pipe.jsonl")


def test_a_link_to_nowhere_says_so(in_empty_folder):
    (in_empty_folder / "a.jsonl").symlink_to("nowhere.jsonl")
    with pytest.raises(DataError, match=r"'a\.jsonl' is a link to nowhere\.jsonl, which is not there"):
        chunks("a.jsonl")


def test_a_folder_named_as_a_file_is_a_folder(in_empty_folder):
    (in_empty_folder / "a.jsonl").mkdir()
    with pytest.raises(DataError, match=r"the folder 'a\.jsonl' holds no file of rows -> it may hold: \.arrow"):
        chunks("a.jsonl")
    (in_empty_folder / "a.jsonl/b.jsonl").write_bytes(LINES)
    assert [chunk.file for chunk in chunks("a.jsonl")] == ["a.jsonl/b.jsonl"]
    (in_empty_folder / "c.jsonl").mkdir()
    with pytest.raises(DataError, match=r"none of 2 matches is a file -> end the pattern in /\*"):
        chunks("*.jsonl")


def test_a_folder_of_several_formats_is_refused(in_empty_folder):
    rows = in_empty_folder / "rows"
    rows.mkdir()
    (rows / "a.jsonl").write_bytes(LINES)
    (rows / "b.json").write_bytes(LINES)
    (rows / "dataset_infos.json").write_text("{}")
    assert [chunk.file for chunk in chunks("rows")] == ["rows/a.jsonl", "rows/b.json"]
    (rows / "c.csv").write_text("text\nx\n")
    with pytest.raises(
        DataError,
        match=r"'rows' mixes files of several formats \(2 JSON, 1 CSV\) -> name .* `data_files: '\*\*/\*\.jsonl'`",
    ):
        chunks("rows")
    assert [chunk.file for chunk in chunks("rows", data_files="**/*.jsonl")] == ["rows/a.jsonl"]
    (rows / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    with pytest.raises(
        DataError, match=r"rows/a\.jsonl, rows/a\.jsonl\.gz, which may be the same rows twice -> name what"
    ):
        chunks("rows")


def test_a_folder_that_datasets_did_not_finish_is_named(in_empty_folder):
    saved = in_empty_folder / "saved"
    saved.mkdir()
    for name in ("state.json", "dataset_info.json"):
        (saved / name).write_text("{}")
    with pytest.raises(
        DataError, match=r"^saved: cannot be read as what `datasets` saves .* -> save the dataset again"
    ):
        chunks("saved")


def test_a_name_that_no_file_of_the_folder_has_is_corrected(in_empty_folder):
    (in_empty_folder / "rows").mkdir()
    (in_empty_folder / "rows/chat.jsonl").write_bytes(LINES)
    with pytest.raises(DataError, match=r"data_files: no file 'rows/chats\.jsonl' -> did you mean 'chat\.jsonl'\?"):
        chunks("rows", data_files="chats.jsonl")
