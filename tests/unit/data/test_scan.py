"""A source that did not change is not read again; one that may have changed is."""

from __future__ import annotations

import gzip
import os
from dataclasses import replace

import pytest

from whet.config import DatasetConfig
from whet.core.errors import DataError
from whet.data.scan import ScanCache, descriptors
from whet.data.sources import locate

LINES = b'{"a": 1}\n{"a": 2}\n'


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, content, age=100):
    """A file that was last written ``age`` seconds ago."""
    path.write_bytes(content)
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - age * 10**9))


def source(path="a.jsonl", **options):
    return locate(DatasetConfig(path=path, **options), "")


class Unread:
    """A source whose rows must not be read."""

    name = "a"

    def __init__(self, source):
        self.stamp = source.stamp

    def chunks(self):
        raise AssertionError("read again")


def test_a_source_that_did_not_change_is_not_read_again(in_empty_folder):
    write(in_empty_folder / "a.jsonl", LINES)
    cache = ScanCache("scans")
    before = list(descriptors(source(), cache))
    after = list(descriptors(Unread(source()), cache))
    assert after == before
    assert after[0].load() == LINES


def test_a_chunk_remembered_without_its_rows_cannot_be_loaded(in_empty_folder):
    write(in_empty_folder / "a.csv", b"a,b\n1,2\n3\n4,5\n")
    cache = ScanCache("scans")
    (before,) = descriptors(source("a.csv"), cache)
    (after,) = descriptors(Unread(source("a.csv")), cache)
    assert replace(after, numbers=tuple(after.numbers)) == replace(before, lines=None, numbers=tuple(before.numbers))
    with pytest.raises(LookupError):
        after.load()


def test_the_stamp_changes_with_size_time_inode_and_selection(in_empty_folder):
    file = in_empty_folder / "a.jsonl"
    write(file, LINES)
    stamps = [source().stamp(), source(shards=2).stamp(), source(split="train[:1]").stamp()]
    write(file, LINES, age=50)
    stamps.append(source().stamp())
    write(in_empty_folder / "new", LINES, age=50)
    (in_empty_folder / "new").rename(file)
    os.utime(file, ns=(0, 10**18))
    first = source().stamp()
    write(in_empty_folder / "new", LINES)
    (in_empty_folder / "new").rename(file)
    os.utime(file, ns=(0, 10**18))
    stamps += [first, source().stamp()]
    file.write_bytes(LINES[::-1])  # as rsync --inplace --times does: other bytes, and all the rest as it was
    os.utime(file, ns=(0, 10**18))
    stamps.append(source().stamp())
    assert None not in stamps
    assert len(set(stamps)) == len(stamps)
    assert source().stamp() == stamps[-1]


def test_a_file_that_was_just_written_has_no_stamp_and_is_not_remembered(in_empty_folder):
    write(in_empty_folder / "a.jsonl", LINES, age=0)
    assert source().stamp() is None
    list(descriptors(source(), ScanCache("scans")))
    assert not (in_empty_folder / "scans").exists()


def test_a_scan_that_was_not_finished_is_not_remembered(in_empty_folder):
    write(in_empty_folder / "a.jsonl", LINES)
    next(descriptors(source(), ScanCache("scans")))
    assert not (in_empty_folder / "scans").exists()


def test_a_source_that_changed_during_the_scan_is_not_remembered(in_empty_folder):
    write(in_empty_folder / "a.jsonl", LINES)

    def scan_and_write():
        for _ in descriptors(source(), ScanCache("scans")):
            write(in_empty_folder / "a.jsonl", LINES, age=50)

    with pytest.raises(DataError, match="the file changed while it was read"):
        scan_and_write()
    assert not (in_empty_folder / "scans").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 1}', b'{"version": 0, "stamp": "", "chunks": []}'])
def test_what_was_broken_in_the_cache_is_written_anew(in_empty_folder, content):
    write(in_empty_folder / "a.jsonl.gz", gzip.compress(LINES))
    cache = ScanCache("scans")
    before = list(descriptors(source("a.jsonl.gz"), cache))
    (written,) = (in_empty_folder / "scans").iterdir()
    whole = written.read_bytes()
    written.write_bytes(content)
    assert list(descriptors(source("a.jsonl.gz"), cache)) == before
    assert written.read_bytes() == whole


def test_what_is_forgotten_is_read_again(in_empty_folder):
    write(in_empty_folder / "a.jsonl", LINES)
    cache, stamp = ScanCache("scans"), source().stamp()
    assert not cache.forget(stamp)
    list(descriptors(source(), cache))
    assert cache.forget(stamp)
    assert cache.find(stamp) is None


def test_a_cache_that_cannot_be_written_is_done_without(in_empty_folder):
    write(in_empty_folder / "a.jsonl", LINES)
    (in_empty_folder / "scans").write_text("a file")
    assert len(list(descriptors(source(), ScanCache("scans")))) == 1
