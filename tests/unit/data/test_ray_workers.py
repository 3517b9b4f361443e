"""A Ray cluster makes the files that one machine makes."""

from __future__ import annotations

import json
import signal

import pytest
from tests.tiny_tokenizers import tiny_tokenizer

from whet.config.load import make_config
from whet.config.resolve import resolve
from whet.core.errors import DataError
from whet.core.types import Hardware
from whet.data import chunks, ray_workers
from whet.data.prepare import prepare

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[data]'")

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray warns of its own options


@pytest.fixture(scope="module")
def cluster():
    before = signal.getsignal(signal.SIGTERM)
    ray_workers.start(ray, num_cpus=2)
    yield before, signal.getsignal(signal.SIGTERM)
    ray.shutdown()


def write_rows(path, count, broken=()):
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            answer = {"role": "assistant", "content": f"{number} and {number * number}"}
            row = {"messages": [{"role": "user", "content": f"say {number}"}, answer]}
            file.write("{\n" if number in broken else json.dumps(row) + "\n")


def prepared_with(engine, path, folder):
    config = make_config(
        {
            "base_model": "org/tiny",
            "datasets": [{"path": str(path), "type": "chat_template"}],
            "chat_template": "chatml",
            "learning_rate": 1e-4,
            "sequence_len": 100,
            "dataset_prepared_path": str(folder),
            "output_dir": str(folder / "out"),
            "prepare_with": engine,
        },
        check_files=False,
    )
    return prepare(config, resolve(config, Hardware("cpu")), tiny_tokenizer("chatml"))


def files(prepared):
    return {path.name: path.read_bytes() for path in sorted((prepared.path / "chunks").iterdir())}


@pytest.mark.timeout(120)
def test_starting_ray_leaves_the_answer_to_sigterm_as_it_was(cluster):
    before, after = cluster
    assert after == before


@pytest.mark.timeout(120)
def test_ray_makes_the_same_bytes_in_the_same_order(cluster, tmp_path, monkeypatch):
    for name in ("chunks_of_stream", "chunks_of_lines"):
        monkeypatch.setattr(getattr(chunks, name), "__defaults__", (None, chunks.Cut(2000, 4000, 500))[-1:])
    write_rows(tmp_path / "chat.jsonl", 400)
    alone = prepared_with("processes", tmp_path / "chat.jsonl", tmp_path / "alone")
    spread = prepared_with("ray", tmp_path / "chat.jsonl", tmp_path / "spread")
    assert len(files(alone)) > 4
    assert files(alone) == files(spread)
    assert [alone.train.place(n) for n in range(400)] == [spread.train.place(n) for n in range(400)]


@pytest.mark.timeout(120)
def test_bad_rows_are_named_as_without_ray(cluster, tmp_path):
    write_rows(tmp_path / "chat.jsonl", 10, broken=(3,))
    with pytest.raises(DataError, match=r"chat\.jsonl:4.*not valid JSON"):
        prepared_with("ray", tmp_path / "chat.jsonl", tmp_path / "spread")
