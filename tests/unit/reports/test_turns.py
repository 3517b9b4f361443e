"""Whose turn a token is: every token has one answer, and a turn's own tokens are its message and stop token."""

from __future__ import annotations

import numpy as np
import pytest
from tests.tiny_tokenizers import tiny_tokenizer

from whet.config import make_config
from whet.reports.turns import RowReader, Turn, first_tokens

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 1 + 1?"},
    {"role": "assistant", "content": "It is 2."},
    {"role": "user", "content": "Na\u00efve \U0001f642?"},
    {"role": "assistant", "content": "Yes."},
]


def reader(template: str = "chatml", **dataset: object) -> RowReader:
    config = make_config(
        {
            "base_model": "some/model",
            "learning_rate": 1e-4,
            "chat_template": template,
            "datasets": [{"path": "a.jsonl", "type": "chat_template", **dataset}],
        },
        check_files=False,
    )
    return RowReader(config.data.datasets[0], config, tiny_tokenizer(template))


def ids_of(template: str, messages: list[dict[str, str]]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    text = tiny_tokenizer(template).apply_chat_template(messages, tokenize=False)
    return np.array(tiny_tokenizer(template)(text, add_special_tokens=False)["input_ids"], np.int32)


@pytest.mark.parametrize("template", ["chatml", "llama3", "qwen_25", "phi_3"])
def test_turns_cover_every_token_and_hold_their_messages(template: str) -> None:
    ids = ids_of(template, MESSAGES)
    turns = reader(template).turns({"messages": MESSAGES}, ids)
    assert sum(turn.header + turn.body for turn in turns) == len(ids)
    at = 0
    bodies = []
    for turn in turns:
        bodies.append(
            (turn.role, tiny_tokenizer(template).decode(ids[at + turn.header : at + turn.header + turn.body]))
        )
        at += turn.header + turn.body
    spoken = [(role, text) for role, text in bodies if role]
    assert [role for role, _ in spoken] == [message["role"] for message in MESSAGES]
    assert all(text.startswith(message["content"]) for (_, text), message in zip(spoken, MESSAGES, strict=True))


def test_a_sample_that_was_cut_has_the_turns_of_its_tokens() -> None:
    ids = ids_of("chatml", MESSAGES)
    whole = reader().turns({"messages": MESSAGES}, ids)
    assert reader().turns({"messages": MESSAGES}, ids[:20]) == first_tokens(whole, 20)


def test_an_answer_that_is_a_sample_of_its_own_has_its_turns() -> None:
    turns = reader().turns({"messages": MESSAGES}, ids_of("chatml", MESSAGES[:3]))
    assert [turn.role for turn in turns if turn.body] == ["system", "user", "assistant"]


def test_a_prompt_goes_on_with_what_asks_for_the_answer() -> None:
    config = make_config(
        {
            "base_model": "some/model",
            "learning_rate": 1e-4,
            "chat_template": "chatml",
            "rl": "grpo",
            "datasets": [{"path": "a.jsonl"}],
        },
        check_files=False,
    )
    tokenizer = tiny_tokenizer()
    text = tokenizer.apply_chat_template(MESSAGES[:2], tokenize=False, add_generation_prompt=True)
    ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
    turns = RowReader(config.data.datasets[0], config, tokenizer).turns({"prompt": MESSAGES[:2], "answer": "2"}, ids)
    assert [turn.role for turn in turns] == ["system", "user", ""]
    assert sum(turn.header + turn.body for turn in turns) == len(ids)


def test_a_row_that_has_changed_since_has_no_turns() -> None:
    changed = [*MESSAGES[:1], {"role": "user", "content": "Another question"}, *MESSAGES[2:]]
    assert reader().turns({"messages": changed}, ids_of("chatml", MESSAGES)) == ()
    assert reader().turns({"text": "not a conversation any more"}, ids_of("chatml", MESSAGES)) == ()


def test_raw_text_has_no_turns() -> None:
    raw = reader(type="completion", field="text")
    assert not raw.has_turns
    assert raw.is_split
    assert raw.turns({"text": "abc"}, np.array([1, 2], np.int32)) == ()


def test_first_tokens_may_end_within_a_header() -> None:
    assert first_tokens([Turn("user", 2, 3), Turn("assistant", 2, 9)], 6) == (
        Turn("user", 2, 3),
        Turn("assistant", 1, 0),
    )
