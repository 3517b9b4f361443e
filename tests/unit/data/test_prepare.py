"""Preparing accounts for every row, is done once for the same content, and leaves a whole set or none."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tests.tiny_tokenizers import byte_level_tokenizer, tiny_tokenizer
from tokenizers import AddedToken

from whet.config import Config
from whet.config.load import load_config, make_config
from whet.config.resolve import resolve
from whet.core.errors import DataError
from whet.core.types import Hardware
from whet.data import chunk_file, store, workers
from whet.data import chunks as chunks_module
from whet.data import prepare as module
from whet.data.chunks import Cut
from whet.data.files import LocalFile
from whet.data.prepare import find_prepared, prepare
from whet.data.store import PreferenceSplit, PreparedSet
from whet.data.summary import ledgers_of, summary

TOKENIZER = tiny_tokenizer("chatml")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The digests of the chunks that were encoded."""
    digests: list[str] = []
    encode = workers.encode_chunk

    def counting(chunk: Any, *rest: Any) -> Any:
        digests.append(chunk.digest)
        return encode(chunk, *rest)

    monkeypatch.setattr(workers, "encode_chunk", counting)
    return digests


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a few rows are several chunks."""
    cut = Cut(least=150, most=2000, every=300)
    for function in (chunks_module.chunks_of_stream, chunks_module.chunks_of_lines):
        monkeypatch.setattr(function, "__defaults__", (*function.__defaults__[:-1], cut))


def write(path: str | Path, rows: Iterable[Any]) -> None:
    lines = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    data = lines.encode()
    Path(path).write_bytes(gzip.compress(data, mtime=0) if str(path).endswith(".gz") else data)


def numbers(first: int, length: int) -> dict[str, list[int]]:
    """A row of so many tokens, all trained, the first of which is its own."""
    return {"input_ids": [first, *range(1, length)]}


def write_lengths(path: str | Path, lengths: Sequence[int], first: int = 0) -> None:
    write(path, [numbers(first + number, length) for number, length in enumerate(lengths)])


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def chats(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [chat(("user", f"say {n}"), ("assistant", f"the answer {n}")) for n in range(first, first + count)]


def config_of(*paths: str, tests: Sequence[str] = (), type: Any = None, **keys: Any) -> Config:
    """A config whose datasets are tokens already, unless they have a type. Keys of a dataset come as ``dataset={}``."""
    options = keys.pop("dataset", {})
    rows = [{"path": path, **({"type": type} if type else {}), **options} for path in paths]
    test_rows = [{"path": path, **({"type": type} if type else {}), **options} for path in tests]
    values = {
        "base_model": "org/tiny",
        "datasets": rows,
        "chat_template": "chatml",
        "learning_rate": 1e-4,
        "optimizer": "adamw_torch",
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "sequence_len": 10,
        "output_dir": "out",
        **({"test_datasets": test_rows} if test_rows else {}),
        **keys,
    }
    return make_config({key: value for key, value in values.items() if value is not None}, check_files=False)


def run(config: Config, tokenizer: Any = TOKENIZER, **options: Any) -> PreparedSet:
    return prepare(config, resolve(config, Hardware("cpu")), tokenizer, **options)


def without_times(prepared: PreparedSet) -> dict[str, Any]:
    """The manifest, but for when the set and its files were made."""
    return {key: value for key, value in prepared.manifest.items() if key not in ("created", "modified_ns")}


def first_ids(split: Any) -> list[int]:
    return [int(split.tokens(index)[0][0]) for index in range(len(split))]


def reasons(prepared: PreparedSet, dataset: int = 0) -> dict[str, int]:
    return {reason: tally.count for reason, tally in ledgers_of(prepared)[dataset].dropped.items()}


def test_tokens_that_the_template_has_and_the_tokenizer_lacks_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write(name, chats(2, first=ord(name[0])))
    config = config_of("a.jsonl", "b.jsonl", type="chat_template", chat_template="llama3", sequence_len=512)
    run(config)
    (warned,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned.startswith(
        "chat_template: the chat template llama3 writes '<|start_header_id|>', '<|end_header_id|>', "
    )
    caplog.clear()
    run(config_of("a.jsonl", "b.jsonl", type="chat_template", sequence_len=512))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


# -- rows ------------------------------------------------------------------------------------------------------------


def test_conversations_become_samples_whose_targets_are_the_answers() -> None:
    rows = chats(3)
    write("chat.jsonl", rows)
    prepared = run(config_of("chat.jsonl", type="chat_template", sequence_len=512))
    for number, row in enumerate(rows):
        ids, supervised = prepared.train.tokens(number)
        assert ids.tolist() == TOKENIZER.apply_chat_template(row["messages"])["input_ids"]
        assert TOKENIZER.decode(ids[supervised]).startswith(f"the answer {number}<|im_end|>")
    assert prepared.train.names == ("chat",)
    assert prepared.train.place(1) == "chat.jsonl:2"
    assert prepared.validation is None


def test_rows_of_tokens_text_and_preferences_are_prepared_too() -> None:
    write("tokens.jsonl", [{"input_ids": [1, 2, 3], "labels": [-100, -100, 3], "attention_mask": [1] * 3}])
    ids, supervised = run(config_of("tokens.jsonl")).train.tokens(0)
    assert (ids.tolist(), supervised.tolist()) == ([1, 2, 3], [False, False, True])

    write("text.jsonl", [{"text": "a long text of many words " * 5}])
    pieces = run(config_of("text.jsonl", type="completion")).train
    assert len(pieces) > 1
    assert set(pieces.lengths[:-1].tolist()) == {10}
    whole = np.concatenate([pieces.tokens(index)[0] for index in range(len(pieces))])
    assert TOKENIZER.decode(whole, skip_special_tokens=True) == "a long text of many words " * 5

    turns = [{"role": "user", "content": "1 + 1?"}]
    answers = {"chosen": {"role": "assistant", "content": "2"}, "rejected": {"role": "assistant", "content": "3"}}
    write("dpo.jsonl", [{"messages": turns, **answers}])
    prepared = run(config_of("dpo.jsonl", type="chat_template", rl="dpo", sequence_len=512))
    assert isinstance(prepared.train, PreferenceSplit)
    prompt, chosen, rejected = prepared.train.pair(0)
    assert TOKENIZER.decode(prompt) == TOKENIZER.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert [TOKENIZER.decode(answer) for answer in (chosen, rejected)] == ["2<|im_end|>", "3<|im_end|>"]


def test_every_row_is_kept_or_dropped_with_its_reason() -> None:
    rows = [numbers(1, 3), "{", numbers(1, 1), numbers(0, 11), {"other": 1}, "", numbers(4, 2), "[]"]
    write("a.jsonl", rows)
    prepared = run(config_of("a.jsonl", on_bad_row="drop"))
    (ledger,) = ledgers_of(prepared)
    assert reasons(prepared) == {
        "not valid JSON": 1,
        "not a JSON object": 1,
        "missing field": 1,
        "shorter than min_sample_len": 1,
        "longer than sequence_len": 1,
    }
    assert (ledger.read, ledger.kept, ledger.num_dropped) == (7, 2, 5)
    assert prepared.train.row.tolist() == [1, 7]  # the blank line is counted as a line, and is no row


def test_bad_rows_end_the_preparation_with_one_error_that_names_all_of_them(in_empty_folder: Path) -> None:
    write("a.jsonl", [numbers(1, 2), *[{"other": 1}] * 7, "{"])
    write("b.jsonl", [{"x": 1}])
    with pytest.raises(DataError) as caught:
        run(config_of("a.jsonl", "b.jsonl"))
    places = [problem.where for problem in caught.value.problems]
    assert sorted(places) == ["a.jsonl:2", "a.jsonl:9", "b.jsonl:1"]
    told = "missing field ('input_ids' is not in the row; it has other); 7 rows, also a.jsonl:3, 4, 5, 6 and 2 more"
    assert told in str(caught.value)
    assert not list(in_empty_folder.glob("last_run_prepared/*/manifest.json"))
    assert not list(in_empty_folder.glob("last_run_prepared/.*"))


def test_bad_rows_of_a_set_made_without_them_are_an_error_where_they_are_one() -> None:
    write("a.jsonl", [numbers(1, 2), {"other": 1}])
    dropped = run(config_of("a.jsonl", on_bad_row="drop"))
    with pytest.raises(DataError, match=r"^a\.jsonl:2: missing field"):
        run(config_of("a.jsonl"))
    assert run(config_of("a.jsonl", on_bad_row="drop")).path == dropped.path


def test_a_split_that_takes_all_rows_does_not_hide_that_most_were_bad() -> None:
    write("a.jsonl", [numbers(1, 2), numbers(2, 2), *[{"other": 1}] * 3])
    with pytest.raises(DataError) as caught:
        run(config_of("a.jsonl", val_set_size=2))
    assert [problem.where for problem in caught.value.problems] == ["a.jsonl:3", "val_set_size"]
    assert "missing field" in caught.value.problems[0].found
    assert caught.value.problems[1].found == "val_set_size 2 takes all 2 samples, nothing is left to train on"
    with pytest.raises(DataError, match=r"nothing is left to train on \(3 of 5 rows were dropped\) -> set it lower"):
        run(config_of("a.jsonl", val_set_size=2, on_bad_row="drop"))


def test_long_rows_are_dropped_cut_or_refused_as_asked() -> None:
    write_lengths("a.jsonl", [5, 12, 30])
    dropped = run(config_of("a.jsonl"))
    assert (dropped.train.lengths.tolist(), reasons(dropped)) == ([5], {"longer than sequence_len": 2})
    cut = run(config_of("a.jsonl", excess_length_strategy="truncate"))
    assert (cut.train.lengths.tolist(), ledgers_of(cut)[0].cut["cut at sequence_len"].count) == ([5, 10, 10], 2)
    with pytest.raises(
        DataError, match=r"^a\.jsonl:2: longer than sequence_len 10 \(12 tokens\); 2 rows, .* to 30, or set"
    ):
        run(config_of("a.jsonl", excess_length_strategy="raise", on_bad_row="drop"))


def test_long_rows_may_become_several_samples() -> None:
    write("a.jsonl", [chat(("user", "x"), ("assistant", "word " * 40)), *chats(1)])
    config = config_of("a.jsonl", type="chat_template", sequence_len=64, excess_length_strategy="split")
    prepared = run(config)
    whole = TOKENIZER.apply_chat_template(chat(("user", "x"), ("assistant", "word " * 40))["messages"])["input_ids"]
    pieces = [prepared.train.tokens(at)[0].tolist() for at in range(len(prepared.train) - 1)]
    assert [token for piece in pieces for token in piece] == whole
    assert len(pieces) > 1
    assert set(map(len, pieces[:-1])) == {64}
    (ledger,) = ledgers_of(prepared)
    assert (ledger.read, ledger.kept, ledger.samples) == (2, 2, len(pieces) + 1)
    assert ledger.cut["split at sequence_len"].count == 1


def test_a_set_with_nothing_in_it_is_an_error() -> None:
    Path("empty.jsonl").touch()
    write_lengths("long.jsonl", [20, 30])
    with pytest.raises(DataError) as caught:
        run(config_of("empty.jsonl", "long.jsonl"))
    first, second = map(str, caught.value.problems)
    assert "'empty' has no rows -> check the file" in first
    told = "'long': all 2 rows are longer than sequence_len 10 (shortest 20 tokens) -> raise sequence_len to at l"
    assert told in second


def test_every_source_that_is_missing_is_named_at_once() -> None:
    with pytest.raises(DataError) as caught:
        run(config_of("a.jsonl", "b.jsonl"))
    assert [problem.found for problem in caught.value.problems] == [
        "no file or folder 'a.jsonl'",
        "no file or folder 'b.jsonl'",
    ]


# -- validation, order, duplicates -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "count"), [(0.25, 10), (0.001, 1), (7, 7)])
def test_validation_rows_are_the_same_in_whatever_order_the_sources_stand(size: float, count: int) -> None:
    write_lengths("a.jsonl", [4] * 15)
    write_lengths("b.jsonl", [4] * 25, first=100)
    one = run(config_of("a.jsonl", "b.jsonl", val_set_size=size))
    other = run(config_of("b.jsonl", "a.jsonl", val_set_size=size))
    assert len(one.validation) == count
    assert sorted(first_ids(one.validation)) == sorted(first_ids(other.validation))
    assert sorted(first_ids(one.train) + first_ids(one.validation)) == [*range(15), *range(100, 125)]


def test_another_seed_draws_other_validation_rows() -> None:
    write_lengths("a.jsonl", [4] * 40)
    drawn = {tuple(first_ids(run(config_of("a.jsonl", val_set_size=8, seed=seed)).validation)) for seed in range(3)}
    assert len(drawn) == 3


def test_validation_takes_only_what_fits_eval_sequence_len() -> None:
    for first in range(0, 100, 20):  # whichever of all rows has the largest draw
        write_lengths("a.jsonl", [4, 9] * 10, first=first)
        prepared = run(config_of("a.jsonl", val_set_size=10, eval_sequence_len=5))
        assert prepared.validation.lengths.tolist() == [4] * 10
        assert prepared.train.lengths.tolist() == [9] * 10
    with pytest.raises(
        DataError, match="val_set_size 11 takes 11 samples, only 10 fit eval_sequence_len -> set it lower"
    ):
        run(config_of("a.jsonl", val_set_size=11, eval_sequence_len=5))


def test_the_last_rows_may_be_those_to_validate_on() -> None:
    write_lengths("a.jsonl", [4] * 5)
    write_lengths("b.jsonl", [4] * 5, first=100)
    prepared = run(config_of("a.jsonl", "b.jsonl", val_set_size=3, val_set_from="tail"))
    assert first_ids(prepared.validation) == [102, 103, 104]
    assert first_ids(prepared.train) == [0, 1, 2, 3, 4, 100, 101]


def test_test_datasets_are_the_validation_split_with_their_own_length_limit() -> None:
    write_lengths("a.jsonl", [4, 5])
    write_lengths("b.jsonl", [6, 12], first=100)
    prepared = run(config_of("a.jsonl", tests=["b.jsonl"], eval_sequence_len=20))
    assert first_ids(prepared.train) == [0, 1]
    assert first_ids(prepared.validation) == [100, 101]
    assert prepared.validation.names == ("a", "b")
    assert set(prepared.validation.source.tolist()) == {1}


def test_duplicates_are_kept_once_in_training_and_once_in_test_datasets() -> None:
    write("a.jsonl", [{"input_ids": ids} for ids in ([1, 2], [3, 4], [1, 2])])
    write("b.jsonl", [{"input_ids": ids} for ids in ([3, 4], [5, 6], [5, 6])])
    prepared = run(config_of("a.jsonl", tests=["b.jsonl"], dataset_exact_deduplication=True))
    assert first_ids(prepared.train) == [1, 3]
    assert first_ids(prepared.validation) == [3, 5]
    assert [reasons(prepared, dataset) for dataset in (0, 1)] == [{"exact duplicate": 1}] * 2


@pytest.mark.parametrize("deduplicated", [False, True])
def test_what_training_and_test_datasets_share_is_told_dropped_or_refused(
    deduplicated: bool, caplog: pytest.LogCaptureFixture
) -> None:
    write("a.jsonl", [{"input_ids": ids} for ids in ([1, 2], [3, 4])])
    write("b.jsonl", [{"input_ids": ids} for ids in ([3, 4], [5, 6])])
    keys: dict[str, Any] = {"tests": ["b.jsonl"], "dataset_exact_deduplication": deduplicated}
    told = run(config_of("a.jsonl", **keys))
    assert "1 of 2 test rows are training rows too (b.jsonl:1 = a.jsonl:2)" in caplog.text
    assert told.manifest["eval_overlap"] == {
        "rows": 2,
        "exact": 1,
        "near": 0,
        "examples": [["b.jsonl:1", "a.jsonl:2"]],
    }
    assert first_ids(told.validation) == [3, 5]
    dropped = run(config_of("a.jsonl", eval_overlap="drop", **keys))
    assert (first_ids(dropped.train), first_ids(dropped.validation)) == ([1, 3], [5])
    assert reasons(dropped, 1) == {"also in the training data": 1}
    with pytest.raises(DataError, match=r"1 test rows are training rows too \(b\.jsonl:1 = a\.jsonl:2\) -> take them"):
        run(config_of("a.jsonl", eval_overlap="raise", **keys))
    with pytest.raises(DataError, match="every row of the test datasets is also a row of the training datasets"):
        run(config_of("a.jsonl", eval_overlap="drop", **{**keys, "tests": ["a.jsonl"]}))


def test_datasets_keep_their_order_and_may_each_be_shuffled() -> None:
    write_lengths("a.jsonl", [4] * 20)
    write_lengths("b.jsonl", [4] * 20, first=100)
    assert first_ids(run(config_of("a.jsonl", "b.jsonl")).train) == [*range(20), *range(100, 120)]
    shuffled = first_ids(run(config_of("a.jsonl", "b.jsonl", shuffle_before_merging_datasets=True)).train)
    assert shuffled != sorted(shuffled)
    assert (sorted(shuffled[:20]), sorted(shuffled[20:])) == (list(range(20)), list(range(100, 120)))


def test_datasets_of_one_name_are_told_apart() -> None:
    for folder in ("x", "y"):
        Path(folder).mkdir()
        write_lengths(f"{folder}/chat.jsonl", [4])
    assert run(config_of("x/chat.jsonl", "y/chat.jsonl")).train.names == ("chat", "chat-2")


def test_rows_of_another_kind_than_the_method_trains_on_are_an_error() -> None:
    code = "from whet.core.types import Preference, Tokens, Turn\n"
    code += "def row(row):\n    return Tokens([1, 2], [True, True])\n"
    Path("mine.py").write_text(code)
    write("a.jsonl", [{"x": 1}])
    with pytest.raises(
        DataError, match=r"'a\.jsonl' has no preferences: its rows \(type 'mine\.py:row'\) hold one answ"
    ):
        run(config_of("a.jsonl", type="mine.py:row", rl="dpo"))
    turn = "(Turn({'role': 'assistant', 'content': '%s'}),)"
    Path("pairs.py").write_text(code.replace("Tokens([1, 2], [True, True])", f"Preference((), {turn % 1}, {turn % 2})"))
    with pytest.raises(DataError, match=r"'a\.jsonl' has preferences .* and no `rl` method is set .* -> set `rl: dpo`"):
        run(config_of("a.jsonl", type="pairs.py:row"))


# -- once for the same content ---------------------------------------------------------------------------------------


def test_the_same_content_is_prepared_once(encoded: list[str]) -> None:
    write_lengths("a.jsonl", [4, 5])
    config = config_of("a.jsonl")
    assert find_prepared(config, resolve(config, Hardware("cpu")), TOKENIZER) is None
    first = run(config)
    found = find_prepared(config, resolve(config, Hardware("cpu")), TOKENIZER)
    assert found is not None
    assert found.path == first.path
    again = run(config_of("a.jsonl"))
    assert (again.path, again.manifest["created"]) == (first.path, first.manifest["created"])
    assert len(encoded) == 1
    assert run(config_of("a.jsonl"), refresh=True).manifest["created"] != first.manifest["created"]
    assert len(encoded) == 2


def _own_format(answer: str) -> None:
    Path("mine.py").write_text(f"def row(row):\n    return {{'text': str(row['n']) + ' {answer} ' * 2}}\n")


def _rows(answer: str = "answer") -> list[dict[str, Any]]:
    """Rows of many types at once."""
    rows: list[dict[str, Any]] = [
        {
            **chat(("user", f"say {n}"), ("assistant", f"{answer} {n}")),
            "n": n,
            "text": f"some text {n}",
            "other": f"other text {n}",
            "prompt": f"say {n}",
            "chosen": "yes",
            "rejected": "no",
            "completion": "yes",
            "label": n % 2 == 0,
        }
        for n in range(6)
    ]
    write("a.jsonl", rows)
    return rows


CHATS: dict[str, Any] = {"type": "chat_template", "sequence_len": 256}

MISSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # What the set is made from -> (keys before, keys after).
    "train_on_inputs": (CHATS, {**CHATS, "train_on_inputs": True}),
    "chat_template": (CHATS, {**CHATS, "chat_template": "llama3"}),
    "chat_template_jinja": (CHATS, {**CHATS, "chat_template": None, "chat_template_jinja": "@jinja"}),
    "chat_template_kwargs": (CHATS, {**CHATS, "chat_template_kwargs": {"mood": "glad"}}),
    "eot_tokens": (CHATS, {**CHATS, "eot_tokens": ["<|im_start|>"]}),
    "sequence_len": (CHATS, {**CHATS, "sequence_len": 255}),
    "eval_sequence_len": ({**CHATS, "val_set_size": 2}, {**CHATS, "val_set_size": 2, "eval_sequence_len": 200}),
    "excess_length_strategy": (CHATS, {**CHATS, "excess_length_strategy": "truncate"}),
    "min_sample_len": (CHATS, {**CHATS, "min_sample_len": 3}),
    "dataset_exact_deduplication": (CHATS, {**CHATS, "dataset_exact_deduplication": True}),
    "dataset_near_deduplication": (CHATS, {**CHATS, "dataset_near_deduplication": 0.8}),
    "near threshold": (
        {**CHATS, "dataset_near_deduplication": 0.9},
        {**CHATS, "dataset_near_deduplication": 0.8},
    ),
    "eval_overlap": (CHATS, {**CHATS, "eval_overlap": "drop"}),
    "val_set_size": (CHATS, {**CHATS, "val_set_size": 2}),
    "val_set_from": ({**CHATS, "val_set_size": 2}, {**CHATS, "val_set_size": 2, "val_set_from": "tail"}),
    "seed of what is drawn": ({**CHATS, "val_set_size": 2}, {**CHATS, "val_set_size": 2, "seed": 7}),
    "shuffle_before_merging_datasets": (CHATS, {**CHATS, "shuffle_before_merging_datasets": True}),
    "rl": ({"rl": "dpo"}, {"rl": "kto"}),
    "field": ({"type": "completion"}, {"type": "completion", "dataset": {"field": "other"}}),
    "roles_to_train": (CHATS, {**CHATS, "dataset": {"roles_to_train": ["user"]}}),
    "train_on_eos": (CHATS, {**CHATS, "dataset": {"train_on_eos": "none"}}),
    "train_on_eot": (CHATS, {**CHATS, "dataset": {"train_on_eot": "none"}}),
    "explode_turns": (CHATS, {**CHATS, "dataset": {"explode_turns": True}}),
    "keep_history": (CHATS, {**CHATS, "dataset": {"keep_history": True}}),
    "field_messages": (CHATS, {**CHATS, "dataset": {"field_messages": "messages"}}),
    "drop_system_message": (CHATS, {**CHATS, "dataset": {"drop_system_message": True}}),
    "split_thinking": (CHATS, {**CHATS, "dataset": {"split_thinking": True}}),
    "a dataset's kwargs": (CHATS, {**CHATS, "dataset": {"chat_template_kwargs": {"mood": "sad"}}}),
    "a dataset's template": (CHATS, {**CHATS, "dataset": {"chat_template": "llama3"}}),
    "the rows chosen": (CHATS, {**CHATS, "dataset": {"split": "train[1:]"}}),
    "the part of all rows": (CHATS, {**CHATS, "dataset_shard_num": 2, "dataset_shard_idx": 1}),
    "the type": (CHATS, {"type": "completion", "sequence_len": 256}),
    "a prompt of one's own": (
        {"type": {"format": "Q {instruction}", "field_instruction": "text", "field_output": "text"}},
        {"type": {"format": "Q: {instruction}", "field_instruction": "text", "field_output": "text"}},
    ),
}

HITS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "output_dir": (CHATS, {**CHATS, "output_dir": "elsewhere"}),
    "learning_rate": (CHATS, {**CHATS, "learning_rate": 5e-3}),
    "num_epochs": (CHATS, {**CHATS, "num_epochs": 7}),
    "dataset_num_proc": (CHATS, {**CHATS, "dataset_num_proc": 2}),
    "seed of nothing drawn": (CHATS, {**CHATS, "seed": 7}),
    "on_bad_row": (CHATS, {**CHATS, "on_bad_row": "drop"}),
    "an option that this type does not read": (CHATS, {**CHATS, "dataset": {"field": "n"}}),
    "the same, of text": (
        {"type": "completion"},
        {"type": "completion", "dataset": {"field_messages": "x", "roles_to_train": None}},
    ),
    "weight": (CHATS, {**CHATS, "dataset": {"weight": 2}}),
    "sample_packing": (CHATS, {**CHATS, "sample_packing": True}),
    "the default written out": (CHATS, {**CHATS, "min_sample_len": 2}),
}


def made(keys: dict[str, Any], **options: Any) -> tuple[str, str]:
    """The folder and the time of the set of these keys."""
    prepared = run(config_of("a.jsonl", **{"sequence_len": 64, **keys}), **options)
    return prepared.path.name, prepared.manifest["created"]


@pytest.mark.parametrize("name", MISSES)
def test_what_shapes_the_set_gives_it_another_name(name: str) -> None:
    before, after = (dict(keys) for keys in MISSES[name])
    if after.get("chat_template_jinja") == "@jinja":
        after["chat_template_jinja"] = TOKENIZER.chat_template + "{# another text #}"
    _rows()
    first, second = made(before), made(after)
    assert first[0] != second[0]
    assert (made(before), made(after)) == (first, second)


@pytest.mark.parametrize("name", HITS)
def test_what_does_not_shape_the_set_finds_it_again(name: str, encoded: list[str]) -> None:
    before, after = HITS[name]
    _rows()
    first = made(before)
    count = len(encoded)
    assert made(after) == first
    assert len(encoded) == count


def test_other_rows_give_it_another_name() -> None:
    _rows()
    first = made(CHATS)
    _rows("an answer")
    assert made(CHATS)[0] != first[0]
    rows = _rows()  # the same bytes again, at another time
    assert made(CHATS) == first
    write("a.jsonl", rows[::-1])
    assert made(CHATS)[0] != first[0]


def test_another_order_of_the_datasets_gives_it_another_name() -> None:
    write_lengths("a.jsonl", [4])
    write_lengths("b.jsonl", [4], first=50)
    one, other = run(config_of("a.jsonl", "b.jsonl")), run(config_of("b.jsonl", "a.jsonl"))
    assert one.path != other.path
    assert (first_ids(one.train), first_ids(other.train)) == ([0, 50], [50, 0])


def test_another_tokenizer_gives_it_another_name() -> None:
    _rows()

    def folder(tokenizer: Any) -> str:
        return made(CHATS, tokenizer=tokenizer)[0]

    specials = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    base = folder(byte_level_tokenizer(specials))
    assert folder(byte_level_tokenizer(specials)) == base
    others = {
        "vocabulary": folder(byte_level_tokenizer(specials, vocab_size=300)),
        "special token": folder(byte_level_tokenizer([*specials, "<more>"])),
        "eos": folder(byte_level_tokenizer(specials, eos="<|im_end|>")),
        "bos": folder(byte_level_tokenizer(specials, adds_bos=True)),
    }
    tokenizer = byte_level_tokenizer(specials)
    tokenizer.add_tokens([AddedToken("answer", special=False)])
    others["added token"] = folder(tokenizer)
    assert len({base, *others.values()}) == 1 + len(others)


def test_the_state_of_the_tokenizers_last_call_is_no_part_of_the_name() -> None:
    _rows()
    tokenizer = byte_level_tokenizer(["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"])
    first = made(CHATS, tokenizer=tokenizer)
    tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=5)
    assert made(CHATS, tokenizer=tokenizer) == first


def test_another_version_of_whet_gives_it_another_name(monkeypatch: pytest.MonkeyPatch, encoded: list[str]) -> None:
    _rows()
    first = made(CHATS)
    monkeypatch.setattr(module, "code_identity", lambda: "another")
    assert made(CHATS)[0] != first[0]
    assert len(encoded) == 2


def test_a_changed_format_of_ones_own_gives_it_another_name() -> None:
    _rows()
    keys = {"type": "mine.py:row", "sequence_len": 64}
    names = []
    for answer in ("yes", "no", "yes"):
        _own_format(answer)
        names.append(made(keys)[0])
    assert names[0] == names[2] != names[1]


def test_a_changed_template_file_gives_it_another_name() -> None:
    _rows()
    names = []
    for text in ("", "{# x #}", ""):
        Path("my.jinja").write_text(TOKENIZER.chat_template + text)
        names.append(made({**CHATS, "chat_template": None, "chat_template_jinja": "my.jinja"})[0])
    assert names[0] == names[2] != names[1]


def test_a_comment_in_the_yaml_is_no_part_of_the_name() -> None:
    _rows()
    text = """
        base_model: org/tiny
        datasets:
          - path: a.jsonl
            type: chat_template
        chat_template: chatml
        learning_rate: 1e-4
        sequence_len: 256
        output_dir: out
    """
    paths = []
    for comment in ("", "# a comment\n\n"):
        Path("c.yaml").write_text(comment + textwrap.dedent(text))
        paths.append(run(load_config("c.yaml")).path)
    assert paths[0] == paths[1]


def test_a_test_dataset_shares_the_encoded_rows_of_a_training_dataset(encoded: list[str]) -> None:
    write_lengths("a.jsonl", [4, 5])
    write_lengths("b.jsonl", [6, 7], first=50)
    run(config_of("a.jsonl", tests=["b.jsonl"]))
    assert len(encoded) == 2
    run(config_of("b.jsonl", tests=["a.jsonl"]))
    assert len(encoded) == 2


# -- by chunks -------------------------------------------------------------------------------------------------------


def test_an_edited_row_encodes_its_chunk_alone(small_chunks: None, encoded: list[str]) -> None:
    rows = chats(60)
    write("a.jsonl", rows)
    config = config_of("a.jsonl", type="chat_template", sequence_len=256)
    first = run(config)
    count = len(encoded)
    assert count > 10
    rows[30]["messages"][1]["content"] += " after all"
    write("a.jsonl", rows)
    second = run(config)
    assert second.path != first.path
    assert 1 <= len(encoded) - count <= 2  # its border may have moved to the next chunk
    assert len(set(encoded)) == len(encoded)
    ids, _ = second.train.tokens(30)
    assert ids.tolist() == TOKENIZER.apply_chat_template(rows[30]["messages"])["input_ids"]
    assert [first.train.place(at) for at in range(60)] == [second.train.place(at) for at in range(60)]


def test_inserted_and_moved_rows_keep_their_numbers(small_chunks: None, encoded: list[str]) -> None:
    """The file of a chunk is used again where its rows stand elsewhere; bad rows are named where they stand now."""
    rows: list[Any] = chats(60)
    rows[50] = {"wrong": 1}
    rows[40] = "{"
    write("a.jsonl", rows)
    config = config_of("a.jsonl", type="chat_template", sequence_len=256, on_bad_row="drop")
    run(config)
    count = len(encoded)
    write("a.jsonl", [*chats(3, first=900), "", *rows])
    moved = run(config)
    assert len(encoded) - count <= 3
    assert moved.train.row.tolist() == [1, 2, 3, *(n + 5 for n in range(60) if n not in (40, 50))]
    places = {reason: tally.examples[0][0] for reason, tally in ledgers_of(moved)[0].dropped.items()}
    assert sorted(places.values()) == ["a.jsonl:45", "a.jsonl:55"]
    run(config_of("a.jsonl", type="chat_template", sequence_len=256, on_bad_row="drop", dataset={"skip": 2}))


@pytest.mark.parametrize(
    "keys",
    [
        {"sequence_len": 40},
        {"val_set_size": 5},
        {"excess_length_strategy": "split"},
        {"dataset_exact_deduplication": True},
        {"min_sample_len": 5},
    ],
)
def test_what_is_chosen_among_the_rows_encodes_none(keys: dict[str, Any], encoded: list[str]) -> None:
    write("a.jsonl", chats(20))
    common = {"type": "chat_template", "sequence_len": 256}
    run(config_of("a.jsonl", **common))
    count = len(encoded)
    run(config_of("a.jsonl", **{**common, **keys}))
    assert len(encoded) == count


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_a_preparation_that_is_asked_for_again_reads_the_rows_again(ending: str, encoded: list[str]) -> None:
    file = f"a.{ending}"
    write(file, chats(5))
    os.utime(file, (1, 1))  # so that its stamp is trusted
    config = config_of(file, type="chat_template", sequence_len=256)
    first = run(config)
    run(config)
    assert len(encoded) == 1
    again = run(config, refresh=True)
    assert len(encoded) == 2
    assert without_times(again) == without_times(first)


def test_a_damaged_chunk_is_encoded_again(encoded: list[str], in_empty_folder: Path) -> None:
    write("a.jsonl.gz", chats(5))
    os.utime("a.jsonl.gz", (1, 1))
    run(config_of("a.jsonl.gz", type="chat_template", sequence_len=256))
    (file,) = in_empty_folder.glob("last_run_prepared/chunks/*/*.arrow")
    file.unlink()
    prepared = run(config_of("a.jsonl.gz", type="chat_template", sequence_len=200))
    assert len(encoded) == 2
    assert len(prepared.train) == 5


def test_a_damaged_set_is_made_again(encoded: list[str], caplog: pytest.LogCaptureFixture) -> None:
    write("a.jsonl", chats(5))
    config = config_of("a.jsonl", type="chat_template", sequence_len=256)
    first = run(config)
    (first.path / "index.arrow").write_bytes(b"")
    again = run(config)
    assert len(again.train) == 5
    assert "it must be made again" in caplog.text
    assert len(encoded) == 1


def test_a_set_with_another_byte_is_made_again(encoded: list[str], caplog: pytest.LogCaptureFixture) -> None:
    write("a.jsonl", chats(5))
    config = config_of("a.jsonl", type="chat_template", sequence_len=256)
    first = run(config)
    ids = first.train.tokens(0)[0].tolist()
    chunk = first.path / "chunks" / "00000.arrow"
    whole = chunk.read_bytes()
    at = whole.find(np.array(ids, np.int32).tobytes())
    del first
    chunk.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])  # a hard link: in the pool too
    assert run(config).train.tokens(0)[0].tolist() == ids
    assert "00000.arrow: other bytes than those that were written; it must be made again" in caplog.text
    assert len(encoded) == 2


def test_what_was_remembered_of_a_file_is_forgotten_where_it_is_not_so(
    monkeypatch: pytest.MonkeyPatch, in_empty_folder: Path
) -> None:
    """A program may write to a file and leave no trace of it in what a stamp is made of."""
    monkeypatch.setattr(LocalFile, "stamp", lambda file: "always the same")
    keys: dict[str, Any] = {"type": "chat_template", "sequence_len": 256}
    write("a.jsonl", chats(5))
    run(config_of("a.jsonl", **keys))
    write("a.jsonl", chats(5, first=3))
    shutil.rmtree(in_empty_folder / "last_run_prepared" / "chunks")
    again = run(config_of("a.jsonl", **{**keys, "sequence_len": 255}))  # another set of the same rows
    whole = TOKENIZER.apply_chat_template(chats(1, first=3)[0]["messages"])["input_ids"]
    assert again.train.tokens(0)[0].tolist() == whole


# -- several at once, killed, not writable ---------------------------------------------------------------------------


def test_of_several_that_prepare_at_once_one_works(encoded: list[str]) -> None:
    write_lengths("a.jsonl", [4] * 50)
    config, start = config_of("a.jsonl"), threading.Barrier(4)
    results: list[str] = []

    def work() -> None:
        start.wait()
        results.append(run(config).manifest["created"])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len(set(results)) == 1
    assert len(encoded) == 1


def test_several_processes_make_the_set_of_one(
    small_chunks: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "whet")
    rows = [chat(("user", f"say {n}"), ("assistant", "x " * (n % 9))) for n in range(90)]
    write("chat.jsonl", [*rows[:50], "{", {"other": 1}, *rows[50:]])
    monkeypatch.setattr(workers, "SECONDS_BEFORE_WORKERS", 0.0)
    keys = {"type": "chat_template", "sequence_len": 512, "on_bad_row": "drop", "val_set_size": 9}
    sets = [run(config_of("chat.jsonl", dataset_num_proc=number, **keys), refresh=True) for number in (1, 2)]
    assert caplog.messages.count("encoding with 2 processes") == 1
    one, two = map(without_times, sets)
    # Who encodes little says so: it never came to choose an engine.
    assert {**one, "engines": None} == {**two, "engines": None}
    assert len(one["chunks"]) > 3


def test_a_killed_preparation_leaves_no_set_and_the_next_one_goes_on_from_there(
    in_empty_folder: Path, small_chunks: None, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child dies, as by SIGKILL, when some of the chunks are written and one is half written."""
    write("a.jsonl", chats(60))
    script = """
        import os
        from tests.unit.data import test_prepare as t
        from whet.data import chunk_file

        for function in (t.chunks_module.chunks_of_stream, t.chunks_module.chunks_of_lines):
            cut = t.Cut(least=150, most=2000, every=300)
            function.__defaults__ = (*function.__defaults__[:-1], cut)

        calls = []

        def dying(path, sync=chunk_file.sync):
            calls.append(path)
            return os._exit(9) if len(calls) == 11 else sync(path)

        chunk_file.sync = dying
        t.module.code_identity = lambda: "the same"
        t.run(t.config_of("a.jsonl", type="chat_template", sequence_len=256))
    """
    monkeypatch.setattr(module, "code_identity", lambda: "the same")  # though somebody may edit it meanwhile
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), *sys.path])}
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment, check=False)
    folder = in_empty_folder / "last_run_prepared"
    assert child.returncode == 9
    assert len(list(folder.glob("chunks/*/*.json"))) == 5
    assert len(list(folder.glob("chunks/*/.*"))) == 1
    assert not list(folder.glob("*/manifest.json"))
    prepared = run(config_of("a.jsonl", type="chat_template", sequence_len=256))
    assert len(prepared.train) == 60
    assert len(encoded) == len(prepared.manifest["chunks"]) - 5
    for leftover in folder.glob("chunks/*/.*"):  # it may be of a process that is writing: left for a day
        os.utime(leftover, (1, 1))
    run(config_of("a.jsonl", type="chat_template", sequence_len=200))
    assert not list(folder.glob("chunks/*/.*"))


