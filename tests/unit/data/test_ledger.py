"""The account of a dataset: exact counts, a few examples, sentences that say what to do."""

from __future__ import annotations

import json

import pytest

from whet.data.ledger import Ledger, bad_row_problems, nothing_kept_problem, too_long_problem


def test_counts_are_exact_and_examples_few():
    ledger = Ledger("a", read=100)
    for number in range(100):
        ledger.drop("longer than sequence_len", f"a.jsonl:{number + 1}", tokens=200 - number)
    tally = ledger.dropped["longer than sequence_len"]
    assert (ledger.num_dropped, tally.count, len(tally.examples)) == (100, 100, 5)
    assert (tally.shortest, tally.longest) == (101, 200)
    assert tally.places == "a.jsonl:1, 2, 3, 4, 5 and 95 more"


def test_places_in_several_files_are_told_apart():
    ledger = Ledger("a")
    for place in ("a.jsonl:1", "a.jsonl:22", "b.parquet, row 3", "b.parquet, row 4", "a.jsonl:5"):
        ledger.drop("reason", place)
    assert ledger.dropped["reason"].places == "a.jsonl:1, 22, b.parquet, row 3, 4, a.jsonl:5"


def test_a_ledger_survives_the_manifest():
    ledger = Ledger("a", read=3, kept=1, samples=2)
    ledger.drop("not valid JSON", "a.jsonl:1", "at column 3", bad=True)
    ledger.cuts("cut at sequence_len").add("a.jsonl:2", "99 tokens", 99)
    assert Ledger.from_dict(json.loads(json.dumps(ledger.as_dict()))) == ledger


def test_bad_rows_are_one_problem_a_reason():
    ledger = Ledger("a", read=8)
    for number in range(7):
        ledger.drop("missing field", f"a.jsonl:{number + 1}", "'messages' is not in the row", bad=True)
    ledger.drop("not valid JSON", "a.jsonl:8", "at column 3", bad=True)
    ledger.drop("shorter than min_sample_len", "a.jsonl:9", "1 tokens")
    assert [str(problem) for problem in bad_row_problems(ledger)] == [
        "a.jsonl:1: missing field ('messages' is not in the row); 7 rows, also a.jsonl:2, 3, 4, 5 and 2 more -> "
        "mend the rows, or set `on_bad_row: drop` to leave them out and count them",
        "a.jsonl:8: not valid JSON (at column 3) -> "
        "mend the rows, or set `on_bad_row: drop` to leave them out and count them",
    ]


def test_a_dataset_without_rows_is_a_problem():
    problem = nothing_kept_problem(Ledger("chat"), "a.yaml:3:5", 64)
    assert str(problem) == "a.yaml:3:5: 'chat' has no rows -> check the file, or take it out of the datasets"


def test_all_rows_too_long_says_how_long_they_are():
    ledger = Ledger("chat", read=120)
    for tokens in range(120):
        ledger.drop("longer than sequence_len", f"a.jsonl:{tokens}", tokens=90 + tokens)
    assert str(nothing_kept_problem(ledger, "a.yaml:3:5", 64)) == (
        "a.yaml:3:5: 'chat': all 120 rows are longer than sequence_len 64 (shortest 90 tokens) -> "
        "raise sequence_len to at least 90, or set `excess_length_strategy: truncate`"
    )
    assert str(too_long_problem(ledger, 64)) == (
        "a.jsonl:0: longer than sequence_len 64; 120 rows, also a.jsonl:1, 2, 3, 4 and 115 more -> "
        "raise sequence_len to 209, or set `excess_length_strategy` to drop or truncate"
    )


def test_all_rows_dropped_for_several_reasons_names_each():
    ledger = Ledger("chat", read=2)
    ledger.drop("longer than sequence_len", "a.jsonl:1", tokens=90)
    ledger.drop("not valid JSON", "a.jsonl:2", bad=True)
    assert str(nothing_kept_problem(ledger, "a.yaml:3:5", 64)) == (
        "a.yaml:3:5: 'chat': all 2 rows dropped: 1 longer than sequence_len (a.jsonl:1); "
        "1 not valid JSON (a.jsonl:2) -> mend the rows, or check the dataset's `type` and fields"
    )


@pytest.mark.parametrize("reason", ["no supervised token left after cutting", "answers are equal after cutting"])
def test_rows_that_cutting_emptied_ask_for_more_room(reason):
    ledger = Ledger("chat", read=1)
    ledger.drop(reason, "a.jsonl:1", tokens=90)
    assert str(nothing_kept_problem(ledger, "a.yaml:3:5", 64)) == (
        f"a.yaml:3:5: 'chat': the only row dropped: 1 {reason} (a.jsonl:1) -> "
        "raise sequence_len: what these rows teach lies behind it"
    )


@pytest.mark.parametrize("reason", ["exact duplicate", "near duplicate", "also in the training data"])
def test_a_dataset_that_keeps_something_or_only_repeats_is_no_problem(reason):
    assert nothing_kept_problem(Ledger("a", read=2, kept=1), "", 64) is None
    repeats = Ledger("a", read=1)
    repeats.drop(reason, "a.jsonl:1")
    assert nothing_kept_problem(repeats, "", 64) is None


def test_what_a_kept_row_lost_is_refused_as_a_row_would_be():
    ledger = Ledger("a", read=3, kept=1)
    ledger.drop("longer than sequence_len", "a.jsonl:1", "70 tokens", tokens=70)
    ledger.cuts("dropped in part: longer than sequence_len").add("a.jsonl:2", "90 tokens", 90)
    ledger.cuts("dropped in part: nothing to train", bad=True).add("a.jsonl:3", "2 tokens", 2)
    assert str(too_long_problem(ledger, 64)) == (
        "a.jsonl:1: longer than sequence_len 64 (70 tokens); 2 rows, also a.jsonl:2 -> "
        "raise sequence_len to 90, or set `excess_length_strategy` to drop or truncate"
    )
    (problem,) = bad_row_problems(ledger)
    assert str(problem).startswith("a.jsonl:3: dropped in part: nothing to train (2 tokens) -> mend the rows")
    again = Ledger("a")
    again.merge(ledger)
    assert again == ledger
