"""Preparing accounts for every row, is done once for the same content, and leaves a whole set or none."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tests.tiny_tokenizers import byte_level_tokenizer, tiny_tokenizer

from whet.config import Config
from whet.config.load import make_config
from whet.config.resolve import resolve
from whet.core.errors import DataError, RowError
from whet.core.types import Hardware
from whet.data import prepare as module
from whet.data import workers
from whet.data.prepare import draw_validation, find_prepared, prepare
from whet.data.store import PreferenceSplit
from whet.data.summary import ledgers_of, summary
from whet.data.tokenise import Encoded, EncodedPreference

TOKENIZER = tiny_tokenizer("chatml")


class NumbersEncoder:
    """Stands in for the real encoder: a row's ``ids`` are its ids, and all are targets."""

    cuts_long_rows = False
    made = 0

    def __init__(self, dataset, config, tokenizer):
        type(self).made += 1

    def encode_rows(self, rows):
        return [self.encode(row) for row in rows]

    def encode(self, row):
        if "ids" not in row:
            return RowError("missing field", f"'ids' is not in the row; it has {', '.join(row)}")
        if "chosen" in row:
            return EncodedPreference(*(np.array(row[key], np.int32) for key in ("ids", "chosen", "rejected")))
        return Encoded(np.array(row["ids"], np.int32), np.ones(len(row["ids"]), bool))


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def numbers(monkeypatch):
    """Rows are numbers; counts how many datasets were encoded."""
    fresh = type("Encoder", (NumbersEncoder,), {"made": 0})
    monkeypatch.setattr(workers, "SampleEncoder", fresh)
    return fresh


def write(path, rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )


def write_lengths(path, lengths, first=0):
    """Rows of these lengths; every row's first id is its own."""
    write(path, [{"ids": [first + number, *range(1, length)]} for number, length in enumerate(lengths)])


def config_of(*paths, tests=(), **keys) -> Config:
    datasets = [{"path": str(path), "type": "chat_template"} for path in paths]
    test_datasets = {"test_datasets": [{"path": str(path), "type": "chat_template"} for path in tests]} if tests else {}
    values = {
        "base_model": "org/tiny",
        "datasets": datasets,
        "chat_template": "chatml",
        "learning_rate": 1e-4,
        "optimizer": "adamw_torch",
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "sequence_len": 10,
        "output_dir": "out",
        **test_datasets,
        **keys,
    }
    return make_config(values, check_files=False)


def with_type(config, kind):
    rows = tuple(row.model_copy(update={"type": kind}) for row in config.data.datasets)
    return config.model_copy(update={"data": config.data.model_copy(update={"datasets": rows})})


def run(config, tokenizer=TOKENIZER, **options):
    return prepare(config, resolve(config, Hardware("cpu")), tokenizer, **options)


def first_ids(split):
    return [int(split.tokens(index)[0][0]) for index in range(len(split))]


def reasons(prepared, dataset=0):
    return {reason: tally.count for reason, tally in ledgers_of(prepared)[dataset].dropped.items()}


def test_conversations_become_samples_whose_targets_are_the_answers(in_empty_folder):
    rows = [
        {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"the answer {n}"}]}
        for n in range(3)
    ]
    write(in_empty_folder / "chat.jsonl", rows)
    prepared = run(config_of("chat.jsonl", sequence_len=512))
    for number, row in enumerate(rows):
        ids, supervised = prepared.train.tokens(number)
        assert ids.tolist() == TOKENIZER.apply_chat_template(row["messages"])["input_ids"]
        assert TOKENIZER.decode(ids[supervised]).startswith(f"the answer {number}<|im_end|>")
    assert prepared.train.names == ("chat",)
    assert prepared.train.place(1) == "chat.jsonl:2"
    assert prepared.validation is None


