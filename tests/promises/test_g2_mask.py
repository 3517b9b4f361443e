"""G2: the supervised tokens, decoded, are the assistant's text as the template writes it and the turn's stop token.

The tokenizer of these tests has no merges, so that a token never holds characters of a header and of an answer; for
such tokens the last test states the rule.
"""

from __future__ import annotations

import json
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

#: What each template writes after an answer.
STOP = {
    "chatml": "<|im_end|>",
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseek_v2": "<｜end▁of▁sentence｜>",
    "deepseek_v3": "<｜end▁of▁sentence｜>",
    "exaone": "[|endofturn|]",
    "gemma": "<end_of_turn>",
    "gemma3": "<end_of_turn>",
    "gemma3n": "<end_of_turn>",
    "llama3": "<|eot_id|>",
    "llama4": "<|eot|>",
    "phi_3": "<|end|>",
    "phi_35": "<|end|>",
    "qwen3": "<|im_end|>",
    "qwen_25": "<|im_end|>",
}
#: Templates that trim a content, and those that put a space before or after an answer (the model writes it).
TRIMS = {"cohere", "gemma", "gemma3", "gemma3n", "llama2", "llama3", "llama4", "metharme"}
SPACE = {"llama2", "mistral_v1", "mistral_v2v3", "deepseek_v2"}
SPACE_AFTER = {"llama2"}


def answer(name: str, content: str) -> str:
    """An answer as the template writes it, with its stop token."""
    written = content.strip() if name in TRIMS else content
    return (" " if name in SPACE else "") + written + (" " if name in SPACE_AFTER else "") + STOP.get(name, "</s>")


def trained_text(name: str, messages: list[dict[str, Any]], tools: list[Any] | None = None, **options: Any) -> str:
    """The supervised tokens of a conversation, decoded as one."""
    tokenizer = tiny_tokenizer(name, vocab_size=256)
    kwargs = options.pop("kwargs", None)
    renderer = Renderer(tokenizer.chat_template, tokenizer, kwargs) if kwargs else tiny_renderer(name, 256)
    conversation = Conversation(tuple(Turn(message) for message in messages), tools)
    rendered = renderer.render(conversation, TrainPolicy(**options))
    encoder = TextEncoder(tokenizer, renderer.control)
    batch = encoder.batch()
    number = batch.add(rendered)
    coded = encoder.encode(batch)
    # Hypothesis also draws texts that it finds in the sources: a control token in a message is refused, as it must be.
    specials = [token.content for token in tokenizer.added_tokens_decoder.values()]
    assume(not any(special in str(value) for message in messages for value in message.values() for special in specials))
    assert not coded.refused
    ids, supervised = coded.sequence(number)
    return tokenizer.decode(ids[supervised], skip_special_tokens=False)


@pytest.mark.parametrize("name", shipped())
@given(data=st.data())
@few
def test_the_assistants_words_and_stop_tokens_are_trained_and_nothing_else(name: str, data: st.DataObject) -> None:
    messages = data.draw(plain_conversations(name))
    if name == "qwen3":
        for message in messages:
            message["content"] = message["content"].replace("</think>", "")
    expected = [answer(name, message["content"]) for message in messages if message["role"] == "assistant"]
    if name == "qwen3":
        expected[-1] = "<think>\n\n</think>\n\n" + expected[-1].lstrip("\n")
    assert trained_text(name, messages) == "".join(expected)


@pytest.mark.parametrize("name", shipped())
@given(data=st.data())
@few
def test_without_stop_tokens_the_words_alone_are_trained(name: str, data: st.DataObject) -> None:
    messages = data.draw(plain_conversations(name))
    without = trained_text(name, messages, train_on_eos="none", train_on_eot="none")
    stop = STOP.get(name, "</s>")
    assert stop not in without
    assert trained_text(name, messages).replace(stop, "") == without


@given(data=st.data())
@few
def test_thoughts_that_the_template_keeps_are_trained(data: st.DataObject) -> None:
    messages = data.draw(thinking_conversations())
    for message in messages:
        message["content"] = message["content"].replace("</think>", "")
    answers = [message for message in messages if message["role"] == "assistant"]
    last = answers[-1]
    thought = last.get("reasoning_content", "").strip("\n")
    expected = [answer("qwen3", message["content"]) for message in answers]
    expected[-1] = f"<think>\n{thought}\n</think>\n\n" + expected[-1].lstrip("\n")
    assert trained_text("qwen3", messages) == "".join(expected)


@given(data=st.data())
@few
def test_a_thought_that_the_generation_prompt_writes_is_not_trained(data: st.DataObject) -> None:
    messages = data.draw(plain_conversations("qwen3"))
    for message in messages:
        message["content"] = message["content"].replace("</think>", "")
    expected = [answer("qwen3", message["content"]) for message in messages if message["role"] == "assistant"]
    expected[-1] = expected[-1].lstrip("\n")
    assert trained_text("qwen3", messages, kwargs={"enable_thinking": False}) == "".join(expected)


@pytest.mark.parametrize("name", sorted(WITH_TOOLS))
@given(data=st.data())
@few
def test_calls_are_trained_and_their_results_are_not(name: str, data: st.DataObject) -> None:
    messages = data.draw(tool_conversations())
    if name == "qwen3":
        for message in messages:
            message["content"] = message["content"].replace("</think>", "").replace("<tool_response>", "")
    last_question = max(number for number, message in enumerate(messages) if message["role"] == "user")
    expected = []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            content = message["content"]
            if name == "qwen3" and number == len(messages) - 1:
                assert number > last_question
                content = "<think>\n\n</think>\n\n" + content.lstrip("\n")
            calls = message.get("tool_calls", [])
            expected.append(called(name, calls) if calls else answer(name, content))
    assert trained_text(name, messages, TOOLS) == "".join(expected)


def called(name: str, calls: list[Any]) -> str:
    """Calls as the template writes them, with the stop token."""
    functions = [(call["function"]["name"], call["function"]["arguments"], call["id"]) for call in calls]
    dumped = [(json.dumps(name), json.dumps(given, ensure_ascii=False), number) for name, given, number in functions]
    if name.startswith("qwen"):
        written = [f'<tool_call>\n{{"name": {n}, "arguments": {a}}}\n</tool_call>' for n, a, _ in dumped]
        return "\n".join(written) + "<|im_end|>"
    written = [f'{{"name": {n}, "arguments": {a}, "id": "{i}"}}' for n, a, i in dumped]
    gap = " " if name == "mistral_v2v3" else ""
    return f"[TOOL_CALLS]{gap}[{', '.join(written)}]</s>"


@pytest.mark.parametrize("name", shipped())
@given(data=st.data())
@few
def test_a_token_is_trained_if_its_first_character_is(name: str, data: st.DataObject) -> None:
    tokenizer = tiny_tokenizer(name)
    renderer = tiny_renderer(name)
    messages = data.draw(plain_conversations(name))
    rendered = renderer.render(Conversation(tuple(Turn(message) for message in messages)), TrainPolicy())
    encoder = TextEncoder(tokenizer)
    batch = encoder.batch()
    number = batch.add(rendered)
    ids, supervised = encoder.encode(batch).sequence(number)
    begins = [begin for begin, _ in tokenizer.backend_tokenizer.encode(rendered.text, add_special_tokens=False).offsets]
    assert len(begins) == len(ids)
    inside = [any(span.begin <= begin < span.end for span in rendered.spans) for begin in begins]
    assert supervised.tolist() == inside
