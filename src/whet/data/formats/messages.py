"""A row's messages -> turns: their roles, contents, tool calls and reasoning, and what the row wants trained."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from whet.config.schema.data import DatasetConfig
from whet.core.errors import RowError
from whet.core.types import TrainRange, Turn
from whet.data.formats.base import as_flag, kind, parsed

DEFAULT_ROLES: Mapping[str, tuple[str, ...]] = {
    "user": ("human", "user"),
    "assistant": ("gpt", "assistant"),
    "system": ("system", "developer"),
    "tool": ("tool", "function"),
}

#: Keys under which reasoning is known, in the order transformers prefers them.
_REASONING = ("reasoning_content", "thinking", "reasoning")

#: Types of content parts that are text, in OpenAI's two interfaces.
_TEXT_PARTS = ("text", "input_text", "output_text")

#: Ways in which datasets write a thought at the beginning of a content.
_THOUGHTS = (
    re.compile(r"\s*<think>(?P<thought>.*?)</think>(?P<answer>.*)", re.DOTALL),
    re.compile(r"\s*<reasoning>(?P<thought>.*?)</reasoning>(?P<answer>.*)", re.DOTALL),
    re.compile(
        r"\s*<\|begin_of_thought\|>(?P<thought>.*?)<\|end_of_thought\|>"
        r"\s*<\|begin_of_solution\|>(?P<answer>.*?)(?:<\|end_of_solution\|>\s*)?$",
        re.DOTALL,
    ),
    re.compile(r"\s*<\|begin_of_thought\|>(?P<thought>.*?)<\|end_of_thought\|>(?P<answer>.*)", re.DOTALL),
)


@dataclass(frozen=True, slots=True)
class MessageReader:
    """Reads messages.

    Attributes:
        mappings: name that the template sees -> key of the row's message.
        roles: name of a role in the rows -> name that the template sees.
        training: key that says whether a message is trained.
        training_detail: key that lists which characters of it are.
        thinking_key: name under which the template expects reasoning.
        split_thinking: take a thought out of the beginning of an assistant's content.
        hidden: keys of the row's message that the template does not see.
        renamed: name that the template sees, and the key, where the two differ.
        plain: a message of a role and a text alone needs nothing but its role's name looked up.
    """

    mappings: Mapping[str, str]
    roles: Mapping[str, str] = field(default_factory=dict)
    training: str | None = None
    training_detail: str | None = None
    thinking_key: str = "reasoning_content"
    split_thinking: bool = False
    hidden: frozenset[str | None] = frozenset()
    renamed: tuple[tuple[str, str], ...] = ()
    plain: bool = False

    @classmethod
    def of(
        cls,
        dataset: DatasetConfig,
        role: str = "role",
        content: str = "content",
        roles: Mapping[str, tuple[str, ...]] | None = None,
    ) -> MessageReader:
        """The reader that a dataset's options ask for; ``role``, ``content``, ``roles`` are the format's own names."""
        thinking_key = dataset.template_thinking_key or "reasoning_content"
        mappings = {
            "role": dataset.message_field_role or role,
            "content": dataset.message_field_content or content,
            thinking_key: dataset.field_thinking or "reasoning_content",
            **(dataset.message_property_mappings or {}),
        }
        names = {**DEFAULT_ROLES, **(roles or {}), **(dataset.roles or {})}
        others = {source for target, source in mappings.items() if target not in ("role", "content")}
        wishes = {dataset.message_field_training, dataset.message_field_training_detail}
        kept = {source for target, source in mappings.items() if target == source}
        renamed = tuple((target, source) for target, source in mappings.items() if target != source)
        return cls(
            mappings=mappings,
            roles={source: target for target, sources in names.items() for source in (target, *sources)}
            | {source: target for target, sources in (dataset.roles or {}).items() for source in sources},
            training=dataset.message_field_training,
            training_detail=dataset.message_field_training_detail,
            thinking_key=thinking_key,
            split_thinking=dataset.split_thinking,
            hidden=frozenset({*wishes, *(source for _, source in renamed)} - kept),
            renamed=renamed,
            plain=not dataset.split_thinking and not {*others, *wishes} & {mappings["role"], mappings["content"]},
        )

    def read(self, messages: Sequence[Any]) -> tuple[Turn, ...]:
        """The turns of a list of messages.

        Raises:
            RowError: with the number of the message, counted from 0.
        """
        role_key, content_key = self.mappings["role"], self.mappings["content"]
        roles, plain = self.roles, self.plain
        turns = []
        for number, raw in enumerate(messages):
            # Nearly every message of nearly every dataset is a role and a text, and needs nothing of what follows.
            if plain and type(raw) is dict and len(raw) == 2:
                role, content = raw.get(role_key), raw.get(content_key)
                if type(role) is str and type(content) is str and role in roles:
                    turns.append(Turn({"role": roles[role], "content": content}))
                    continue
            turns.append(self._turn(number, raw))
        return tuple(turns)

    def _turn(self, number: int, raw: Any) -> Turn:
        if not isinstance(raw, Mapping):
            raise RowError("wrong type", f"message {number} is {kind(raw)}, not an object")
        hidden = self.hidden
        message = {key: value for key, value in raw.items() if value is not None and key not in hidden}
        for target, source in self.renamed:
            if raw.get(source) is not None:
                message[target] = raw[source]
        message["role"] = self._role(number, message, raw)
        if "tool_calls" in message:
            message["tool_calls"] = _tool_calls(number, message["tool_calls"])
        if "function_call" in message:
            message["function_call"] = _tool_call(f"the function_call of message {number}", message["function_call"])
        details = self._content(number, message, raw)
        if self.split_thinking and message["role"] == "assistant" and self.thinking_key not in message:
            details = _split_thinking(message, self.thinking_key, details)
        return Turn(_with_reasoning_names(number, message), self._train(number, raw), details)

    def _role(self, number: int, message: Mapping[str, Any], raw: Mapping[str, Any]) -> str:
        role = message.get("role")
        if role is None:
            where = f"message {number} has no '{self.mappings['role']}'"
            raise RowError("missing field", f"{where}; it has {', '.join(map(str, raw)) or 'no fields'}")
        if not isinstance(role, str) or role not in self.roles:
            known = ", ".join(sorted(self.roles))
            raise RowError("unknown role", f"message {number} has role {role!r}; known are {known} (see `roles`)")
        return self.roles[role]

    def _content(self, number: int, message: dict[str, Any], raw: Mapping[str, Any]) -> tuple[TrainRange, ...]:
        """Make ``message["content"]`` what the template sees; returns the ranges that are trained otherwise."""
        content = message.get("content")
        details: tuple[TrainRange, ...] = ()
        if content is None:
            if not message.keys() & {"tool_calls", "function_call", self.thinking_key}:
                key = self.mappings["content"]
                has = f"has '{key}' null" if key in raw else f"has no '{key}'; it has {', '.join(map(str, raw))}"
                raise RowError("missing field", f"message {number} {has}")
        elif isinstance(content, list | tuple):
            message["content"], details = _joined_parts(number, content)
        elif not isinstance(content, str) and not (message["role"] == "tool" and isinstance(content, Mapping)):
            raise RowError("wrong type", f"the content of message {number} is {kind(content)}, not a string")
        if self.training_detail is not None and raw.get(self.training_detail) is not None:
            details = _details(number, raw[self.training_detail])
        return details

    def _train(self, number: int, raw: Mapping[str, Any]) -> bool | None:
        wish = raw.get(self.training) if self.training is not None else None
        return None if wish is None else as_flag(wish, f"'{self.training}' of message {number}")


def _joined_parts(number: int, parts: Sequence[Any]) -> tuple[str, tuple[TrainRange, ...]]:
    """The text of content parts in one string, and the ranges of those that say whether they are trained."""
    pieces: list[str] = []
    details: list[TrainRange] = []
    at = 0
    for part in parts:
        text = part if isinstance(part, str) else _part_text(number, part)
        wish = None if isinstance(part, str) else part.get("train")
        if wish is None and isinstance(part, Mapping) and part.get("weight") is not None:
            wish = bool(part["weight"])
        if wish is not None:
            details.append(TrainRange(at, at + len(text), bool(wish)))
        pieces.append(text)
        at += len(text)
    return "".join(pieces), tuple(details)


def _reasoning_text(number: int, parts: Sequence[Any]) -> str:
    text, details = _joined_parts(number, parts)
    if details:
        found = f"a part of the reasoning of message {number} says whether it is trained"
        raise RowError("unsupported content part", f"{found}; only parts of its content can")
    return text


def _part_text(number: int, part: Any) -> str:
    if isinstance(part, Mapping) and part.get("type", "text") in _TEXT_PARTS:
        for key in ("text", "content", "value"):
            if isinstance(part.get(key), str):
                return str(part[key])
    found = f"a part of type {part.get('type')!r}" if isinstance(part, Mapping) else kind(part)
    raise RowError("unsupported content part", f"message {number} holds {found}; only text parts can be trained")


def _details(number: int, ranges: Any) -> tuple[TrainRange, ...]:
    """``{begin_offset, end_offset (inclusive), train}`` -> half-open ranges."""
    ranges = parsed(ranges)
    try:
        found = [TrainRange(int(r["begin_offset"]), int(r["end_offset"]) + 1, bool(r["train"])) for r in ranges]
    except (TypeError, KeyError, ValueError) as error:
        shape = "a list of {begin_offset, end_offset, train}"
        raise RowError("wrong type", f"the training detail of message {number} is not {shape}") from error
    if any(r.begin < 0 or r.end < r.begin for r in found):
        raise RowError("wrong offsets", f"a training detail of message {number} ends before it begins")
    return tuple(found)


def _tool_calls(number: int, calls: Any) -> list[Any]:
    """Tool calls with their arguments as objects, as chat templates expect them."""
    calls = parsed(calls)
    if not isinstance(calls, list | tuple) or not all(isinstance(call, Mapping) for call in calls):
        raise RowError("wrong type", f"the tool_calls of message {number} are not a list of objects")
    return [_tool_call(f"call {at} of message {number}", call) for at, call in enumerate(calls)]


def _tool_call(shown: str, call: Any) -> Any:
    """A call in which JSON text that is no object is refused: it would be trained as if it were one."""
    if not isinstance(call, Mapping):
        return call  # an old `function_call: "auto"`
    call = {key: value for key, value in call.items() if value is not None}
    if isinstance(call.get("function"), Mapping):
        call["function"] = _tool_call(shown, call["function"])
    if "arguments" in call:
        call["arguments"] = _arguments(shown, call["arguments"])
    return call


def _arguments(shown: str, arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    if not arguments.strip():
        return {}  # how some servers write a call without arguments
    try:
        read = json.loads(arguments)
    except ValueError as error:
        raise RowError("arguments are not JSON", f"those of {shown} are {arguments[:80]!r}: {error}") from None
    if not isinstance(read, Mapping):
        raise RowError("wrong type", f"the arguments of {shown} are the JSON of {kind(read)}, not of an object")
    return read


def split_thought(content: str) -> re.Match[str] | None:
    """The ``thought`` at the beginning of a content and the ``answer`` after it, as groups; None if there is none."""
    return next((match for pattern in _THOUGHTS if (match := pattern.match(content))), None)


def _split_thinking(message: dict[str, Any], key: str, details: tuple[TrainRange, ...]) -> tuple[TrainRange, ...]:
    """Move the thought at the beginning of the content to ``key``; returns ``details`` for what is left of it."""
    match = split_thought(message.get("content") or "")
    if match is None:
        return details
    answer = match["answer"]
    begin = match.start("answer") + len(answer) - len(answer.lstrip())
    message[key] = match["thought"].strip()
    message["content"] = answer.lstrip()
    return tuple(TrainRange(max(d.begin - begin, 0), d.end - begin, d.train) for d in details if d.end > begin)


def _with_reasoning_names(number: int, message: dict[str, Any]) -> dict[str, Any]:
    """The message with its reasoning under every name that templates read, as transformers gives it to them."""
    reasoning = next((message[key] for key in _REASONING if key in message), None)
    if reasoning is None:
        return message
    if isinstance(reasoning, list | tuple):
        reasoning = _reasoning_text(number, reasoning)
        message = {key: reasoning if key in _REASONING else value for key, value in message.items()}
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}