def test_rows_of_tokens_text_and_preferences_are_prepared_too(in_empty_folder):
    write(
        in_empty_folder / "tokens.jsonl",
        [{"input_ids": [1, 2, 3], "labels": [-100, -100, 3], "attention_mask": [1] * 3}],
    )
    ids, supervised = run(with_type(config_of("tokens.jsonl"), None)).train.tokens(0)
    assert (ids.tolist(), supervised.tolist()) == ([1, 2, 3], [False, False, True])

    write(in_empty_folder / "text.jsonl", [{"text": "a long text of many words " * 5}])
    pieces = run(with_type(config_of("text.jsonl"), "completion")).train
    assert len(pieces) > 1
    assert set(pieces.lengths[:-1].tolist()) == {10}
    whole = np.concatenate([pieces.tokens(index)[0] for index in range(len(pieces))])
    assert TOKENIZER.decode(whole, skip_special_tokens=True) == "a long text of many words " * 5

    turns = [{"role": "user", "content": "1 + 1?"}]
    answers = {"chosen": {"role": "assistant", "content": "2"}, "rejected": {"role": "assistant", "content": "3"}}
    write(in_empty_folder / "dpo.jsonl", [{"messages": turns, **answers}])
    prompt, chosen, rejected = run(config_of("dpo.jsonl", rl="dpo", sequence_len=512)).train.pair(0)
    assert TOKENIZER.decode(prompt) == TOKENIZER.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert [TOKENIZER.decode(answer) for answer in (chosen, rejected)] == ["2<|im_end|>", "3<|im_end|>"]


def test_every_row_is_kept_or_dropped_with_its_reason(in_empty_folder, numbers):
    write(
        in_empty_folder / "a.jsonl",
        [{"ids": [1, 2, 3]}, "{", {"ids": [1]}, {"ids": list(range(11))}, {"other": 1}, {"ids": [4, 5]}, "[]"],
    )
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
    assert prepared.train.row.tolist() == [1, 6]


def test_bad_rows_end_the_preparation_with_one_error_that_names_all_of_them(in_empty_folder, numbers):
    write(in_empty_folder / "a.jsonl", [{"ids": [1, 2]}, *[{"other": 1}] * 7, "{"])
    write(in_empty_folder / "b.jsonl", [{"x": 1}])
    with pytest.raises(DataError) as caught:
        run(config_of("a.jsonl", "b.jsonl"))
    places = [problem.where for problem in caught.value.problems]
    assert places == ["a.jsonl:2", "a.jsonl:9", "b.jsonl:1"]
    assert "missing field ('ids' is not in the row; it has other); 7 rows, also a.jsonl:3, 4, 5, 6 and 2 more" in str(
        caught.value
    )
    assert not list(in_empty_folder.glob("last_run_prepared/*/manifest.json"))
    assert not list(in_empty_folder.glob("last_run_prepared/.*"))


def test_long_rows_are_dropped_cut_or_refused_as_asked(in_empty_folder, numbers):
    write_lengths(in_empty_folder / "a.jsonl", [5, 12, 30])
    dropped = run(config_of("a.jsonl"))
    assert (dropped.train.lengths.tolist(), reasons(dropped)) == ([5], {"longer than sequence_len": 2})
    cut = run(config_of("a.jsonl", excess_length_strategy="truncate"))
    assert (cut.train.lengths.tolist(), ledgers_of(cut)[0].cut["cut at sequence_len"].count) == ([5, 10, 10], 2)
    with pytest.raises(
        DataError, match=r"^a\.jsonl:2: longer than sequence_len 10 \(12 tokens\); 2 rows, .* to 30, or set"
    ):
        run(config_of("a.jsonl", excess_length_strategy="raise", on_bad_row="drop"))


def test_long_raw_text_becomes_several_samples(in_empty_folder, numbers, monkeypatch):
    monkeypatch.setattr(numbers, "cuts_long_rows", True)
    write_lengths(in_empty_folder / "a.jsonl", [25, 3])
    prepared = run(config_of("a.jsonl"))
    assert prepared.train.lengths.tolist() == [10, 10, 5, 3]
    assert prepared.train.row.tolist() == [1, 1, 1, 2]
    (ledger,) = ledgers_of(prepared)
    assert (ledger.kept, ledger.samples) == (2, 4)


