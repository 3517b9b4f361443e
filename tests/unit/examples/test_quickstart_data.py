"""Laws of the quickstart's data: what is held out is found nowhere else, and the files are what their script writes."""

from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def make_data(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    from examples.quickstart import make_data as module

    return module


@pytest.fixture
def make_corpus(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    from examples.base_model import make_corpus as module

    return module


def texts(rows: list[dict[str, object]]) -> list[str]:
    return [json.dumps(row, ensure_ascii=False).replace('\\"', '"') for row in rows]


def test_held_out_values_appear_in_no_training_row(make_data: ModuleType) -> None:
    held_out = make_data.held_out_values()
    assert len(held_out) > 4 * make_data.NUM_HELDOUT
    for name in ("train.jsonl", "preferences.jsonl"):
        rows = make_data.read(make_data.FOLDER / name)
        for text in texts(rows):
            assert held_out.isdisjoint(make_data.values_in(text)), text


def test_held_out_values_appear_in_no_document_of_the_corpus(make_data: ModuleType, make_corpus: ModuleType) -> None:
    held_out = make_data.held_out_values()
    sample = make_data.read(ROOT / "examples/base_model/sample.jsonl")
    for text in [*islice(make_corpus.corpus(500), 500), *(row["text"] for row in sample)]:
        assert held_out.isdisjoint(make_data.values_in(text)), text


def test_a_value_that_is_to_be_avoided_is_never_drawn(make_data: ModuleType) -> None:
    few = make_data.Inventor(random.Random(0))
    drawn = {str(few.number(1, 50)) for _ in range(400)}
    avoided = frozenset(sorted(drawn)[::2])
    careful = make_data.Inventor(random.Random(0), avoid=avoided)
    assert avoided.isdisjoint(str(careful.number(1, 50)) for _ in range(400))


def test_the_script_writes_the_files_that_are_here(
    make_data: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shipped = make_data.FOLDER
    monkeypatch.setattr(make_data, "FOLDER", tmp_path)
    make_data.main()
    for name in ("heldout.jsonl", "train.jsonl", "preferences.jsonl"):
        assert (tmp_path / name).read_bytes() == (shipped / name).read_bytes()


def test_every_answer_is_a_record_of_what_its_sentence_says(make_data: ModuleType) -> None:
    for name in ("heldout.jsonl", "train.jsonl"):
        for row in make_data.read(make_data.FOLDER / name):
            question, answer = row["messages"]
            record = json.loads(answer["content"])
            assert list(record) == ["name", "city", "order", "total"]
            assert all(str(value) in question["content"] for value in record.values())


def test_no_document_of_the_corpus_speaks_the_chat_format_or_holds_the_tasks_record(make_corpus: ModuleType) -> None:
    for text in make_corpus.corpus(500):
        assert "<|im_" not in text
        assert not all(f'"{key}": ' in text for key in ("name", "city", "order", "total"))