def test_a_folder_that_cannot_be_written_is_an_error() -> None:
    write_lengths("a.jsonl", [4])
    Path("file").touch()
    with pytest.raises(
        DataError, match=r"the prepared set cannot be written to 'file/sets' \(Not a directory\) -> set `data"
    ):
        run(config_of("a.jsonl", dataset_prepared_path="file/sets"))


def test_a_set_is_found_in_a_folder_of_others_that_may_only_be_read(
    monkeypatch: pytest.MonkeyPatch, in_empty_folder: Path
) -> None:
    write_lengths("a.jsonl", [4, 5])
    first = run(config_of("a.jsonl"))
    write_lengths("a.jsonl", [4, 5])  # a copy: the same rows, of which no scan is known

    def refused(path: Path) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(module, "locked", refused)
    assert run(config_of("a.jsonl")).path == first.path
    cannot = r"cannot be written to 'last_run_prepared' \(Permission denied\)"
    for sequence_len, refresh in ((10, True), (9, False)):
        with pytest.raises(DataError, match=cannot):
            run(config_of("a.jsonl", sequence_len=sequence_len), refresh=refresh)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space"), OSError("[Errno 28] pyarrow's own words")])
@pytest.mark.parametrize("where", ["chunk", "set", "lock"])
def test_a_disk_that_is_full_is_told_as_such(monkeypatch: pytest.MonkeyPatch, where: str, error: OSError) -> None:
    def full(*_: Any) -> Any:
        raise error

    write_lengths("a.jsonl", [4, 5])
    patched = {"chunk": (chunk_file, "sync"), "set": (store, "write_index"), "lock": (module, "locked")}
    monkeypatch.setattr(*patched[where], full)
    with pytest.raises(DataError, match=r"the prepared set cannot be written to 'last_run_prepared' \("):
        run(config_of("a.jsonl"))


def test_a_fault_that_is_no_write_is_not_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody there")

    write_lengths("a.jsonl", [4, 5])
    monkeypatch.setattr(module, "encode_chunks", refused)
    with pytest.raises(ConnectionRefusedError, match="nobody there"):
        run(config_of("a.jsonl"))


def test_the_summary_shows_counts_reasons_and_places() -> None:
    write_lengths("a.jsonl", [4, 6, 10, 11, 12])
    prepared = run(config_of("a.jsonl"))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(summary(prepared, 10, 10))
    text = console.export_text()
    for line in (
        "a       │    5 │    3 │       2 │       3",
        "longer than sequence_len (11 to 12 tokens) │ a.jsonl:4, 5 │    2",
        "train │       3 │     20 │         17 │ 85.0% │     2 │ 100.00%",
        "train │        4 │      6 │  10 │      10",
    ):
        assert line in text, text