def test_a_set_with_nothing_in_it_is_an_error(in_empty_folder, numbers):
    (in_empty_folder / "empty.jsonl").touch()
    write_lengths(in_empty_folder / "long.jsonl", [20, 30])
    with pytest.raises(DataError) as caught:
        run(config_of("empty.jsonl", "long.jsonl"))
    first, second = map(str, caught.value.problems)
    assert "'empty' has no rows -> check the file" in first
    assert (
        "'long': all 2 rows are longer than sequence_len 10 (shortest 20 tokens) -> raise sequence_len to at l"
        in second
    )


def test_every_source_that_is_missing_is_named_at_once(numbers):
    with pytest.raises(DataError) as caught:
        run(config_of("a.jsonl", "b.jsonl"))
    assert [problem.found for problem in caught.value.problems] == [
        "no file or folder 'a.jsonl'",
        "no file or folder 'b.jsonl'",
    ]


@pytest.mark.parametrize(("size", "count"), [(0.25, 10), (0.001, 1), (7, 7)])
def test_validation_rows_are_the_same_in_whatever_order_the_sources_stand(in_empty_folder, numbers, size, count):
    write_lengths(in_empty_folder / "a.jsonl", [4] * 15)
    write_lengths(in_empty_folder / "b.jsonl", [4] * 25, first=100)
    one = run(config_of("a.jsonl", "b.jsonl", val_set_size=size))
    other = run(config_of("b.jsonl", "a.jsonl", val_set_size=size))
    assert len(one.validation) == count
    assert sorted(first_ids(one.validation)) == sorted(first_ids(other.validation))
    assert sorted(first_ids(one.train) + first_ids(one.validation)) == [*range(15), *range(100, 125)]


def test_another_seed_draws_other_validation_rows(in_empty_folder, numbers):
    write_lengths(in_empty_folder / "a.jsonl", [4] * 40)
    drawn = {tuple(first_ids(run(config_of("a.jsonl", val_set_size=8, seed=seed)).validation)) for seed in range(3)}
    assert len(drawn) == 3


def test_validation_never_takes_everything():
    with pytest.raises(
        DataError, match=r"^a\.yaml:9:1: val_set_size 5 takes all 5 samples, nothing is left to train on"
    ):
        draw_validation(np.arange(5, dtype=np.uint64), np.ones(5, bool), 5, "a.yaml:9:1")


def test_validation_takes_only_what_fits_eval_sequence_len(in_empty_folder, numbers):
    write_lengths(in_empty_folder / "a.jsonl", [4, 9] * 10)
    prepared = run(config_of("a.jsonl", val_set_size=10, eval_sequence_len=5))
    assert prepared.validation.lengths.tolist() == [4] * 10
    assert prepared.train.lengths.tolist() == [9] * 10
    with pytest.raises(
        DataError, match="val_set_size 11 takes 11 samples, only 10 fit eval_sequence_len -> set it lower"
    ):
        run(config_of("a.jsonl", val_set_size=11, eval_sequence_len=5))


def test_test_datasets_are_the_validation_split_with_their_own_length_limit(in_empty_folder, numbers):
    write_lengths(in_empty_folder / "a.jsonl", [4, 5])
    write_lengths(in_empty_folder / "b.jsonl", [6, 12], first=100)
    prepared = run(config_of("a.jsonl", tests=["b.jsonl"], eval_sequence_len=20))
    assert first_ids(prepared.train) == [0, 1]
    assert first_ids(prepared.validation) == [100, 101]
    assert prepared.validation.names == ("a", "b")
    assert set(prepared.validation.source.tolist()) == {1}


