"""Every kind of source gives the same rows, numbered as a person would count them; what is broken names its place."""

from __future__ import annotations

import bz2
import gzip
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from whet.config import DatasetConfig
from whet.core.errors import DataError
from whet.data.readers import BadRow
from whet.data.sources import locate, open_source, read_json_lines

ROWS = [{"text": "first"}, {"text": "zweite, ü"}, {"text": "третья 🙂"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(path, **options):
    return list(open_source(DatasetConfig(path=str(path), **options), "a.yaml:3:5"))


def values(path, **options):
    return [row.value for row in read(path, **options)]


def write_lines(path, text=LINES):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_list(path):
    path.write_text(json.dumps(ROWS, indent=2), encoding="utf-8")


def write_records(path):
    path.write_text(json.dumps({"data": ROWS}), encoding="utf-8")


def write_csv(path):
    path.write_text('text\nfirst\n"zweite, ü"\nтретья 🙂\n', encoding="utf-8")


def write_text(path):
    path.write_text("first\n\nzweite, ü\r\nтретья 🙂", encoding="utf-8")


def write_parquet(path):
    pq.write_table(pa.Table.from_pylist(ROWS), path)


def write_arrow_stream(path):
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def write_arrow_file(path):
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def write_gzip(path):
    path.write_bytes(gzip.compress(LINES.encode()))


def write_bz2(path):
    path.write_bytes(bz2.compress(LINES.encode()))


def write_zstd(path):
    path.write_bytes(pa.Codec("zstd").compress(LINES.encode(), asbytes=True))


FILES = {
    "a.jsonl": write_lines,
    "lines.json": write_lines,
    "list.json": write_list,
    "records.json": write_records,
    "a.csv": write_csv,
    "a.txt": write_text,
    "a.parquet": write_parquet,
    "stream.arrow": write_arrow_stream,
    "file.arrow": write_arrow_file,
    "a.jsonl.gz": write_gzip,
    "a.json.bz2": write_bz2,
    "a.jsonl.zst": write_zstd,
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_rows(in_empty_folder, name):
    FILES[name](in_empty_folder / name)
    rows = read(name)
    assert [row.value for row in rows] == ROWS
    assert {row.file for row in rows} == {name}


def test_rows_are_numbered_by_line_where_there_are_lines(in_empty_folder):
    write_lines(in_empty_folder / "a.jsonl", '\n{"a": 1}\n\n\n{"a": 2}\n')
    assert [row.place for row in read("a.jsonl")] == ["a.jsonl:2", "a.jsonl:5"]
    (in_empty_folder / "a.json").write_text('\n{"a": 1}\n\n{"a": 2}\n')
    assert [row.place for row in read("a.json")] == ["a.json:2", "a.json:4"]
    (in_empty_folder / "a.csv").write_text('x,y\n"two\nlines",1\nb,2\n')
    assert [row.place for row in read("a.csv")] == ["a.csv:2", "a.csv:4"]
    write_list(in_empty_folder / "list.json")
    assert [row.place for row in read("list.json")][2] == "list.json, row 3"


def test_csv_values_stay_text_and_a_byte_order_mark_is_no_part_of_the_data(in_empty_folder):
    (in_empty_folder / "a.csv").write_bytes(b"\xef\xbb\xbfcode,n\r\n007,1\r\n")
    assert values("a.csv") == [{"code": "007", "n": "1"}]
    (in_empty_folder / "a.tsv").write_text("x\ty\n1,5\t2\n")
    assert values("a.tsv") == [{"x": "1,5", "y": "2"}]
    (in_empty_folder / "e.tsv.d").mkdir()
    (in_empty_folder / "e.tsv.d" / "x.csv").write_text("a,b\n1\t,2\n")
    assert values("e.tsv.d/x.csv") == [{"a": "1\t", "b": "2"}]
    (in_empty_folder / "A.TSV.gz").write_bytes(gzip.compress(b"x\ty\n1,5\t2\n"))
    assert values("A.TSV.gz") == [{"x": "1,5", "y": "2"}]
    (in_empty_folder / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    assert values("a.jsonl") == [{"a": 1}]


def test_one_conversation_in_a_json_file_is_a_row_and_not_a_list_of_messages(in_empty_folder):
    conversation = {"messages": [{"role": "user", "content": "hi"}]}
    (in_empty_folder / "a.json").write_text(json.dumps(conversation, indent=1))
    assert values("a.json") == [conversation]


def test_a_broken_line_is_a_bad_row_and_the_others_are_read(in_empty_folder):
    write_lines(in_empty_folder / "a.jsonl", '{"a": 1}\n{"a": 2,}\n[3]\n{"a": 4}\n')
    rows = read("a.jsonl")
    assert [row.value for row in rows if not isinstance(row.value, BadRow)] == [{"a": 1}, {"a": 4}]
    assert [(row.place, row.value.reason) for row in rows if isinstance(row.value, BadRow)] == [
        ("a.jsonl:2", "not valid JSON"),
        ("a.jsonl:3", "not a JSON object"),
    ]
    assert rows[1].value.detail.endswith("at column 8")
    (in_empty_folder / "a.json").write_text('{"a": 1,}\n{"a": 2}\n')
    assert [isinstance(value, BadRow) for value in values("a.json")] == [True, False]


@pytest.mark.parametrize("name", ["a.jsonl", "lines.json", "document.json", "a.jsonl.gz"])
def test_an_integer_keeps_its_digits_or_its_row_is_bad(in_empty_folder, name):
    held = [0, -1, 2**53 + 1, 2**64 - 1, -(2**63), 1e300, 0.1234567890123456789, "123456789012345678901234567890"]
    rows = [{"n": [{"m": value}]} for value in [*held, 2**64, -(2**63) - 1, 10**300]]
    whole = json.dumps(rows) if name == "document.json" else "".join(json.dumps(row) + "\n" for row in rows)
    packed = gzip.compress(whole.encode()) if name.endswith(".gz") else whole.encode()
    (in_empty_folder / name).write_bytes(packed)
    found = values(name)
    assert found[: len(held)] == rows[: len(held)]
    assert [type(row["n"][0]["m"]) for row in found[: len(held)]] == list(map(type, held))
    assert {row.reason for row in found[len(held) :]} == {"number beyond 64 bits"}
    assert found[len(held)].detail == "found 18446744073709551616; write it as text"
    (chunk,) = locate(DatasetConfig(path=name), "").chunks()
    assert [row.value for row in chunk.rows()] == found


@pytest.mark.parametrize("name", ["a.parquet", "saved"])
def test_numbers_that_json_has_no_word_for_are_null_however_rows_are_read(in_empty_folder, name):
    odd = [float("nan"), float("inf"), 1.5, None]
    columns = {
        "x": odd,
        "xs": [odd] * 4,
        "inner": [{"y": value} for value in odd],
        "half": pa.array(odd, pa.float32()),
    }
    table = pa.table(columns)
    if name == "saved":
        datasets = pytest.importorskip("datasets")
        datasets.Dataset(table).save_to_disk(name)
    else:
        pq.write_table(table, name)
    read_whole = values(name)
    assert [row["x"] for row in read_whole] == [None, None, 1.5, None]
    assert [row["half"] for row in read_whole] == [None, None, 1.5, None]
    assert read_whole[0]["xs"] == [None, None, 1.5, None]
    assert [row["inner"] for row in read_whole] == [{"y": None}, {"y": None}, {"y": 1.5}, {}]
    (chunk,) = locate(DatasetConfig(path=name), "").chunks()
    assert [row.value for row in chunk.rows()] == read_whole


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_line_that_is_not_utf8_is_a_bad_row(in_empty_folder, name):
    (in_empty_folder / name).write_bytes('{"a": "é"}\n'.encode() + b'{"a": "\xe9"}\n')
    bad = values(name)[1]
    assert bad == BadRow("not UTF-8", "byte 0xe9 at byte 8 of the line")


def test_a_csv_that_is_not_utf8_names_the_line(in_empty_folder):
    (in_empty_folder / "a.csv").write_bytes(b"a\nx\n\xe9\n")
    with pytest.raises(
        DataError, match=r"^a\.csv:3: not UTF-8: byte 0xe9 at byte 1 of the line -> save the file as UTF-8$"
    ):
        read("a.csv")


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ('a,b\n1,2\n3,"4\n5,6\n', 3, "a quotation mark opens a cell, and none closes it"),
        ('a,"b\n1,2\n', 1, "a quotation mark opens a cell, and none closes it"),
        ('a,b\n1,2\n"3" or so,4\n', 3, "more text stands behind the quotation mark that closes a cell"),
    ],
)
def test_a_quotation_mark_never_swallows_the_rows_behind_it(text, line, why, in_empty_folder):
    fix = "mend the file: a quotation mark within a quoted cell is written twice"
    for name, content in (("a.csv", text), ("a.tsv", text.replace(",", "\t"))):
        (in_empty_folder / name).write_text(content)
        with pytest.raises(DataError, match=re.escape(f"{name}:{line}: not valid CSV ({why}) -> {fix}")):
            read(name)


def test_a_csv_row_with_a_cell_too_many_is_a_bad_row(in_empty_folder):
    (in_empty_folder / "a.csv").write_text("a,b\n1,2,3\n4,5\n")
    assert values("a.csv") == [BadRow("wrong number of cells", "found 3, the header has 2"), {"a": "4", "b": "5"}]


def test_a_broken_json_document_names_line_and_column(in_empty_folder):
    (in_empty_folder / "a.json").write_text('[\n  {"a": 1},\n  {"a": }\n]\n')
    with pytest.raises(
        DataError, match=r"^a\.json:3:9: not valid JSON \(.*\) -> mend the file; it was read as one JSON"
    ):
        read("a.json")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl.gz"])
def test_a_file_of_another_format_is_an_error_that_names_it(in_empty_folder, name):
    (in_empty_folder / name).write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=rf"^{name}: cannot be read \(.*\) -> check that the file is whole"):
        read(name)


def test_an_empty_file_has_no_rows(in_empty_folder):
    for name in ("a.jsonl", "a.json", "a.csv", "a.txt"):
        (in_empty_folder / name).touch()
        assert read(name) == []


def test_ds_type_says_what_the_name_does_not(in_empty_folder):
    write_lines(in_empty_folder / "rows.data")
    assert values("rows.data", ds_type="json") == ROWS
    assert values("json", data_files="rows.data") == ROWS
    with pytest.raises(
        DataError, match=r"a\.yaml:3:5: the format of 'rows\.data' is not told by its name -> set `ds_type`"
    ):
        read("rows.data")


def test_folders_and_globs_read_every_file_in_order(in_empty_folder):
    for name in ("b", "a", "sub/c"):
        write_lines(in_empty_folder / f"rows/{name}.jsonl", json.dumps({"name": name}) + "\n")
    (in_empty_folder / "rows/notes.doc").touch()
    assert [value["name"] for value in values("rows")] == ["a", "b", "sub/c"]
    assert [value["name"] for value in values("rows/*.jsonl")] == ["a", "b"]
    assert [value["name"] for value in values("rows", data_files="sub/*.jsonl")] == ["sub/c"]
    assert [row.file for row in read("rows", data_files=("b.jsonl",))] == ["rows/b.jsonl"]


def test_data_files_of_a_folder_may_be_absolute_or_lie_elsewhere(in_empty_folder):
    write_lines(in_empty_folder / "d" / "b.jsonl", '{"a": 1}\n')
    write_lines(in_empty_folder / "other" / "c.jsonl", '{"a": 2}\n')
    inside, elsewhere = str(in_empty_folder / "d" / "b.jsonl"), str(in_empty_folder / "other" / "*.jsonl")
    for path in ("d", str(in_empty_folder / "d")):
        assert values(path, data_files=inside) == [{"a": 1}]
        assert values(path, data_files=("b.jsonl", inside)) == [{"a": 1}]  # each file once
        assert values(path, data_files=(elsewhere, "b.jsonl")) == [{"a": 2}, {"a": 1}]
        assert values(path, data_files="../other/c.jsonl") == [{"a": 2}]
    with pytest.raises(DataError, match=r"no file '/nowhere/x\.jsonl'"):
        values("d", data_files="/nowhere/x.jsonl")


def test_a_folder_s_test_files_are_not_trained_on(in_empty_folder):
    for name in ("train-1", "train-2", "test"):
        write_lines(in_empty_folder / f"rows/{name}.jsonl", json.dumps({"name": name}) + "\n")
    assert [value["name"] for value in values("rows")] == ["train-1", "train-2"]
    assert [value["name"] for value in values("rows", split="test")] == ["test"]
    with pytest.raises(
        DataError, match=r"no file in 'rows' is of the split 'validation' -> set `split:` to one of: test, tr"
    ):
        read("rows", split="validation")


def test_the_readme_beside_the_rows_is_not_read(in_empty_folder):
    write_lines(in_empty_folder / "rows/a.txt", "a row\n")
    write_lines(in_empty_folder / "rows/README.md", "# What the rows are\n")
    assert values("rows") == [{"text": "a row"}]
    assert values("rows", data_files="README.md") == [{"text": "# What the rows are"}]


def test_a_readme_alone_is_read(in_empty_folder):
    write_lines(in_empty_folder / "rows/README.md", "a row\n")
    assert values("rows") == [{"text": "a row"}]


def test_an_empty_folder_is_an_error(in_empty_folder):
    (in_empty_folder / "rows").mkdir()
    with pytest.raises(
        DataError, match=r"a\.yaml:3:5: the folder 'rows' holds no file of rows -> it may hold: \.arrow, \.csv"
    ):
        read("rows")


def test_saved_datasets_are_read(in_empty_folder):
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(in_empty_folder / "saved")
    datasets.DatasetDict({"train": saved, "test": saved.select([1])}).save_to_disk(in_empty_folder / "splits")
    assert values("saved") == ROWS
    assert next(row.place for row in read("saved")) == "saved, row 1"
    assert values("splits", split="test") == [ROWS[1]]
    with pytest.raises(DataError, match="'splits' has no split 'dev' -> it has: test, train"):
        read("splits", split="dev")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"split": "train[1:]"}, [1, 2, 3, 4]),
        ({"split": "train[:2]"}, [0, 1]),
        ({"split": "train[20%:60%]"}, [1, 2]),
        ({"split": "train[-2:]"}, [3, 4]),
        ({"shards": 2, "shards_idx": 0}, [0, 2, 4]),
        ({"shards": 2, "shards_idx": 1}, [1, 3]),
        ({"split": "train[1:]", "shards": 2}, [1, 3]),
    ],
)
def test_slices_and_shards_choose_rows(in_empty_folder, options, expected):
    write_lines(in_empty_folder / "a.jsonl", "".join(f'{{"n": {n}}}\n' for n in range(5)))
    assert [value["n"] for value in values("a.jsonl", **options)] == expected


