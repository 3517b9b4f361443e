"""Conversations for property tests: made to be mistaken for markup, and of shapes that a template accepts."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import strategies as st

#: Templates that know the role; the others refuse it.
WITHOUT_SYSTEM = {"gemma"}
WITH_TOOLS = {"mistral_v2v3", "mistral_v3_tekken", "mistral_v7_tekken", "qwen3", "qwen_25"}

_PIECES = [
    "[[1, 2], [3, 4]]",
    "[[dummy_message]]",
    "[INST",
    "assistant",
    "<|im_start",
    "### Response:\n",
    "### Instruction:",
    "Assistant:",
    "User: hi",
    "{{ messages }}",
    "{% raw %}",
    "%s {0} {}",
    "🙂",
    "👩‍👩‍👧‍👦",
    "é",
    "東京",
    "ß",
    "\n",
    "\n\n",
    " ",
    "  ",
    "\t",
    "hello",
    "</think>",
    "<think>\n",
    "<tool_call>",
    '{"name": "f"}',
    "\u200b",
    "\\",
    "'",
    '"',
]

#: Hypothesis draws constants of our own sources, among them these.
_CONTROL = re.compile(r"\[/?[A-Z_]+\]|</?(?:s|unk|pad|bos|eos|start_of_turn|end_of_turn)>|\|>")

#: Contents: markup-like pieces, unicode, white space, nothing; whole control tokens are refused, so there are none.
contents = st.lists(
    st.one_of(st.sampled_from(_PIECES), st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=6)),
    max_size=6,
).map(lambda pieces: _CONTROL.sub(lambda found: found[0][:-1], "".join(pieces)))


@st.composite
def plain_conversations(draw: st.DrawFn, template: str) -> list[dict[str, Any]]:
    """User and assistant in turn, with or without a system message; the same content may come again."""
    repeated = draw(contents)
    content = st.one_of(contents, st.just(repeated))
    messages = []
    if template not in WITHOUT_SYSTEM and draw(st.booleans()):
        messages.append({"role": "system", "content": draw(content)})
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(content)})
        messages.append({"role": "assistant", "content": draw(content)})
    return messages


@st.composite
def thinking_conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """As `plain_conversations`, some answers with reasoning."""
    messages = draw(plain_conversations("qwen3"))
    for message in messages:
        if message["role"] == "assistant" and draw(st.booleans()):
            reasoning = draw(contents)
            message |= {"thinking": reasoning, "reasoning_content": reasoning}
    return messages


_arguments = st.dictionaries(
    st.sampled_from(["city", "day", "ünit"]), st.one_of(contents, st.integers(), st.booleans())
)


@st.composite
def tool_conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A question, one or two calls, their results, an answer; perhaps another round."""
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(contents)})
    for _ in range(draw(st.integers(1, 2))):
        messages.append({"role": "user", "content": draw(contents)})
        calls = [
            {
                "id": f"call{n:05d}",
                "type": "function",
                "function": {"name": draw(st.sampled_from(["get_weather", "f"])), "arguments": draw(_arguments)},
            }
            for n in range(draw(st.integers(1, 2)))
        ]
        messages.append({"role": "assistant", "content": "", "tool_calls": calls})
        messages += [
            {"role": "tool", "name": call["function"]["name"], "tool_call_id": call["id"], "content": draw(contents)}
            for call in calls
        ]
        messages.append({"role": "assistant", "content": draw(contents)})
    return messages


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city: user or assistant?",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
