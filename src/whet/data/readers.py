"""A file's bytes to rows, one reader a format; a row that cannot be read is a value too.

Rows are numbered from 1: by line where the format has lines (JSON lines, CSV, text), else by record.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from whet.core.errors import DataError, Problem
from whet.data.columns import rows_of_batch
from whet.data.compression import COMPRESSIONS

UTF8_MARK = b"\xef\xbb\xbf"

# What Python writes for numbers that JSON has no word for.
_NOT_JSON = re.compile(r"-?(NaN|Infinity)")

# Integers that orjson reads as they are written; it makes floats of others. Those have 19 digits at least, which are
# found by turning all digits into zeros: a tenth of the time of a regular expression.
_LEAST, _MOST = -(2**63), 2**64 - 1
_DIGITS_AS_ZEROS = bytes(0x30 if 0x30 <= byte <= 0x39 else 0x20 for byte in range(256))
_LONG_NUMBER = b"0" * 19


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that could not be read: a reason to count it by, and what was found."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Row:
    """A row and where it stands.

    Attributes:
        number: from 1; a line number if ``by_line``, else the number of the record.
        file: as the user would name it.
        value: the row's columns, or why there are none.
    """

    number: int
    file: str
    value: Mapping[str, Any] | BadRow
    by_line: bool = True

    @property
    def place(self) -> str:
        return place(self.file, self.number, self.by_line)


def place(file: str, number: int, by_line: bool) -> str:
    """Name a row.

    >>> place("a.jsonl", 3, by_line=True), place("a.parquet", 3, by_line=False)
    ('a.jsonl:3', 'a.parquet, row 3')
    """
    return f"{file}:{number}" if by_line else f"{file}, row {number}"


LONGEST_LINE = 64 << 20
"""Bytes of a line; a line is held in memory whole, several times over as it is read."""
LARGEST_DOCUMENT = 2 << 30
"""Bytes of a file that is one JSON document, which is held in memory whole."""
_BLOCK = 1 << 20
DEEPEST = 254
"""Levels of lists and objects in a row: so many orjson writes."""


def bounded_lines(stream: BinaryIO, file: str, number: int = 1) -> Iterator[bytes]:
    """The lines of a stream, of which the first has the number given.

    Raises:
        DataError: one is too long.
    """
    while line := stream.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise DataError(line_too_long(file, number))
        yield line
        number += 1


def line_too_long(file: str, number: int) -> Problem:
    """What to say of a line that nobody should hold in memory."""
    found = f"the line is longer than {LONGEST_LINE >> 20} MiB"
    return Problem(f"{file}:{number}", found, "split the row, or check that the file has lines at all")


def read_jsonl(stream: Iterable[bytes], file: str) -> Iterator[Row]:
    """One JSON object a line; blank lines are passed over."""
    lines = bounded_lines(cast(BinaryIO, stream), file) if isinstance(stream, io.BufferedIOBase) else stream
    for number, line in enumerate(lines, start=1):
        text = line.removeprefix(UTF8_MARK) if number == 1 else line
        if text and not text.isspace():
            yield Row(number, file, parse_line(text, number))


def parse_line(line: bytes, number: int) -> Mapping[str, Any] | BadRow:
    """The object in a line of JSON; the number of a line tells a document's first line from a broken row."""
    value = _parse_object(line)
    if number == 1 and isinstance(value, BadRow) and (line[:1] == b"[" or line.strip() == b"{"):
        return replace(value, detail=f"{value.detail}; for one JSON document, set `ds_type: json`")
    return value


