"""Files that are made to fill memory, disk or time: little of them is read, and the error says which file and where.

The files are sparse, or small beside what they expand to. What might take memory is read in a child under a limit.
"""

from __future__ import annotations

import bz2
import gzip
import json
import os
import random
import resource
import shutil
import struct
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.e2e.conftest import Whet, model_folder, whet, workspace

from whet.artefacts.dcp import open_checkpoint
from whet.config import load_config
from whet.config.schema.data import DatasetConfig
from whet.core.errors import ArtefactError, ConfigError, DataError
from whet.data import compression, readers
from whet.data.readers import BadRow
from whet.data.sources import locate

__all__ = ["model_folder", "whet", "workspace"]  # fixtures

GIB = 1 << 30
BASE = "base_model: org/m\nlearning_rate: 1e-4\ndatasets: [{path: org/d, type: alpaca}]\n"


def in_a_small_child(what: Callable[[], None], *, more_bytes: int = GIB) -> None:
    """Run it in a child that may take so much memory more than this process has; its traceback fails the test."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + more_bytes
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            what()
            code = 0
        except BaseException:  # noqa: BLE001 - the child must not go on as a second pytest
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with {status}"


def laughs(levels: int = 12) -> str:
    return "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, levels))


def merges(levels: int = 30) -> str:
    return "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n}\n  <<: [*a{n - 1}, *a{n - 1}]\n" for n in range(1, levels))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param(laughs(), "with its anchors written out, the file has more than 50,000 values", id="laughs"),
        pytest.param(merges(), "with its anchors written out, the file has more than 50,000 values", id="merges"),
        pytest.param("model_kwargs: " + "[" * 2000 + "]" * 2000, "nested hundreds deep", id="brackets"),
        pytest.param("seed: 0x" + "f" * 100_000, "characters left out", id="a long number"),
        pytest.param("".join(f"k{n}: 1\n" for n in range(1000)), "unknown key 'k999'", id="many unknown keys"),
    ],
)
def test_a_config(text: str, told: str, tmp_path: Path) -> None:
    from whet.core.log import indented

    (tmp_path / "my.yaml").write_text(BASE + text)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "my.yaml", environ={})
    assert told in "\n".join(map(indented, caught.value.problems))


def test_a_config_that_never_ends() -> None:
    with pytest.raises(ConfigError, match="longer than 4,000,000 bytes"):
        load_config("/dev/zero", environ={})


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of those of a run, so that a hundredth is read."""
    from whet.data import chunks

    for module in (readers, chunks):
        monkeypatch.setattr(module, "LONGEST_LINE", 1 << 20)
    monkeypatch.setattr(compression, "UNASKED_BYTES", 4 << 20)
    monkeypatch.setattr(readers, "LARGEST_DOCUMENT", 64 << 20)


def sparse(path: Path, head: bytes) -> None:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(GIB)


def compressed(path: Path, block: bytes, times: int) -> None:
    if path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as packed:
            for _ in range(times):
                packed.write(block)
    else:
        with (gzip if path.suffix == ".gz" else bz2).open(path, "wb") as plain:
            for _ in range(times):
                plain.write(block)


def read_both_ways(path: Path) -> None:
    """As rows, and as the chunks that preparation reads."""
    dataset = DatasetConfig(path=str(path))
    for _ in locate(dataset, "my.yaml:1").chunks():
        pass
    for _ in locate(dataset, "my.yaml:1").rows():
        pass


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize(
    ("name", "head", "place"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": "', 2),
        ("a.jsonl", b"", 1),
        ("a.json", b'{"text": "', 1),
        ("a.txt", b"a\nb\n", 3),
        ("a.csv", b'a,b\n1,2\n"', 3),
    ],
)
def test_a_line_of_a_gibibyte(name: str, head: bytes, place: int, tmp_path: Path) -> None:
    sparse(tmp_path / name, head)

    def read() -> None:
        with pytest.raises(DataError, match=rf"{name}:{place}: the line is longer than 1 MiB -> split the row"):
            read_both_ways(tmp_path / name)

    in_a_small_child(read)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_file_that_expands_without_end(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    compressed(path, b'{"text": "a"}\n' * 75_000, 40)
    assert path.stat().st_size < (1 << 20)
    with pytest.raises(DataError, match=f"a.jsonl{ending}: it becomes more than 200 times as large when it is decom"):
        read_both_ways(path)


@pytest.mark.usefixtures("small_limits")
def test_a_document_that_is_too_large_for_memory(tmp_path: Path) -> None:
    sparse(tmp_path / "a.json", b'[{"text": "a"},\n')

    def read() -> None:
        with pytest.raises(DataError, match="write its rows as JSON lines"):
            read_both_ways(tmp_path / "a.json")

    in_a_small_child(read)


def nested(depth: int) -> bytes:
    return b'{"text": ' + b"[" * depth + b"1" + b"]" * depth + b"}\n"


def test_deep_rows_are_refused_one_by_one(tmp_path: Path) -> None:
    deep_integer = b'{"a": ' * 1000 + b"1" * 25 + b"}" * 1000 + b"\n"
    lines = [nested(200), nested(300), nested(1000), nested(100_000), b"[" * 300 + b"]" * 300 + b"\n", deep_integer]
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines))
    rows = list(locate(DatasetConfig(path=str(tmp_path / "a.jsonl")), "").rows())
    reasons = [row.value.reason if isinstance(row.value, BadRow) else "fine" for row in rows]
    deep = "nested too deeply"
    assert reasons == ["fine", deep, deep, "not valid JSON", "not a JSON object", deep]
    assert [row.place.rpartition(":")[2] for row in rows] == ["1", "2", "3", "4", "5", "6"]