def test_a_file_has_no_split_but_train(in_empty_folder):
    write_lines(in_empty_folder / "a.jsonl")
    with pytest.raises(DataError, match=r"'a\.jsonl' is a file and has no split 'test' -> leave `split` out"):
        read("a.jsonl", split="test")
    with pytest.raises(DataError, match=r"split 'train\[\?\]' is not understood"):
        read("a.jsonl", split="train[?]")


def test_paths_are_looked_for_in_the_working_directory_and_then_beside_the_yaml(in_empty_folder):
    write_lines(in_empty_folder / "configs/a.jsonl", '{"from": "yaml"}\n')
    dataset = DatasetConfig(path="a.jsonl")
    assert next(open_source(dataset, "", in_empty_folder / "configs")).value == {"from": "yaml"}
    write_lines(in_empty_folder / "a.jsonl", '{"from": "here"}\n')
    assert next(open_source(dataset, "", in_empty_folder / "configs")).value == {"from": "here"}


def test_a_missing_file_names_its_place_and_the_nearest_name(in_empty_folder):
    write_lines(in_empty_folder / "data/chat.jsonl")
    with pytest.raises(
        DataError, match=r"^a\.yaml:3:5: no file or folder 'data/chats\.jsonl' -> did you mean 'data/chat\.jsonl'\?$"
    ):
        read("data/chats.jsonl")
    with pytest.raises(DataError, match="paths are relative to"):
        read("/nowhere/at/all.jsonl")


