"""What was encoded is used again where it is what was written, and made again where it is not."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import chat, write_rows
from tests.tiny_tokenizers import tiny_tokenizer

from whet.config import make_config
from whet.config.resolve import resolve
from whet.core.errors import DataError
from whet.core.types import Hardware
from whet.data import chunk_file, chunks, store, workers
from whet.data.chunk_file import read_account
from whet.data.prepare import prepare
from whet.data.store import PreparedSet

FOLDER = Path("last_run_prepared")
DAY = 24 * 3600 * 10**9


@pytest.fixture(autouse=True)
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files in an empty folder, and chunks of a few rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chunks.chunks_of_stream, "__defaults__", (None, chunks.Cut(least=300, most=900, every=300)))
    for name in ("a", "b"):
        write_rows(Path(f"{name}.jsonl"), [chat(f"{name} {n}?", f"{name} {n}!") for n in range(30)])
        _age(Path(f"{name}.jsonl"))


@pytest.fixture(autouse=True)
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Digests of the chunks that are encoded."""
    digests: list[str] = []
    encode_chunk = workers.encode_chunk

    def noted(chunk: Any, *rest: Any) -> Any:
        digests.append(chunk.digest)
        return encode_chunk(chunk, *rest)

    monkeypatch.setattr(workers, "encode_chunk", noted)
    return digests


def _age(path: Path) -> None:
    """A file just written has no stamp, as it may be written to again; this one was written yesterday."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - DAY))


def run(*paths: str, kind: str = "chat_template", refresh: bool = False, **keys: Any) -> PreparedSet:
    values = {
        "base_model": "org/tiny",
        "datasets": [{"path": path, "type": kind} for path in paths or ("a.jsonl",)],
        "learning_rate": 1e-4,
        "sequence_len": 256,
        "output_dir": "out",
        **({"chat_template": "chatml"} if kind == "chat_template" else {}),
        **keys,
    }
    config = make_config(values, check_files=False)
    return prepare(config, resolve(config, Hardware("cpu")), tiny_tokenizer("chatml"), refresh=refresh)


def places(prepared: PreparedSet) -> list[str]:
    return [prepared.train.place(index) for index in range(len(prepared.train))]


def pool_file(prepared: PreparedSet, number: int = 1) -> Path:
    (path,) = FOLDER.glob(f"chunks/*/{prepared.manifest['chunks'][number]['digest']}.arrow")
    return path


def test_datasets_in_another_order_are_another_set_of_the_same_chunks(encoded: list[str]) -> None:
    one = run("a.jsonl", "b.jsonl")
    count = len(encoded)
    other = run("b.jsonl", "a.jsonl")
    assert (one.train.names, other.train.names) == (("a", "b"), ("b", "a"))
    assert places(one) == places(other)[30:] + places(other)[:30]
    assert len(encoded) == count


def test_a_table_whose_scan_is_remembered_is_encoded_again_on_refresh(encoded: list[str]) -> None:
    """Its rows are in no byte range of the file: they are read again."""
    Path("c.csv").write_text("instruction,output\nsay one,one\nsay two,two\n")
    _age(Path("c.csv"))
    before = run("c.csv", kind="alpaca")
    after = run("c.csv", kind="alpaca", refresh=True)
    assert len(encoded) == 2
    assert before.manifest["hashes"] == after.manifest["hashes"]


@pytest.mark.parametrize("damage", ["truncated", "garbage", "gone", "no account", "garbage as account"])
def test_a_chunk_file_that_is_not_what_was_written_is_made_again(damage: str, encoded: list[str]) -> None:
    before = run()
    whole = pool_file(before).read_bytes()
    _damage(pool_file(before), damage)
    encoded.clear()
    run(sequence_len=128)
    assert encoded == [before.manifest["chunks"][1]["digest"]]
    assert pool_file(before).read_bytes() == whole
    assert read_account(pool_file(before).parent, encoded[0]) is not None


def _damage(path: Path, damage: str) -> None:
    if damage == "truncated":
        os.truncate(path, 100)
    elif damage == "garbage":
        size = path.stat().st_size
        path.write_bytes(b"x" * size)
    elif damage == "gone":
        path.unlink()
    elif damage == "no account":
        path.with_suffix(".json").unlink()
    else:
        path.with_suffix(".json").write_bytes(b"{}")


def test_a_chunk_file_of_another_time_is_hashed_once_and_used(
    encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a copy of the folder that does not keep times."""
    before = run()
    _age(pool_file(before))
    encoded.clear()
    hashed: list[str] = []
    sha256 = chunk_file.sha256
    monkeypatch.setattr(chunk_file, "sha256", lambda path: (hashed.append(path.name), sha256(path))[1])
    run(sequence_len=128)
    run(sequence_len=64)
    assert encoded == []
    assert hashed == [pool_file(before).name]