@pytest.mark.parametrize("seed", range(3))
def test_tables_that_lie_about_themselves(seed: int, tmp_path: Path) -> None:
    """Bytes of Parquet and Arrow files changed at random: an error or rows, no crash and no other process's memory."""
    table = pa.table({"text": [f"hello {n}" for n in range(200)], "n": range(200), "l": [[n, n] for n in range(200)]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)

    def read() -> None:
        chance = random.Random(seed)
        for original in ("a.parquet", "a.arrow", "b.arrow"):
            content = (tmp_path / original).read_bytes()
            for _ in range(25):
                spoilt = bytearray(content)
                for _ in range(chance.choice((1, 2, 6))):
                    at = chance.choice((chance.randrange(len(spoilt)), chance.randrange(min(800, len(spoilt)))))
                    spoilt[at] = chance.choice((0, 0x7F, 0x80, 0xFF, chance.randrange(256)))
                path = tmp_path / f"spoilt{Path(original).suffix}"
                path.write_bytes(spoilt)
                with suppress(DataError):
                    read_both_ways(path)

    in_a_small_child(read)


@pytest.fixture
def own(workspace: Path, model_folder: Path) -> Path:
    """The workspace with a model of its own that may be spoilt."""
    (workspace / "model").unlink()
    shutil.copytree(model_folder, workspace / "model")
    return workspace


def header(offsets: list[int], length: int | None = None) -> bytes:
    text = json.dumps({"a": {"dtype": "F32", "shape": [offsets[1] // 4], "data_offsets": offsets}}).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", header([0, 4], length=1 << 62)),
        ("model.safetensors", header([0, 4], length=(1 << 64) - 1)),
        ("model.safetensors", header([0, 1 << 60])),
        ("model.safetensors", header([1 << 60, (1 << 60) + 4])),
        ("model.safetensors", b""),
        ("config.json", b"[" * 100_000),
        ("config.json", b'{"model_type": "llama", "vocab_size": ' + b"9" * 5000 + b"}"),
        ("config.json", b'{"model_type": ["llama"]}'),
        ("config.json", b"\0" * 100),
        ("tokenizer.json", b"{" * 100_000),
        ("tokenizer.json", b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 1e30}, "merges": []}}'),
        ("tokenizer_config.json", b"7"),
    ],
)
def test_files_of_a_model_that_lie(file: str, content: bytes, own: Path, whet: Whet) -> None:
    (own / "model" / file).write_bytes(content)
    for command in ("check", "train"):
        outcome = whet(command, "my.yaml")
        assert outcome.code == 2, outcome.err[-2000:]
        assert "my.yaml:1:1: base_model: " in outcome.err
        assert file != "model.safetensors" or "'model/model.safetensors' is damaged, or cut short (" in outcome.err


@pytest.mark.parametrize(
    ("field", "size", "told"),
    [
        ("vocab_size", 10**12, "says vocab_size: 1,000,000,000,000 beside hidden_size: 32, which no model has"),
        ("vocab_size", 10**20, "says vocab_size: about 10^20 beside hidden_size: 32"),
        ("hidden_size", 2**32, "says vocab_size: 300 beside hidden_size: 4,294,967,296"),
        ("num_hidden_layers", 10**7, "says num_hidden_layers: 10,000,000, which no model has"),
        ("vocab_size", -1, "says vocab_size: -1, which no model has"),
    ],
)
def test_a_config_of_sizes_that_no_model_has(field: str, size: int, told: str, own: Path, whet: Whet) -> None:
    """Before anything of that size is made, also where its weights are not read."""
    path = own / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: size}))
    for command in (("check",), ("train", "--reinit-weights", "true")):
        outcome = whet(command[0], "my.yaml", *command[1:])
        assert outcome.code == 2, outcome.err[-2000:]
        assert f"my.yaml:1:1: base_model: its config.json {told}" in outcome.err
        assert "-> give the config.json that its weights were saved with" in outcome.err


@pytest.mark.parametrize("bomb", [b"\x80\x04Nr\xff\xff\xff\x7f.", b"\x80\x05\x8e\xff\xff\xff\xff\xff\xff\xff\x0f."])
def test_a_pickle_that_counts_more_than_it_has(bomb: bytes, tmp_path: Path) -> None:
    """The table of contents of a sharded checkpoint: ten bytes make Python's unpickler take 64 GB."""
    (tmp_path / ".metadata").write_bytes(bomb)

    def read() -> None:
        with pytest.raises(ArtefactError, match="is no table of contents"):
            open_checkpoint(tmp_path)

    in_a_small_child(read)
