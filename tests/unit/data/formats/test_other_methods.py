"""Rows of methods that do not train yet: judged answers, steps, prompts."""

from __future__ import annotations

from typing import Any

import pytest
from tests.configs import config_with

from whet.core.errors import RowError
from whet.core.types import Document, Prompt, Sample, Several, Stepwise, Turn, Unpaired, UnpairedText
from whet.data.formats import make_format

Q, A, B = ({"role": role, "content": text} for role, text in (("user", "Q"), ("assistant", "A"), ("assistant", "B")))
SYSTEM = {"role": "system", "content": "S"}


def read(kind: str | None, row: dict[str, Any], options: dict[str, Any] | None = None, **keys: Any) -> Sample:
    config = config_with({"type": kind, **(options or {})}, **keys)
    return make_format(config.data.datasets[0], config).read(row)


def messages(turns: tuple[Turn, ...]) -> list[dict[str, Any]]:
    return [dict(turn.message) for turn in turns]


# -- KTO --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (None, {"prompt": "Q", "completion": "A"}),
        (None, {"prompt": [Q], "completion": [A]}),
        (None, {"completion": [Q, A]}),
        ("chatml.argilla", {"instruction": "Q", "completion": "A"}),
        ("llama3.argilla_chat", {"completion": [Q, A]}),
        ("chatml.intel", {"question": "Q", "completion": "A"}),
        ("chatml.prompt_pairs", {"prompt": "Q", "completion": "A"}),
        ("llama3.ultra", {"prompt": "Q", "completion": "A"}),
    ],
)
def test_a_judged_answer(kind: str | None, row: dict[str, Any]) -> None:
    for label in (True, False):
        sample = read(kind, {**row, "label": label, "system": "S"}, rl="kto")
        assert isinstance(sample, Unpaired)
        assert (messages(sample.prompt), messages(sample.completion)) == ([SYSTEM, Q], [A])
        assert sample.label is label


@pytest.mark.parametrize("label", [1, "true", "TRUE", "1"])
def test_a_label_may_be_spelled_otherwise(label: Any) -> None:
    sample = read("passthrough.default", {"prompt": "Q", "completion": "A", "label": label}, rl="kto")
    assert sample == UnpairedText("Q", "A", True)


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ({"prompt": "Q", "completion": "A"}, "missing field", "'label' is not in the row"),
        ({"prompt": "Q", "completion": "A", "label": 2}, "wrong type", "'label' is a number, not true or false"),
        ({"prompt": "Q", "completion": [Q], "label": True}, "no assistant turn", "the answer does not begin with"),
        (
            {"completion": "A", "label": True},
            "missing field",
            "there is no 'prompt', and the answer is no conversation",
        ),
        ({"prompt": [], "completion": "A", "label": True}, "empty conversation", "there is no message before"),
    ],
)
def test_a_bad_judged_row_says_what_is_wrong(row: dict[str, Any], reason: str, detail: str) -> None:
    with pytest.raises(RowError) as caught:
        read(None, row, rl="kto")
    assert caught.value.reason == reason
    assert caught.value.detail.startswith(detail)


# -- steps ------------------------------------------------------------------------------------------------------------

STEPS = {"prompt": "Q", "completions": ["a", "b"], "labels": [True, 0]}


def test_steps_have_labels_and_the_datasets_options() -> None:
    assert read(None, STEPS, process_reward_model=True) == Stepwise("Q", ("a", "b"), (True, False))
    options = {"step_separator": "", "max_completion_length": 8, "train_on_last_step_only": True}
    sample = read("stepwise_supervised", STEPS, options, process_reward_model=True)
    assert sample == Stepwise("Q", ("a", "b"), (True, False), "", 8, True)


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        ({"labels": [True]}, "lengths differ", "2 completions, 1 labels"),
        ({"completions": [], "labels": []}, "empty solution", "'completions' is an empty list"),
        ({"completions": ["a", 3]}, "wrong type", "completion 1 is a number, not a string"),
        ({"labels": [True, None]}, "wrong type", "label 1 is null, not true or false"),
    ],
)
def test_bad_steps_say_what_is_wrong(change: dict[str, Any], reason: str, detail: str) -> None:
    with pytest.raises(RowError) as caught:
        read(None, {**STEPS, **change}, process_reward_model=True)
    assert (caught.value.reason, caught.value.detail) == (reason, detail)


# -- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["Q", Q, [Q]])
def test_a_prompt_keeps_the_other_columns_as_they_are(prompt: Any) -> None:
    others = {"answer": 4, "tests": [{"in": None}], "tools": []}
    sample = read(None, {"prompt": prompt, **others}, rl="grpo")
    assert isinstance(sample, Prompt)
    assert messages(sample.turns) == [Q]
    assert (sample.columns, sample.answer, sample.text) == (others, None, None)


def test_a_raw_prompt_is_a_text() -> None:
    assert read("passthrough.default", {"prompt": "Q", "x": 1}, rl="gdpo") == Prompt(text="Q", columns={"x": 1})


TALK = [SYSTEM, Q, A, Q, B]


def test_a_conversation_has_a_reference_at_its_first_or_last_answer() -> None:
    first = read("ebft_chat_multiturn.transform", {"messages": TALK, "x": 1}, rl="ebft")
    assert isinstance(first, Prompt)
    assert (messages(first.turns), first.answer) == ([SYSTEM, Q], "A")
    assert first.columns == {"x": 1, "remaining_turns": [Q, B]}
    last = read("ebft_chat_multiturn.transform_last_turn", {"messages": TALK}, rl="ebft")
    assert isinstance(last, Prompt)
    assert (messages(last.turns), last.answer, last.columns) == ([SYSTEM, Q, A, Q], "B", {})


def test_each_answer_of_a_conversation_may_be_a_sample() -> None:
    every = read("ebft_chat_multiturn.transform_all_turns", {"messages": TALK}, rl="ebft")
    assert isinstance(every, Several)
    answers = [(len(sample.turns), sample.answer) for sample in every.samples if isinstance(sample, Prompt)]
    assert answers == [(2, "A"), (4, "B")]


@pytest.mark.parametrize("talk", [[Q], [A], [SYSTEM, Q]])
def test_a_conversation_without_an_answer_is_refused(talk: list[Any]) -> None:
    with pytest.raises(RowError, match="no assistant turn"):
        read("ebft_chat_multiturn.transform", {"messages": talk}, rl="ebft")


def test_a_thought_may_be_left_out_of_the_reference() -> None:
    row = {"problem": "Q", "solution": "<think>t</think>\nA"}
    whole, answer = (read(f"ebft_reasoning.{name}", row, rl="ebft") for name in ("transform", "transform_answer_only"))
    assert isinstance(whole, Prompt)
    assert isinstance(answer, Prompt)
    assert (whole.answer, answer.answer) == (row["solution"], "A")
    assert messages(whole.turns) == messages(answer.turns) == [Q]
    strided = read("ebft_reasoning.transform_strided_answer_only", row, rl="ebft")
    assert isinstance(strided, Document)
    assert [(segment.text, segment.train) for segment in strided.segments] == [("Q", False), ("A", True)]