def read_json(stream: BinaryIO, file: str) -> Iterator[Row]:
    """JSON in any usual shape: a list of objects, an object that holds one under a single key, or an object a line.

    A document is read into memory whole; lines are not.
    """
    head, is_lines = _first_lines(stream, file)
    if is_lines:
        yield from read_jsonl(itertools.chain(head, bounded_lines(stream, file, len(head) + 1)), file)
        return
    blocks = itertools.takewhile(bool, (stream.read(_BLOCK) for _ in range(LARGEST_DOCUMENT // _BLOCK)))
    text = b"".join([*head, *blocks])
    if len(text) >= LARGEST_DOCUMENT:
        found = f"the document is longer than {LARGEST_DOCUMENT >> 30} GiB, and would be held in memory whole"
        raise DataError(Problem(file, found, "write its rows as JSON lines (.jsonl), or as Parquet"))
    try:
        document, record = _loaded(text.removeprefix(UTF8_MARK) if text.strip() else b"[]")
    except orjson.JSONDecodeError as error:
        lines = text.splitlines()
        if len(lines) > 1 and all(line.lstrip()[:1] == b"{" for line in lines[:3]):
            yield from read_jsonl(lines, file)
            return
        found = f"not valid JSON ({error.msg})"
        at = f"{file}:{error.lineno}:{error.colno}"
        raise DataError(Problem(at, found, "mend the file; it was read as one JSON document")) from error
    for number, item in enumerate(_records(document), start=1):
        yield Row(number, file, record(item), by_line=False)


def holds_json_lines(stream: BinaryIO, file: str) -> bool:
    """Whether a file of JSON begins with an object and more lines after it, so that `read_json` reads it by line."""
    return _first_lines(stream, file)[1]


_CSV_FAULTS = {
    "unexpected end of data": "a quotation mark opens a cell, and none closes it",
    "',' expected after '\"'": "more text stands behind the quotation mark that closes a cell",
    "'\t' expected after '\"'": "more text stands behind the quotation mark that closes a cell",
}
"""What Python's csv says -> what is meant."""


def read_csv(stream: BinaryIO, file: str) -> Iterator[Row]:
    """A header, then a row a record; every value stays the text that it is. Tabs separate in a .tsv file."""
    csv.field_size_limit(LONGEST_LINE)
    delimiter = "\t" if endings(file)[0] == ".tsv" else ","
    # Strict, for else a quotation mark that nobody closes takes all lines up to the next one into its cell.
    reader = csv.reader(_decoded_lines(stream, file), delimiter=delimiter, strict=True)
    line = 1
    try:
        header = next(reader, None)
        if header is None:
            return
        twice = next((name for name in header if header.count(name) > 1), None)
        if twice is not None:
            found = f"the header names the column '{twice}' twice"
            raise DataError(Problem(f"{file}:1", found, "give each column a name of its own"))
        line = reader.line_num + 1
        for cells in reader:
            if len(cells) == len(header):
                yield Row(line, file, dict(zip(header, cells, strict=True)))
            elif cells:
                found = f"found {len(cells)}, the header has {len(header)}"
                yield Row(line, file, BadRow("wrong number of cells", found))
            line = reader.line_num + 1
    except csv.Error as error:
        why = _CSV_FAULTS.get(str(error), str(error))
        fix = "mend the file: a quotation mark within a quoted cell is written twice"
        raise DataError(Problem(f"{file}:{line}", f"not valid CSV ({why})", fix)) from error


def read_text(stream: BinaryIO, file: str) -> Iterator[Row]:
    """A line is a row with one column, ``text``; blank lines are passed over."""
    for number, line in enumerate(bounded_lines(stream, file), start=1):
        try:
            text = (line.removeprefix(UTF8_MARK) if number == 1 else line).decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield Row(number, file, _not_utf8(error))
        else:
            if text.strip():
                yield Row(number, file, {"text": text})


def read_parquet(stream: BinaryIO, file: str) -> Iterator[Row]:
    """A Parquet file, a thousand rows at a time."""
    yield from _rows_of_batches(pq.ParquetFile(stream).iter_batches(batch_size=1000), file)


def read_arrow(stream: BinaryIO, file: str) -> Iterator[Row]:
    """An Arrow file, in the file format or the stream format (`datasets` writes the latter)."""
    magic = stream.read(6)
    stream.seek(0)
    if magic == b"ARROW1":
        reader = pa.ipc.open_file(stream)
        batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        yield from _rows_of_batches(batches, file)
    else:
        yield from _rows_of_batches(iter(pa.ipc.open_stream(stream)), file)


READERS: Mapping[str, Callable[[BinaryIO, str], Iterator[Row]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "text": read_text,
    "parquet": read_parquet,
    "arrow": read_arrow,
}

ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
}


def endings(file: str) -> tuple[str, str]:
    """The endings of a file's name that tell its format and its compression.

    >>> endings("data/A.JSONL.gz"), endings("e.tsv.d/notes.doc")
    (('.jsonl', '.gz'), ('.doc', ''))
    """
    path = Path(file.lower())
    compression = path.suffix if path.suffix in COMPRESSIONS else ""
    return (path.with_suffix("") if compression else path).suffix, compression


def _parse_object(text: bytes) -> Mapping[str, Any] | BadRow:
    try:
        value, record = _loaded(text)
    except orjson.JSONDecodeError as error:
        try:
            text.decode("utf-8")
        except UnicodeDecodeError as decoding:
            return _not_utf8(decoding)
        constant = _NOT_JSON.match(error.doc, error.pos)
        found = f"{constant[0]} is not JSON, null is" if constant else error.msg
        return BadRow("not valid JSON", f"{found} at column {error.colno}")
    return record(value)


def _loaded(text: bytes) -> tuple[Any, Callable[[Any], Mapping[str, Any] | BadRow]]:
    """What a JSON text says, and what makes rows of it or of its parts."""
    value = orjson.loads(text)
    if text.count(b"[") + text.count(b"{") > DEEPEST and _is_too_deep(value):
        return value, _too_deep
    if _LONG_NUMBER in text.translate(_DIGITS_AS_ZEROS):
        return json.loads(text), _storable_object
    return value, _object


def _is_too_deep(value: Any) -> bool:
    """Whether lists and objects stand in one another so many times that whoever follows them runs out of stack."""
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError:
        return True
    return False


def _too_deep(value: Any) -> Mapping[str, Any] | BadRow:
    if not _is_too_deep(value):
        return _storable_object(value)
    if isinstance(value, list):
        return BadRow("not a JSON object", "found a list")
    return BadRow("nested too deeply", f"lists and objects stand in one another more than {DEEPEST} times")


def _storable_object(value: Any) -> Mapping[str, Any] | BadRow:
    """As `_object`; a row with an integer that would lose digits is none."""
    held = [value]
    while held:
        item = held.pop()
        if isinstance(item, dict | list):
            held += item.values() if isinstance(item, dict) else item
        elif isinstance(item, int) and not _LEAST <= item <= _MOST:
            return BadRow("number beyond 64 bits", f"found {str(item)[:40]}; write it as text")
    return _object(value)


def _object(value: Any) -> Mapping[str, Any] | BadRow:
    if isinstance(value, dict):
        return value
    return BadRow(
        "not a JSON object", f"found {type(value).__name__} {orjson.dumps(value)[:40].decode(errors='replace')}"
    )


def _not_utf8(error: UnicodeDecodeError) -> BadRow:
    if error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return BadRow("not UTF-8", "the file is UTF-16, save it as UTF-8")
    return BadRow("not UTF-8", f"byte 0x{error.object[error.start]:02x} at byte {error.start + 1} of the line")


def _first_lines(stream: BinaryIO, file: str) -> tuple[list[bytes], bool]:
    """Lines from the beginning, and whether they show that each line is an object."""
    head = _through_first_text(stream, file)
    if not head or not _is_object(head[-1]):
        return head, False
    more = _through_first_text(stream, file, len(head) + 1)
    return head + more, bool(more and more[-1].strip())


def _through_first_text(stream: BinaryIO, file: str, number: int = 1) -> list[bytes]:
    """Lines up to and with the first that is not blank."""
    lines: list[bytes] = []
    for line in bounded_lines(stream, file, number):
        lines.append(line)
        if line.removeprefix(UTF8_MARK).strip():
            break
    return lines


def _is_object(line: bytes) -> bool:
    return isinstance(_parse_object(line.removeprefix(UTF8_MARK)), dict)


def _records(document: Any) -> list[Any]:
    """The rows of a document: its list, the list under its only key (but not one conversation's messages), itself."""
    if isinstance(document, list):
        return document
    if isinstance(document, dict) and len(document) == 1:
        ((key, inner),) = document.items()
        if isinstance(inner, list) and key not in ("messages", "conversations", "segments", "input_ids"):
            return inner
    return [document]


def _decoded_lines(stream: BinaryIO, file: str) -> Iterator[str]:
    for number, line in enumerate(bounded_lines(stream, file), start=1):
        try:
            yield (line.removeprefix(UTF8_MARK) if number == 1 else line).decode("utf-8")
        except UnicodeDecodeError as error:
            found = f"not UTF-8: {_not_utf8(error).detail}"
            raise DataError(Problem(f"{file}:{number}", found, "save the file as UTF-8")) from error


def _rows_of_batches(batches: Iterator[pa.RecordBatch], file: str) -> Iterator[Row]:
    rows = itertools.chain.from_iterable(map(rows_of_batch, batches))
    return (Row(number, file, value, by_line=False) for number, value in enumerate(rows, start=1))
