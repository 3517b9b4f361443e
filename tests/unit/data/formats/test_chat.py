"""Rows of messages -> turns, or a reason that names what is wrong and where."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.configs import config_with

from whet.core.errors import RowError
from whet.core.types import Conversation, TrainRange
from whet.data.formats import make_format

QUESTION = {"role": "user", "content": "Q"}
ANSWER = {"role": "assistant", "content": "A"}


def read(row: dict[str, Any], keys: dict[str, Any] | None = None, **options: Any) -> Conversation:
    config = config_with({"type": "chat_template", **options}, **(keys or {}))
    sample = make_format(config.data.datasets[0], config).read(row)
    assert isinstance(sample, Conversation)
    return sample


def test_messages_are_read_as_they_are() -> None:
    assert read({"messages": [QUESTION, ANSWER]}).messages == [QUESTION, ANSWER]


def test_messages_may_be_json_text() -> None:
    assert read({"messages": json.dumps([QUESTION, ANSWER])}).messages == [QUESTION, ANSWER]


def test_other_properties_reach_the_template_and_nulls_do_not() -> None:
    message = {"role": "assistant", "content": "A", "name": "x", "weight": 1, "tool_calls": None}
    assert read({"messages": [message]}).messages == [{"role": "assistant", "content": "A", "name": "x", "weight": 1}]


@pytest.mark.parametrize(
    "options",
    [
        {"message_property_mappings": {"role": "from", "content": "value"}},
        {"message_field_role": "from", "message_field_content": "value"},
    ],
)
def test_fields_of_a_message_may_have_other_names(options: dict[str, Any]) -> None:
    row = {"talk": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}
    assert read(row, field_messages="talk", **options).messages == [QUESTION, ANSWER]


def test_sharegpt_is_conversations_of_from_and_value() -> None:
    row = {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}
    assert read(row, type="sharegpt").messages == [QUESTION, ANSWER]


def test_sharegpts_conversation_names_the_template_where_no_other_is_given() -> None:
    config = config_with({"type": "sharegpt", "conversation": "llama3"})
    assert make_format(config.data.datasets[0], config).template == "llama3"
    config = config_with({"type": "sharegpt", "conversation": "llama3"}, chat_template="chatml")
    assert make_format(config.data.datasets[0], config).template == "configured"


def test_roles_are_renamed() -> None:
    row = {"messages": [{"role": "bot", "content": "A"}, {"role": "human", "content": "Q"}]}
    assert [turn.role for turn in read(row, roles={"assistant": ("bot",)}).turns] == ["assistant", "user"]


def test_a_system_turn_comes_from_the_messages_then_the_column_then_the_config() -> None:
    own = {"role": "system", "content": "own"}
    keys = {"default_system_message": "default"}
    rows = {
        "own": {"messages": [own, QUESTION], "system": "column"},
        "column": {"messages": [QUESTION], "system": "column"},
        "default": {"messages": [QUESTION]},
    }
    for expected, row in rows.items():
        assert read(row, keys).messages == [{"role": "system", "content": expected}, QUESTION]
    assert read(rows["own"], drop_system_message=True).messages == [QUESTION]


def test_parts_are_joined_and_their_flags_become_ranges() -> None:
    parts = [{"type": "text", "text": "ab", "train": False}, {"text": "cd"}, {"value": "e", "weight": 1}]
    (turn,) = read({"messages": [{"role": "assistant", "content": parts}]}).turns
    assert turn.message["content"] == "abcde"
    assert turn.details == (TrainRange(0, 2, False), TrainRange(4, 5, True))


def test_training_fields_are_read_and_kept_from_the_template() -> None:
    message = {**ANSWER, "t": False, "d": [{"begin_offset": 0, "end_offset": 2, "train": True}]}
    (turn,) = read({"messages": [message]}, message_field_training="t", message_field_training_detail="d").turns
    assert (turn.train, turn.details, dict(turn.message)) == (False, (TrainRange(0, 3, True),), ANSWER)


def test_calls_and_tools_in_json_text_become_objects() -> None:
    call = {"id": None, "function": {"name": "f", "arguments": '{"x": 1}'}}
    tool = {"type": "function", "function": {"name": "f", "parameters": '{"type": "object"}'}}
    row = {"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}], "tools": json.dumps([tool])}
    sample = read(row)
    assert sample.messages == [
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
    ]
    assert sample.tools == [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


def test_openais_rows_need_no_mapping() -> None:
    rows = [
        {"role": "developer", "content": "D"},
        {"role": "user", "content": [{"type": "input_text", "text": "Q"}]},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}},
        {"role": "function", "name": "f", "content": "1"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "A"}], "refusal": None},
    ]
    assert read({"messages": rows}).messages == [
        {"role": "system", "content": "D"},
        QUESTION,
        {"role": "assistant", "function_call": {"name": "f", "arguments": {"x": 1}}},
        {"role": "tool", "name": "f", "content": "1"},
        ANSWER,
    ]


def test_reasoning_may_come_in_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    (message,) = read({"messages": [{**ANSWER, "reasoning_content": parts}]}).messages
    assert message["reasoning_content"] == message["thinking"] == "ab"
    with pytest.raises(RowError, match="a part of the reasoning of message 0 says whether it is trained"):
        read({"messages": [{**ANSWER, "reasoning_content": [{"text": "a", "train": False}]}]})


def test_a_weight_may_say_whether_a_message_is_trained() -> None:
    turns = read({"messages": [QUESTION, {**ANSWER, "weight": 0}]}, message_field_training="weight").turns
    assert [turn.train for turn in turns] == [None, False]


def test_pygmalion_and_llama_2_bring_their_template() -> None:
    talk = [{"role": "human", "value": "Q"}, {"role": "bot", "value": "A"}]
    assert read({"conversations": talk}, type="pygmalion").messages == [QUESTION, ANSWER]
    shared = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    assert read({"conversations": shared}, type="llama2_chat").messages == [QUESTION, ANSWER]
    for kind, template in {"pygmalion": "metharme", "llama2_chat": "llama2"}.items():
        config = config_with({"type": kind}, chat_template="chatml")
        assert make_format(config.data.datasets[0], config).template == template


@pytest.mark.parametrize("arguments", ["", " ", "{}", {}])
def test_a_call_without_arguments_has_none(arguments: Any) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    message = {"role": "assistant", "tool_calls": [call]}
    assert read({"messages": [message]}).messages[0]["tool_calls"] == [{"function": {"name": "f", "arguments": {}}}]


def test_a_plain_message_and_one_with_more_keys_are_read_alike() -> None:
    plain = [{"role": "human", "content": "Q"}, {"role": "gpt", "content": "A"}]
    more = [{**message, "note": None} for message in plain]
    assert read({"messages": plain}) == read({"messages": more})
    options = {"message_property_mappings": {"name": "content"}}
    assert read({"messages": plain}, **options) == read({"messages": more}, **options)


@pytest.mark.parametrize(
    "content",
    [
        "<think>why</think>\n\nA",
        "\n<reasoning>why</reasoning>A",
        "<|begin_of_thought|>why<|end_of_thought|>\n<|begin_of_solution|>A<|end_of_solution|>",
    ],
)
def test_a_thought_is_taken_out_of_the_content(content: str) -> None:
    (turn,) = read({"messages": [{"role": "assistant", "content": content}]}, split_thinking=True).turns
    assert (turn.message["content"], turn.message["reasoning_content"], turn.message["thinking"]) == ("A", "why", "why")


def test_ranges_move_with_the_answer_when_its_thought_is_taken_out() -> None:
    content = "<think>x</think>answer"
    message = {"role": "assistant", "content": content, "d": [{"begin_offset": 16, "end_offset": 18, "train": False}]}
    (turn,) = read({"messages": [message]}, split_thinking=True, message_field_training_detail="d").turns
    assert turn.details == (TrainRange(0, 3, False),)


def test_reasoning_reaches_the_template_under_its_names() -> None:
    message = {**ANSWER, "why": "because"}
    (turn,) = read({"messages": [message]}, field_thinking="why").turns
    assert dict(turn.message) == {**ANSWER, "reasoning_content": "because", "thinking": "because"}


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ({"text": "x"}, "missing field", "'messages' is not in the row; it has text"),
        ({"messages": None}, "missing field", "'messages' is null"),
        ({"messages": "hello"}, "wrong type", "'messages' is a string, not a list"),
        ({"messages": {"role": "user"}}, "wrong type", "'messages' is an object, not a list"),
        ({"messages": []}, "empty conversation", "'messages' is an empty list"),
        ({"messages": [3]}, "wrong type", "message 0 is a number, not an object"),
        ({"messages": [{"content": "x"}]}, "missing field", "message 0 has no 'role'; it has content"),
        ({"messages": [{"role": "user"}]}, "missing field", "message 0 has no 'content'; it has role"),
        ({"messages": [{"role": "usr", "content": "x"}]}, "unknown role", "message 0 has role 'usr'; known are assist"),
        ({"messages": [{"role": "user", "content": 3}]}, "wrong type", "the content of message 0 is a number, not a s"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "unsupported content part",
            "message 0 holds a part of type 'image'; only text parts can be trained",
        ),
        ({"messages": [QUESTION], "tools": "x"}, "wrong type", "the tools are a string, not a list of objects"),
        (
            {"messages": [{**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1'}}]}]},
            "arguments are not JSON",
            "those of call 0 of message 0 are '{\"x\": 1': ",
        ),
        (
            {"messages": [{**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]},
            "wrong type",
            "the arguments of call 0 of message 0 are the JSON of a list, not of an object",
        ),
        (
            {"messages": [ANSWER], "tools": [{"function": {"name": "f", "parameters": "{x"}}]},
            "parameters are not JSON",
            "those of the tool 'f' are '{x'",
        ),
        ({"messages": [{**ANSWER, "tool_calls": "x"}]}, "wrong type", "the tool_calls of message 0 are not a list"),
    ],
)
def test_a_bad_row_says_what_is_wrong(row: dict[str, Any], reason: str, detail: str) -> None:
    with pytest.raises(RowError) as caught:
        read(row)
    assert caught.value.reason == reason
    assert caught.value.detail.startswith(detail)


@pytest.mark.parametrize(
    ("message", "detail"),
    [
        ({"t": "yes"}, "'t' of message 0 is a string, not true or false"),
        ({"d": "x"}, "the training detail of message 0 is not a list of {begin_offset, end_offset, train}"),
        ({"d": [{"begin_offset": 3, "end_offset": 1, "train": True}]}, "a training detail of message 0 ends before it"),
    ],
)
def test_a_bad_wish_says_what_is_wrong(message: dict[str, Any], detail: str) -> None:
    with pytest.raises(RowError) as caught:
        read(
            {"messages": [{**ANSWER, **message}]},
            message_field_training="t",
            message_field_training_detail="d",
        )
    assert caught.value.detail.startswith(detail)
