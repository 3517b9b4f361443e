"""Encoding many rows: a row's fate is its own, memory does not grow with one row's samples, mistakes are told."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_tokenizers import byte_level_tokenizer, tiny_tokenizer

from whet.config.load import make_config
from whet.core.errors import DataError, RowError
from whet.data import texts, tokenise
from whet.data.engines import Choice, Reference
from whet.data.samples import digest
from whet.data.tokenise import SampleEncoder

TEXTS = st.sampled_from(["a", "plain", "\nlead", " x ", "", "<think>why</think>so", "</think>", "line\n"])
ROWS = st.lists(st.lists(TEXTS, min_size=2, max_size=6), min_size=1, max_size=6)


def encoder_of(template="qwen3", kind="chat_template", tokenizer=None, **options):
    values = {
        "base_model": "org/tiny",
        "chat_template": template,
        "datasets": [{"path": "rows.jsonl", "type": kind, **options}],
        "learning_rate": 1e-4,
    }
    config = make_config(values, check_files=False)
    return SampleEncoder(config.data.datasets[0], config, tokenizer or tiny_tokenizer(template))


def conversation(contents, **extra):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": text, **extra} for n, text in enumerate(contents)]}


def shown(outcome):
    if isinstance(outcome, RowError):
        return outcome.reason, outcome.detail
    return [digest(sample) for sample in outcome]


@settings(max_examples=60, deadline=None)
@given(rows=ROWS)
def test_what_becomes_of_a_row_does_not_depend_on_the_rows_before_it(rows):
    rows = [conversation(contents) for contents in rows]
    together = [shown(outcome) for outcome in encoder_of().encode(rows)]
    alone = [shown(encoder_of().encode([row])[0]) for row in rows]
    assert together == alone


def test_an_answer_that_is_stripped_only_as_history_is_refused_whatever_came_before():
    plain = conversation(["q", "plain", "q2", "a2"])
    leading = conversation(["q", "\nlead", "q2", "a2"])
    after, alone = encoder_of().encode([plain, leading])[1], encoder_of().encode([leading])[0]
    assert shown(after) == shown(alone)


def test_a_row_of_many_answers_is_encoded_a_part_at_a_time(monkeypatch):
    seen = []
    encode = texts.TextEncoder.encode
    monkeypatch.setattr(tokenise, "CHARS_AT_ONCE", 2000)
    monkeypatch.setattr(
        texts.TextEncoder, "encode", lambda self, batch: (seen.append(batch.num_chars), encode(self, batch))[1]
    )
    rows = [conversation(["question", "answer"] * 20) for _ in range(10)]
    outcomes = encoder_of("chatml", explode_turns=True).encode(rows)
    assert [len(outcome) for outcome in outcomes] == [20] * 10
    assert len(seen) > 5


def test_exploding_a_conversation_without_a_trained_answer_is_a_bad_row():
    (outcome,) = encoder_of("chatml", explode_turns=True, roles_to_train=["user"]).encode([conversation(["q", "a"])])
    assert isinstance(outcome, RowError)
    assert outcome.reason == "no assistant turn"


def test_half_a_surrogate_pair_is_a_bad_row_and_its_neighbours_are_kept():
    broken = {"messages": json.dumps(conversation(["q \ud83d", "a"])["messages"])}
    outcomes = encoder_of("chatml").encode([conversation(["q", "a"]), broken, conversation(["q", "b"])])
    assert [isinstance(outcome, RowError) for outcome in outcomes] == [False, True, False]
    assert outcomes[1].reason == "not Unicode"


def test_an_engine_that_dies_is_given_up(monkeypatch):
    class Dying:
        name = "dying"
        calls = 0

        def encode(self, texts):
            type(self).calls += 1
            if len(texts) > texts_checked:
                raise BaseException("a panic")
            return Reference(tokenizer).encode(texts)

    texts_checked = texts.CHECKED_TEXTS
    tokenizer = tiny_tokenizer("chatml")
    rows = [conversation(["q", f"answer {number}"]) for number in range(50)]
    expected = [shown(outcome) for outcome in encoder_of("chatml").encode(rows)]
    encoder = encoder_of("chatml", tokenizer=tokenizer)
    encoder._texts._choice = Choice(Dying(), "for a test")
    assert [shown(outcome) for outcome in encoder.encode(rows)] == expected
    assert encoder.engine.startswith("tokenizers: dying gave")


def test_a_tokenizer_that_merges_at_random_is_refused():
    tokenizer = byte_level_tokenizer(["</s>"])
    tokenizer.backend_tokenizer.model.dropout = 0.1
    with pytest.raises(DataError, match="merges at random"):
        encoder_of("chatml", kind="completion", tokenizer=tokenizer)