def test_duplicates_are_kept_once_and_never_tested_on(in_empty_folder, numbers):
    write(in_empty_folder / "a.jsonl", [{"ids": [1, 2]}, {"ids": [3, 4]}, {"ids": [1, 2]}])
    write(in_empty_folder / "b.jsonl", [{"ids": [3, 4]}, {"ids": [5, 6]}])
    prepared = run(config_of("a.jsonl", tests=["b.jsonl"], dataset_exact_deduplication=True))
    assert first_ids(prepared.train) == [1, 3]
    assert first_ids(prepared.validation) == [5]
    assert [reasons(prepared, dataset) for dataset in (0, 1)] == [{"exact duplicate": 1}] * 2
    with pytest.raises(DataError, match="every row of the test datasets is also a row of the training datasets"):
        run(config_of("a.jsonl", tests=["a.jsonl"], dataset_exact_deduplication=True))


def test_datasets_keep_their_order_and_may_each_be_shuffled(in_empty_folder, numbers):
    write_lengths(in_empty_folder / "a.jsonl", [4] * 20)
    write_lengths(in_empty_folder / "b.jsonl", [4] * 20, first=100)
    assert first_ids(run(config_of("a.jsonl", "b.jsonl")).train) == [*range(20), *range(100, 120)]
    shuffled = first_ids(run(config_of("a.jsonl", "b.jsonl", shuffle_before_merging_datasets=True)).train)
    assert shuffled != sorted(shuffled)
    assert (sorted(shuffled[:20]), sorted(shuffled[20:])) == (list(range(20)), list(range(100, 120)))


def test_datasets_of_one_name_are_told_apart(in_empty_folder, numbers):
    for folder in ("x", "y"):
        (in_empty_folder / folder).mkdir()
        write_lengths(in_empty_folder / folder / "chat.jsonl", [4])
    assert run(config_of("x/chat.jsonl", "y/chat.jsonl")).train.names == ("chat", "chat-2")


def test_preferences_are_stored_for_a_method_that_learns_from_them(in_empty_folder, numbers):
    write(in_empty_folder / "a.jsonl", [{"ids": [1, 2], "chosen": [3], "rejected": [4, 5]}])
    prepared = run(config_of("a.jsonl", rl="dpo"))
    assert isinstance(prepared.train, PreferenceSplit)
    assert [part.tolist() for part in prepared.train.pair(0)] == [[1, 2], [3], [4, 5]]
    with pytest.raises(DataError, match=r"'a' has preferences .* and no `rl` method is set .* -> set `rl: dpo`"):
        run(config_of("a.jsonl"))
    write_lengths(in_empty_folder / "b.jsonl", [4])
    with pytest.raises(DataError, match=r"'b' has no preferences: its rows \(type 'chat_template'\) hold one answer"):
        run(config_of("b.jsonl", rl="dpo"))


def test_the_same_content_is_prepared_once(in_empty_folder, numbers):
    write_lengths(in_empty_folder / "a.jsonl", [4, 5])
    config = config_of("a.jsonl")
    assert find_prepared(config, resolve(config, Hardware("cpu")), TOKENIZER) is None
    first = run(config)
    assert find_prepared(config, resolve(config, Hardware("cpu")), TOKENIZER).path == first.path
    again = run(config_of("a.jsonl", learning_rate=5e-3, num_epochs=7))
    assert (again.path, again.manifest["created"]) == (first.path, first.manifest["created"])
    assert numbers.made == 1
    assert run(config_of("a.jsonl"), refresh=True).manifest["created"] != first.manifest["created"]
    assert numbers.made == 2


def test_whatever_shapes_the_set_gives_it_another_name(in_empty_folder, numbers):
    write_lengths(in_empty_folder / "a.jsonl", [4, 5])
    paths = {
        run(config_of("a.jsonl")).path,
        run(config_of("a.jsonl", sequence_len=11)).path,
        run(config_of("a.jsonl", chat_template="llama3")).path,
        run(config_of("a.jsonl", train_on_inputs=True)).path,
        run(config_of("a.jsonl", dataset_exact_deduplication=True)).path,
        run(config_of("a.jsonl"), byte_level_tokenizer(["<s>", "</s>", "<pad>"])).path,
    }
    write_lengths(in_empty_folder / "a.jsonl", [4, 6])
    assert len(paths | {run(config_of("a.jsonl")).path}) == 7