@pytest.mark.parametrize("name", ["index.arrow", "train.npy", "manifest.json"])
def test_a_set_whose_files_have_turned_to_garbage_is_made_again(name: str, caplog: pytest.LogCaptureFixture) -> None:
    before = run()
    found = places(before)
    _damage(before.path / name, "garbage")
    assert places(run()) == found
    assert f"{before.path / name}: " in caplog.text
    assert "it must be made again" in caplog.text


@pytest.mark.parametrize("name", ["index.arrow", "train.npy", "chunks/00001.arrow"])
def test_a_set_that_is_damaged_is_made_again_with_a_warning(
    name: str, encoded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = run()
    found = places(before)
    os.truncate(before.path / name, 8)
    encoded.clear()
    after = run()
    assert after.path == before.path
    assert f"{before.path / name}: 8 bytes long," in caplog.text
    assert "it must be made again" in caplog.text
    assert places(after) == found
    assert len(encoded) == (1 if name.startswith("chunks") else 0)  # which is the pool's file, too


def test_a_set_is_found_without_reading_and_whoever_opens_it_is_noted() -> None:
    folder = run().path
    os.utime(folder, (0, 0))
    assert run().path == folder
    assert folder.stat().st_mtime > 0


# -- a full disk ----------------------------------------------------------------------------------------------------


@pytest.fixture
def full_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the disk full at the n-th time that a file or a folder is put on it; 0 makes room again."""
    sync, calls = chunk_file.sync, [0, 0]

    def sync_or_fail(path: Path) -> None:
        calls[0] += 1
        if calls[0] == calls[1]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(path)

    for module in (chunk_file, store):
        monkeypatch.setattr(module, "sync", sync_or_fail)

    def set_full(number: int) -> int:
        """Returns how often a file was put on the disk before."""
        before, calls[:] = calls[0], [0, number]
        return before

    return set_full


def test_a_disk_that_is_full_is_named_at_whatever_file_and_gone_on_with(full_at: Any, encoded: list[str]) -> None:
    expected = places(run(dataset_prepared_path="undisturbed"))
    times, count = full_at(0), len(encoded)
    assert times > count * 2
    for number in range(1, times + 1):
        folder = Path(f"sets-{number}")
        full_at(number)
        with pytest.raises(DataError) as caught:
            run(dataset_prepared_path=str(folder))
        assert (
            f"the prepared set cannot be written to '{folder}' (No space left on device) -> set "
            "`dataset_prepared_path` to a folder with room that you may write to"
        ) in str(caught.value)
        assert list(folder.glob("chunks/*/.*")) == []
        if number < times:  # the last time is after the set has its name
            assert list(folder.glob("*/manifest.json")) == list(folder.glob(".*")) == []
        there = len(list(folder.glob("chunks/*/*.json")))
        full_at(0)
        encoded.clear()
        assert places(run(dataset_prepared_path=str(folder))) == expected
        assert len(encoded) == count - there