def test_a_hub_dataset_that_cannot_be_had_is_an_error(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def refuse(*arguments, **options):
        raise ConnectionError("Couldn't reach 'nobody/nothing' on the Hub (OfflineModeIsEnabled)\nmore")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    message = (
        r"^a\.yaml:3:5: 'nobody/nothing' is no file or folder here, and as a dataset of the hub .* \(Couldn't reach"
    )
    with pytest.raises(DataError, match=message):
        read("nobody/nothing")


def test_hub_datasets_are_loaded_with_the_options_of_the_row(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = {}

    def load(path, name, **options):
        asked.update(path=path, name=name, **options)
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = locate(DatasetConfig(path="who/what", name="de", split="train[:9]", revision="v1"), "")
    assert [row.value for row in source.rows()] == ROWS
    assert source.name == "who/what/de"
    assert asked == {"path": "who/what", "name": "de", "split": "train[:9]", "revision": "v1", "data_files": None}


def test_urls_are_read_through_fsspec(in_empty_folder):
    import fsspec

    with fsspec.open("memory://rows/a.jsonl", "wb") as file:
        file.write(LINES.encode())
    assert values("memory://rows/a.jsonl") == ROWS
    with pytest.raises(
        DataError, match=r"^a\.yaml:3:5: 'nothere://' is no kind of URL -> use s3, gs, az, oci or https$"
    ):
        read("nothere://a.jsonl")


def test_rows_of_one_file_are_read_whole_or_not_at_all(in_empty_folder):
    write_lines(in_empty_folder / "a.jsonl")
    assert read_json_lines("a.jsonl") == ROWS
    assert read_json_lines("a.jsonl", limit=2) == ROWS[:2]
    write_lines(in_empty_folder / "a.jsonl", LINES + "{\n")
    assert read_json_lines("a.jsonl", limit=3) == ROWS
    with pytest.raises(DataError, match=r"^a\.jsonl:4: not valid JSON \(.*\) -> mend the row$"):
        read_json_lines("a.jsonl")
    with pytest.raises(DataError, match=r"^b\.jsonl: cannot be read \(No such file or directory\)"):
        read_json_lines("b.jsonl")


@pytest.mark.parametrize("path", ["rows", "rows/**/*.jsonl"])
def test_a_link_back_to_its_own_folder_is_no_way_to_read_rows_twice(path, in_empty_folder):
    (in_empty_folder / "rows" / "deep").mkdir(parents=True)
    (in_empty_folder / "rows" / "a.jsonl").write_text(LINES)
    (in_empty_folder / "elsewhere").mkdir()
    (in_empty_folder / "elsewhere" / "b.jsonl").write_text(LINES)
    (in_empty_folder / "rows" / "other").symlink_to("../elsewhere")
    assert len(values(path)) == 2 * len(ROWS)
    (in_empty_folder / "rows" / "deep" / "up").symlink_to("..")
    with pytest.raises(DataError, match=r"^rows/deep/up: a link to '\.\.', a folder that it is in: files would be "):
        read(path)