def test_padding_state_of_the_tokenizer_is_no_part_of_the_name(in_empty_folder, numbers):
    write_lengths(in_empty_folder / "a.jsonl", [4, 5])
    tokenizer = byte_level_tokenizer(["<s>", "</s>", "<pad>"])
    before = run(config_of("a.jsonl"), tokenizer).path
    tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=5)
    assert run(config_of("a.jsonl"), tokenizer).path == before


def test_of_several_that_prepare_at_once_one_works(in_empty_folder, numbers):
    write_lengths(in_empty_folder / "a.jsonl", [4] * 50)
    config, start, results = config_of("a.jsonl"), threading.Barrier(4), []

    def work():
        start.wait()
        results.append(run(config).manifest["created"])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len(set(results)) == 1
    assert numbers.made == 1


def test_several_processes_make_the_set_of_one(in_empty_folder, monkeypatch, caplog):
    caplog.set_level("INFO", "whet")
    rows = [
        {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": "x " * (n % 9)}]}
        for n in range(90)
    ]
    write(in_empty_folder / "chat.jsonl", [*rows[:50], "{", {"other": 1}, *rows[50:]])
    monkeypatch.setattr(module, "ROWS_PER_CALL", 10)
    monkeypatch.setattr(workers, "CHUNKS_BEFORE_WORKERS", 2)
    keys = {"sequence_len": 512, "on_bad_row": "drop", "val_set_size": 9}
    sets = [run(config_of("chat.jsonl", dataset_num_proc=number, **keys), refresh=True) for number in (1, 2)]
    assert caplog.messages.count("encoding with 2 processes") == 1
    one, two = ({**prepared.manifest, "created": None} for prepared in sets)
    assert one == two
    assert one["hashes"]["samples.arrow"]["bytes"] > 1000


def test_a_killed_preparation_leaves_no_set_and_the_next_one_clears_up(in_empty_folder, monkeypatch):
    """The child dies, as by SIGKILL, when half of the rows are written."""
    write_lengths(in_empty_folder / "a.jsonl", [4] * 3000)
    script = """
        import os
        from tests.unit.data import test_prepare as t

        class Dying(t.NumbersEncoder):
            calls = 0
            def encode_rows(self, rows):
                Dying.calls += 1
                return os._exit(9) if Dying.calls == 2 else super().encode_rows(rows)

        t.module.store.TOKENS_PER_RECORD_BATCH = 100
        t.workers.SampleEncoder = Dying
        t.run(t.config_of("a.jsonl"))
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment, check=False)
    folder = in_empty_folder / "last_run_prepared"
    assert child.returncode == 9
    assert len(list(folder.glob(".*/samples.arrow"))) == 1
    assert not list(folder.glob("*/manifest.json"))
    monkeypatch.setattr(workers, "SampleEncoder", NumbersEncoder)
    assert len(run(config_of("a.jsonl")).train) == 3000
    assert not list(folder.glob(".*"))


def test_a_folder_that_cannot_be_written_is_an_error(in_empty_folder, numbers):
    write_lengths(in_empty_folder / "a.jsonl", [4])
    (in_empty_folder / "file").touch()
    with pytest.raises(
        DataError, match=r"the prepared set cannot be written to 'file/sets' \(Not a directory\) -> set `data"
    ):
        run(config_of("a.jsonl", dataset_prepared_path="file/sets"))


def test_the_summary_shows_counts_reasons_and_places(in_empty_folder, numbers):
    write_lengths(in_empty_folder / "a.jsonl", [4, 6, 10, 11, 12])
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
