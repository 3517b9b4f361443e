"""G1: the ids that are trained are those of `apply_chat_template`, for every template and conversation."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.conversations import TOOLS, WITH_TOOLS, plain_conversations, thinking_conversations, tool_conversations
from tests.tiny_tokenizers import tiny_renderer, tiny_tokenizer

from whet.core.types import Conversation, Turn
from whet.data.templates.render import Renderer, TrainPolicy
from whet.data.templates.resolve import shipped
from whet.data.texts import TextEncoder

few = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))


def assert_ids_are_the_stock_ones(
    name: str, messages: list[dict[str, Any]], tools: list[Any] | None = None, **kwargs: Any
) -> None:
    tokenizer = tiny_tokenizer(name)
    renderer = Renderer(tokenizer.chat_template, tokenizer, kwargs) if kwargs else tiny_renderer(name)
    rendered = renderer.render(Conversation(tuple(Turn(message) for message in messages), tools), TrainPolicy())
    stock = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **kwargs)
    assert rendered.text == stock
    assert type(rendered.text) is str
    encoder = TextEncoder(tokenizer, renderer.control)
    batch = encoder.batch()
    number = batch.add(rendered)
    coded = encoder.encode(batch)
    # A control token in a message is refused, and Hypothesis draws texts that it finds in the sources.
    assume(all(error.reason != "special token in content" for error in coded.refused.values()))
    assert not coded.refused
    ids = tokenizer.apply_chat_template(messages, tools=tools, tokenize=True, return_dict=False, **kwargs)
    assert coded.sequence(number)[0].tolist() == ids


@pytest.mark.parametrize("name", shipped())
@given(data=st.data())
@few
def test_ids_equal_apply_chat_template(name: str, data: st.DataObject) -> None:
    assert_ids_are_the_stock_ones(name, data.draw(plain_conversations(name)))


@pytest.mark.parametrize("name", sorted(WITH_TOOLS))
@given(data=st.data())
@few
def test_ids_equal_apply_chat_template_with_tools(name: str, data: st.DataObject) -> None:
    assert_ids_are_the_stock_ones(name, data.draw(tool_conversations()), TOOLS)


@pytest.mark.parametrize("enable_thinking", [True, False])
@given(data=st.data())
@few
def test_ids_equal_apply_chat_template_where_thoughts_are_rewritten(enable_thinking: bool, data: st.DataObject) -> None:
    messages = data.draw(thinking_conversations())
    assert_ids_are_the_stock_ones("qwen3", messages, enable_thinking=enable_thinking)
