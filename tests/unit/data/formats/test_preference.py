"""Preference rows -> a prompt and two answers."""

from __future__ import annotations

from typing import Any

import pytest
from tests.configs import config_with

from whet.core.errors import RowError
from whet.core.types import Preference
from whet.data.formats import make_format

Q, A, B = ({"role": role, "content": text} for role, text in (("user", "Q"), ("assistant", "A"), ("assistant", "B")))
SYSTEM = {"role": "system", "content": "S"}


def read(kind: str | None, row: dict[str, Any], **keys: Any) -> Preference:
    config = config_with({"type": kind}, rl="dpo", **keys)
    sample = make_format(config.data.datasets[0], config).read(row)
    assert isinstance(sample, Preference)
    return sample


def messages(sample: Preference) -> list[list[dict[str, Any]]]:
    return [[dict(turn.message) for turn in turns] for turns in (sample.prompt, sample.chosen, sample.rejected)]


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (None, {"prompt": "Q", "chosen": "A", "rejected": "B"}),
        (None, {"prompt": [Q], "chosen": [A], "rejected": [B]}),
        (None, {"prompt": Q, "chosen": A, "rejected": B}),
        (None, {"chosen": [Q, A], "rejected": [Q, B]}),
        ("chat_template.default", {"messages": [Q], "chosen": A, "rejected": "B"}),
        ("chat_template.default", {"messages": [Q], "chosen": [Q, A], "rejected": [Q, B]}),
        ("chat_template.argilla_chat", {"chosen": [Q, A], "rejected": [Q, B]}),
        ("chatml.default", {"instruction": "Q", "chosen_response": "A", "rejected_response": "B"}),
        ("chatml.icr", {"input": "Q", "chosen": "A", "rejected": "B"}),
        ("llama3.intel", {"question": "Q", "chosen": "A", "rejected": "B"}),
        ("llama3.prompt_pairs", {"prompt": "Q", "chosen": "A", "rejected": "B"}),
        ("chatml.ultra", {"prompt": "Q", "chosen": [Q, A], "rejected": [Q, B]}),
        ("chatml.argilla_chat", {"chosen": [Q, A], "rejected": [Q, B]}),
    ],
)
def test_a_prompt_and_two_answers(kind: str | None, row: dict[str, Any]) -> None:
    assert messages(read(kind, row)) == [[Q], [A], [B]]


def test_a_style_brings_its_template() -> None:
    for kind, template in {"chatml.intel": "chatml", "llama3.ultra": "llama3", None: "configured"}.items():
        config = config_with({"type": kind}, rl="dpo")
        assert make_format(config.data.datasets[0], config).template == template


def test_a_system_text_comes_before_the_prompt() -> None:
    row = {"prompt": "Q", "chosen": "A", "rejected": "B"}
    assert messages(read(None, {**row, "system": "S"}))[0] == [SYSTEM, Q]
    assert messages(read(None, row, default_system_message="S"))[0] == [SYSTEM, Q]


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ({"prompt": "Q", "chosen": "A"}, "missing field", "'rejected' is not in the row; it has prompt, chosen"),
        ({"chosen": "A", "rejected": "B"}, "missing field", "there is no 'prompt', and the two answers do not begin"),
        (
            {"prompt": "Q", "chosen": 1, "rejected": "B"},
            "wrong type",
            "'chosen' is a number, not a string or",
        ),
        ({"prompt": [Q], "chosen": [Q], "rejected": [B]}, "no assistant turn", "the chosen answer does not begin with"),
        (
            {"prompt": [], "chosen": [A], "rejected": [B]},
            "empty conversation",
            "there is no message before",
        ),
    ],
)
def test_a_bad_row_says_what_is_wrong(row: dict[str, Any], reason: str, detail: str) -> None:
    with pytest.raises(RowError) as caught:
        read(None, row)
    assert caught.value.reason == reason
    assert caught.value.detail.startswith(detail)
