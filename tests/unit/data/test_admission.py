"""What becomes of a sample that is too long, too short or has no target."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.data.encoded_samples import SAMPLES, kinds

from whet.data.admission import Admitted, Limits, Strategy, account_for, admit, numbers_of
from whet.data.chunk_file import ChunkWriter
from whet.data.chunks import Chunk
from whet.data.ledger import NOTHING_LEFT, SAME_LEFT, TOO_LONG, TOO_SHORT, UNSUPERVISED, Ledger
from whet.data.readers import BadRow
from whet.data.samples import (
    Encoded,
    EncodedPreference,
    EncodedPrompt,
    EncodedSample,
    EncodedStepwise,
    EncodedUnpaired,
    Kind,
    kind_of,
)

STRATEGIES: list[Strategy] = ["drop", "truncate", "raise", "split"]


def chunk_of(samples: list[EncodedSample], kind: Kind | None = None) -> ChunkWriter:
    writer = ChunkWriter(kind or kind_of(samples[0]))
    for line, sample in enumerate(samples):
        writer.add(line, (sample,))
    return writer


def sample(*mask: int) -> Encoded:
    return Encoded(np.arange(len(mask), dtype=np.int32), np.array(mask, dtype=np.bool_))


def preference(prompt: int, chosen: int, rejected: int) -> EncodedPreference:
    return EncodedPreference(*(np.arange(length, dtype=np.int32) for length in (prompt, chosen, rejected)))


def expected(sample: EncodedSample, limits: Limits) -> tuple[str, list[tuple[int, int, int]]]:
    """One sample at a time, from the words of the documentation: a reason, or "", and (begin, end, targets) kept."""
    most, size = limits.most, sample.num_tokens
    if isinstance(sample, EncodedPrompt):
        return "", [(0, size, 0)]
    if size < limits.fewest:
        return TOO_SHORT, []
    if not sample.num_supervised:
        return UNSUPERVISED, []
    if size <= most:
        return "", [(0, size, sample.num_supervised)]
    if limits.strategy in ("drop", "raise"):
        return TOO_LONG, []
    if isinstance(sample, EncodedPreference | EncodedUnpaired):
        room = most - len(sample.prompt_ids)
        answers = (
            (sample.chosen_ids, sample.rejected_ids)
            if isinstance(sample, EncodedPreference)
            else (sample.completion_ids,)
        )
        left = [answer[:room].tolist() for answer in answers]
        if room < 1 or [] in left:
            return NOTHING_LEFT, []
        if len(left) == 2 and left[0] == left[1]:
            return SAME_LEFT, []
        return "", [(0, most, sum(map(len, left)))]
    begins = range(0, size, most) if limits.strategy == "split" and isinstance(sample, Encoded) else [0]
    pieces = []
    for begin in begins:
        end = min(begin + most, size)
        flags = sample.supervised[begin:end].copy()
        if isinstance(sample, Encoded):
            flags[0] = False  # nothing predicts it
        if end - begin >= limits.fewest and flags.any():
            pieces.append((begin, end, int(flags.sum())))
    return ("", pieces) if pieces else (NOTHING_LEFT, [])


def kept_of(admitted: Admitted, row: int) -> list[tuple[int, int, int]]:
    mine = admitted.row == row
    return list(zip(*(getattr(admitted, n)[mine].tolist() for n in ("begin", "end", "num_supervised")), strict=True))


@given(data=st.data())
@settings(max_examples=250, deadline=None)
def test_each_sample_is_judged_as_if_it_stood_alone(data: st.DataObject) -> None:
    kind = data.draw(kinds)
    samples = data.draw(st.lists(SAMPLES[kind], max_size=6))
    limits = Limits(data.draw(st.integers(1, 10)), data.draw(st.integers(0, 4)), data.draw(st.sampled_from(STRATEGIES)))
    admitted = admit(chunk_of(samples, kind), limits)
    verdicts = [expected(one, limits) for one in samples]
    assert [kept_of(admitted, row) for row in range(len(samples))] == [pieces for _, pieces in verdicts]
    assert admitted.row.tolist() == sorted(admitted.row.tolist())
    for reason in (TOO_SHORT, UNSUPERVISED, TOO_LONG, NOTHING_LEFT, SAME_LEFT):
        rows = [row for row, (given_reason, _) in enumerate(verdicts) if given_reason == reason]
        assert admitted.dropped.get(reason, np.zeros(0)).tolist() == rows
        assert reason not in admitted.dropped or rows  # no reason without a row
    whole = {row for row, (one, (_, pieces)) in enumerate(zip(samples, verdicts, strict=True)) if pieces}
    whole = {row for row in whole if verdicts[row][1] == [(0, samples[row].num_tokens, samples[row].num_supervised)]}
    lost = sorted({row for row, (_, pieces) in enumerate(verdicts) if pieces} - whole)
    done = "split at sequence_len" if limits.strategy == "split" and kind == "tokens" else "cut at sequence_len"
    assert admitted.done.get(done, np.zeros(0)).tolist() == lost
    assert set(admitted.done) <= {done}


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 20), st.integers(0, 5), st.sampled_from(STRATEGIES))
def test_what_is_kept_is_within_the_limits_and_has_a_target(
    mask: list[bool], most: int, fewest: int, strategy: Strategy
) -> None:
    admitted = admit(chunk_of([sample(*mask)]), Limits(most, fewest, strategy))
    for begin, end, targets in kept_of(admitted, 0):
        assert fewest <= end - begin <= most
        assert targets == sum(mask[begin + 1 : end]) > 0


@pytest.mark.parametrize("strategy", ["drop", "raise"])
def test_a_long_sample_is_dropped(strategy: Strategy) -> None:
    for one in (sample(1, 1, 1, 1, 1), preference(3, 1, 2)):
        admitted = admit(chunk_of([one]), Limits(4, 2, strategy))
        assert (admitted.row.tolist(), admitted.dropped[TOO_LONG].tolist()) == ([], [0])


def test_a_long_sample_is_cut_to_its_beginning() -> None:
    admitted = admit(chunk_of([sample(0, 1, 1, 1, 1)]), Limits(3, 2, "truncate"))
    assert kept_of(admitted, 0) == [(0, 3, 2)]
    assert admitted.done["cut at sequence_len"].tolist() == [0]


def test_a_sample_whose_targets_are_cut_off_is_dropped_for_its_own_reason() -> None:
    admitted = admit(chunk_of([sample(0, 0, 0, 1, 1)]), Limits(3, 2, "truncate"))
    assert {reason: rows.tolist() for reason, rows in admitted.dropped.items()} == {NOTHING_LEFT: [0]}
    assert not admitted.done


def test_a_long_text_becomes_several_samples() -> None:
    admitted = admit(chunk_of([sample(*[1] * 8)]), Limits(3, 2, "split"))
    assert kept_of(admitted, 0) == [(0, 3, 2), (3, 6, 2), (6, 8, 1)]
    assert admitted.done["split at sequence_len"].tolist() == [0]


def test_the_first_token_is_no_target_and_a_judged_step_may_be_the_first() -> None:
    admitted = admit(chunk_of([sample(1, 0, 1), sample(1, 0, 0)]), Limits(9, 2, "drop"))
    assert (kept_of(admitted, 0), admitted.dropped[UNSUPERVISED].tolist()) == ([(0, 3, 1)], [1])
    flags = np.array([True, False])
    step = EncodedStepwise(np.arange(2, dtype=np.int32), flags, flags)
    assert kept_of(admit(chunk_of([step]), Limits(9, 2, "drop")), 0) == [(0, 2, 1)]


def test_answers_of_a_preference_are_cut_and_its_prompt_is_not() -> None:
    samples = [preference(3, 4, 1), preference(5, 4, 1), preference(3, 4, 3)]
    admitted = admit(chunk_of(samples), Limits(5, 2, "split"))
    assert kept_of(admitted, 0) == [(0, 5, 3)]
    assert admitted.dropped[NOTHING_LEFT].tolist() == [1]
    assert admitted.dropped[SAME_LEFT].tolist() == [2]  # what the answers differ by is cut off
    assert admitted.done["cut at sequence_len"].tolist() == [0]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_prompt_may_have_any_length(strategy: Strategy) -> None:
    prompts: list[EncodedSample] = [EncodedPrompt(np.arange(n, dtype=np.int32)) for n in (1, 99)]
    assert admit(chunk_of(prompts), Limits(9, 2, strategy)).row.tolist() == [0, 1]


def test_every_row_of_a_chunk_is_in_its_account() -> None:
    writer = chunk_of([sample(0, 1, 1), sample(0, 1, 1, 1, 1, 1), sample(1), sample(1, 0)])
    writer.fault(4, "missing field", "it has x")
    writer.fault(5, "left out", "by the user", bad=False)
    chunk = Chunk("a.jsonl", True, 11, "", numbers=[11, 12, 15, 16, 20, 21], faults=((13, BadRow("not JSON", "x")),))
    ledger = Ledger("a")
    account_for(chunk, writer.rows, writer.faults, writer, Limits(4, 2, "drop"), ledger)
    assert ledger.read == 7
    told: dict[str, Any] = {
        reason: (tally.count, tally.examples, tally.bad) for reason, tally in ledger.dropped.items()
    }
    assert told == {
        "not JSON": (1, [("a.jsonl:13", "x")], True),
        "missing field": (1, [("a.jsonl:20", "it has x")], True),
        "left out": (1, [("a.jsonl:21", "by the user")], False),
        TOO_LONG: (1, [("a.jsonl:12", "6 tokens")], False),
        TOO_SHORT: (1, [("a.jsonl:15", "1 tokens")], False),
        UNSUPERVISED: (1, [("a.jsonl:16", "2 tokens")], True),
    }
    assert (ledger.dropped[TOO_LONG].shortest, ledger.dropped[TOO_LONG].longest) == (6, 6)


def test_lines_are_counted_from_the_chunks_first_or_by_its_numbers() -> None:
    lines = np.array([0, 2], np.int32)
    assert numbers_of(Chunk("a", True, 5, ""), lines).tolist() == [5, 7]
    assert numbers_of(Chunk("a", True, 5, "", numbers=[5, 8, 13]), lines).tolist() == [5, 13]
