"""Preference rows -> a prompt and two answers."""

from __future__ import annotations

from typing import Any

import pytest
from tests.configs import config_with

from whet.core.errors import RowError
from whet.core.types import Preference, PreferenceText
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


def test_the_best_of_ranked_answers_is_chosen_and_the_worst_rejected() -> None:
    answers = [{"answer": "x", "rank": 2}, {"answer": "B", "rank": 3.0}, {"answer": "A", "rank": 1}]
    assert messages(read("zephyr.nectar", {"prompt": "Q", "answers": answers})) == [[Q], [A], [B]]
    named = "\n\nHuman: Q\n\nAssistant: A\n\nHuman: Q\n\nAssistant:"
    assert messages(read("zephyr.nectar", {"prompt": named, "answers": answers}))[0] == [Q, A, Q]
    for few in (answers[:1], [answers[0], {"answer": "y", "rank": 2}]):
        with pytest.raises(RowError, match="none is better than another"):
            read("zephyr.nectar", {"prompt": "Q", "answers": few})


def test_raw_pairs_are_passed_through() -> None:
    config = config_with({"type": "passthrough.default", "field_chosen": "good"}, rl="dpo")
    format_ = make_format(config.data.datasets[0], config)
    assert format_.template is None
    assert format_.read({"prompt": "P", "good": "C", "rejected": "R"}) == PreferenceText("P", "C", "R")


def test_a_reward_model_reads_pairs_in_its_own_template_or_the_configs() -> None:
    row = {"system": "", "input": "Q", "chosen": "A", "rejected": "B"}
    for kind, template in {"bradley_terry.chat_template": "configured", "bradley_terry.llama3": "llama3"}.items():
        config = config_with({"type": kind}, reward_model=True)
        format_ = make_format(config.data.datasets[0], config)
        sample = format_.read(row)
        assert format_.template == template
        assert isinstance(sample, Preference)
        assert messages(sample) == [[Q], [A], [B]]


def test_options_of_messages_are_read_in_pairs_too() -> None:
    options = {
        "message_property_mappings": {"role": "who", "content": "says"},
        "roles": {"assistant": ("bot",), "user": ("visitor",)},
    }
    config = config_with({"type": "chat_template.argilla", **options}, rl="dpo")
    asked, first, second = ({"who": w, "says": s} for w, s in (("visitor", "Q"), ("bot", "A"), ("bot", "B")))
    sample = make_format(config.data.datasets[0], config).read({"chosen": [asked, first], "rejected": [asked, second]})
    assert isinstance(sample, Preference)
    assert messages(sample) == [[Q], [A], [B]]


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
