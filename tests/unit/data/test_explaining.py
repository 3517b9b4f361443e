"""A set is explained by what is different from the closest one, in the words of the YAML, and by what is reused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import chat, write_rows
from tests.tiny_tokenizers import byte_level_tokenizer, tiny_tokenizer

from whet.config import make_config
from whet.config.resolve import resolve
from whet.core.types import Hardware
from whet.data import chunks, prepare, workers
from whet.data.explaining import Making, Rows, closest, differences
from whet.data.explaining import explain as explain_run

TITLE = "datasets: chat"
SELECTION = {
    "sequence_len": 512,
    "eval_sequence_len": 512,
    "exact_deduplication": False,
    "val_set_size": 0,
    "seed": None,
}
ENCODING = {
    "code": "c",
    "tokenizer": "t",
    "template": "j",
    "format": "",
    "date": "",
    "options": {"data.train_on_inputs": False},
}


def rows(digests: str, file: str = "chat.jsonl", each: int = 10) -> list[Rows]:
    """A chunk of ten rows for each letter."""
    return [Rows(file, 1 + each * at, each * (at + 1), digest) for at, digest in enumerate(digests)]


def making(*pieces: Rows, selection: dict[str, Any] | None = None, **encoding: Any) -> Making:
    of_chat = {**ENCODING, **encoding, "rows": str(pieces)}
    inputs = {"selection": {**SELECTION, **(selection or {})}, "order": [TITLE], TITLE: of_chat}
    return Making(inputs, {TITLE: list(pieces)})


def joined(**makings: Making) -> Making:
    """One set of several datasets, as they are named."""
    titles = [f"datasets: {name}" for name in makings]
    inputs = {"selection": SELECTION, "order": titles}
    for title, one in zip(titles, makings.values(), strict=True):
        inputs[title] = one.inputs[TITLE]
    return Making(inputs, {title: one.rows[TITLE] for title, one in zip(titles, makings.values(), strict=True)})


OLD = making(*rows("abcdef"))


def test_what_makes_the_same_set_has_no_differences() -> None:
    assert differences(OLD, making(*rows("abcdef"))) == []


@pytest.mark.parametrize(
    ("new", "sentences"),
    [
        (
            making(*rows("abcdef"), selection={"sequence_len": 1024, "eval_sequence_len": 1024}),
            ["sequence_len: 512 -> 1024"],
        ),
        (
            making(*rows("abcdef"), selection={"exact_deduplication": True, "val_set_size": 0.1, "seed": 42}),
            ["dataset_exact_deduplication: false -> true", "val_set_size: 0 -> 0.1"],
        ),
        (making(*rows("abcdef"), code="d"), ["whet's data code changed"]),
        (making(*rows("abcdef"), tokenizer="u", template="k"), ["the tokenizer changed", "the chat template changed"]),
        (
            making(*rows("abcdef"), template="k", options={**ENCODING["options"], "data.train_on_inputs": True}),
            ["train_on_inputs: false -> true", "the chat template changed"],
        ),
        (making(*rows("abcdef"), date="1 May 2026"), ["the date that the chat template writes: not set -> 1 May 2026"]),
        (making(*rows("abcdef"), format="f"), ["chat: the code that reads its rows changed"]),
        (
            making(*rows("abcdef"), options={**ENCODING["options"], "dataset.type": "alpaca"}),
            ["chat: other options are read"],
        ),
        (making(*rows("abXdef")), ["chat.jsonl: 1 of 6 chunks changed (rows 21 to 30)"]),
        (making(*rows("XYcdZf")), ["chat.jsonl: 3 of 6 chunks changed (rows 1 to 20, 41 to 50)"]),
        (
            making(*rows("XbXdXfXg")),
            ["chat.jsonl: 5 of 8 chunks changed (rows 1 to 10, 21 to 30, 41 to 50 and 1 range more)"],
        ),
        (making(*rows("abdef")), ["chat.jsonl: 1 of 6 chunks taken out"]),
        (making(*rows("bacdef")), ["chat.jsonl: its rows stand in other places"]),
        (making(*rows("abcdef", "talk.jsonl")), ["talk.jsonl: rows that stood in another file before"]),
        (making(*rows("abcdef"), *rows("gh", "more.jsonl")), ["more.jsonl added"]),
        (making(*rows("xyz", "other.jsonl")), ["other.jsonl added", "chat.jsonl removed"]),
    ],
)
def test_each_difference_is_a_sentence(new: Making, sentences: list[str]) -> None:
    assert differences(OLD, new) == sentences


def test_an_option_of_one_dataset_is_named_with_it() -> None:
    old, new = (making(*rows("a"), options={"dataset.train_on_eos": value}) for value in (None, "last"))
    assert differences(old, new) == ["chat, train_on_eos: not set -> last"]


def test_a_template_that_a_key_names_is_said_once() -> None:
    old, new = (
        making(*rows("a"), template=name, options={"template.chat_template": name}) for name in ("chatml", "llama3")
    )
    assert differences(old, new) == ["chat_template: chatml -> llama3"]


def test_datasets_come_go_and_change_places() -> None:
    one, two = making(*rows("ab", "one.jsonl")), making(*rows("cd", "two.jsonl"))
    both = joined(one=one, two=two)
    assert differences(joined(one=one), both) == ["dataset two added"]
    assert differences(both, joined(two=two)) == ["dataset one removed"]
    assert differences(both, joined(two=two, one=one)) == ["the datasets stand in another order"]


def test_what_all_datasets_share_is_named_once() -> None:
    old = joined(one=making(*rows("a")), two=making(*rows("b")))
    new = joined(one=making(*rows("a"), tokenizer="u"), two=making(*rows("b"), tokenizer="u"))
    assert differences(old, new) == ["the tokenizer changed"]


def test_a_great_many_files_are_counted() -> None:
    added = [piece for number in range(20) for piece in rows(f"{number}", f"{number}.jsonl")]
    found = differences(OLD, making(*rows("abcdef"), *added))
    assert len(found) == 6
    assert found[-1] == "chat: 15 files more changed"


def test_the_closest_set_differs_least() -> None:
    new = making(*rows("abcdef"), selection={"sequence_len": 1024, "eval_sequence_len": 1024})
    candidates = {
        Path("length"): OLD,
        Path("rows and length"): making(*rows("abXdef")),
        Path("unrelated"): joined(other=making(*rows("uvw"))),
    }
    assert closest(candidates, new) == Path("length")
    assert closest({Path("unrelated"): candidates[Path("unrelated")]}, new) is None
    assert closest({}, new) is None


# -- with real sets ---------------------------------------------------------------------------------------------------

TOKENIZER = tiny_tokenizer("chatml")


@pytest.fixture(autouse=True)
def small_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and chunks of a few rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chunks.chunks_of_stream, "__defaults__", (None, chunks.Cut(least=300, most=900, every=300)))
    write_rows(tmp_path / "chat.jsonl", [chat(f"What is {n} + 1?", f"It is {n + 1}.") for n in range(60)])


def run(call: Any, paths: tuple[str, ...] = ("chat.jsonl",), tokenizer: Any = TOKENIZER, **keys: Any) -> Any:
    values = {
        "base_model": "org/tiny",
        "datasets": [{"path": path, "type": "chat_template"} for path in paths],
        "chat_template": "chatml",
        "learning_rate": 1e-4,
        "sequence_len": 64,
        "output_dir": "out",
        **keys,
    }
    config = make_config(values, check_files=False)
    return call(config, resolve(config, Hardware("cpu")), tokenizer)


def explained(**options: Any) -> list[str]:
    return list(run(explain_run, **options).lines())


def test_without_a_set_everything_must_be_encoded_and_nothing_is() -> None:
    first, second = explained()
    assert first == "not prepared: last_run_prepared has no set of these datasets"
    assert second.startswith("chat: its ")
    assert second.endswith(" chunks must be encoded")
    assert not list(Path("last_run_prepared").glob("**/*.arrow"))
    assert not list(Path("last_run_prepared").glob("*/manifest.json"))


def test_a_set_that_is_there_is_found() -> None:
    prepared = run(prepare.prepare)
    (line,) = explained()
    assert line.startswith(f"prepared: {prepared.path}, made 2")


def test_another_length_reuses_every_chunk_file() -> None:
    prepared = run(prepare.prepare)
    head, difference, reuse = explained(sequence_len=128)
    assert head.startswith(f"not prepared; beside {prepared.path}, made 2")
    assert difference == "  sequence_len: 64 -> 128"
    count = len(prepared.manifest["chunks"])
    assert reuse == f"chat: all {count} chunk files are reused"


def test_an_edited_row_is_named_by_its_chunk_which_alone_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    before = run(prepare.prepare).manifest["chunks"]
    edited = before[2]
    lines = Path("chat.jsonl").read_text().splitlines(keepends=True)
    lines[edited["first"]] = lines[edited["first"]].replace("What", "That")
    Path("chat.jsonl").write_text("".join(lines))
    _, difference, reuse = explained()
    named = f"rows {edited['first']} to {edited['last']}"
    assert difference == f"  chat.jsonl: 1 of {len(before)} chunks changed ({named})"
    assert (
        reuse == f"chat: {len(before) - 1} of {len(before)} chunk files are reused; to be encoded: chat.jsonl, {named}"
    )

    encoded = []
    encode_chunk = workers.encode_chunk

    def noted(chunk: Any, *rest: Any) -> Any:
        encoded.append(chunk.first)
        return encode_chunk(chunk, *rest)

    monkeypatch.setattr(workers, "encode_chunk", noted)
    run(prepare.prepare)
    assert encoded == [edited["first"]]


def test_tokenizer_template_and_code_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    count = len(run(prepare.prepare).manifest["chunks"])
    other = byte_level_tokenizer(["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|more|>"])
    assert explained(tokenizer=other)[1:] == ["  the tokenizer changed", f"chat: its {count} chunks must be encoded"]
    assert explained(chat_template="jinja", chat_template_jinja=TOKENIZER.chat_template + "{# #}")[1].startswith(
        "  chat_template: chatml -> jinja"
    )
    monkeypatch.setattr(prepare, "code_identity", lambda: "another")
    assert explained()[1] == "  whet's data code changed"


def test_a_dataset_that_is_added_is_named_and_the_other_is_reused() -> None:
    run(prepare.prepare)
    write_rows(Path("more.jsonl"), [chat("One more?", "One more.")])
    _, difference, first, second = explained(paths=("chat.jsonl", "more.jsonl"))
    assert difference == "  dataset more added"
    assert first.endswith("chunk files are reused")
    assert second == "more: its 1 chunk must be encoded"


def test_a_damaged_set_is_not_called_prepared() -> None:
    folder = run(prepare.prepare).path
    os.truncate(folder / "index.arrow", 10)
    assert explained()[0].endswith("is damaged and is made again")
