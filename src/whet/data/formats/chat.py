"""Conversations: ``type: chat_template`` (OpenAI's messages) and ``type: sharegpt`` (from/value)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from whet.config.config import Config
from whet.config.schema.data import DatasetConfig
from whet.core.errors import RowError
from whet.core.types import Conversation, Turn
from whet.data.formats.base import CONFIGURED, Row, kind, listed, parsed, text
from whet.data.formats.messages import MessageReader


@dataclass(frozen=True, slots=True)
class Chat:
    """Rows with a list of messages.

    A system turn comes from the messages; where they have none, from the column ``system``; where the row has none
    either, from ``default_system_message``.

    Attributes:
        reader: of the messages.
        field_messages, field_tools, field_system: columns.
        drop_system: leave out the row's own system turns.
        default_system: system message of rows without one.
        template: as in `Format`.
    """

    reader: MessageReader
    field_messages: str = "messages"
    field_tools: str = "tools"
    field_system: str = "system"
    drop_system: bool = False
    default_system: str | None = None
    template: str | None = CONFIGURED
    cuts_long_rows: bool = False

    def read(self, row: Row) -> Conversation:
        turns = self.reader.read(listed(row, self.field_messages))
        if not turns:
            raise RowError("empty conversation", f"'{self.field_messages}' is an empty list")
        return Conversation(self.with_system(turns, row), read_tools(row.get(self.field_tools)))

    def with_system(self, turns: tuple[Turn, ...], row: Row) -> tuple[Turn, ...]:
        """The turns, with the system turn that the row or the config gives where they have none."""
        if self.drop_system:
            turns = tuple(turn for turn in turns if turn.role != "system")
        elif has_system(turns):
            return turns
        elif row.get(self.field_system):
            return (Turn({"role": "system", "content": text(row, self.field_system)}), *turns)
        if self.default_system is None:
            return turns
        return (Turn({"role": "system", "content": self.default_system}), *turns)


def has_system(turns: Sequence[Turn]) -> bool:
    """Whether one of the turns is the system's."""
    return any([turn.message["role"] == "system" for turn in turns])  # noqa: C419  a list is faster than a generator


def read_tools(value: Any) -> list[Any] | None:
    """The tools offered in a conversation: a list of JSON schemas, or the JSON text of one; None for an empty list."""
    tools = parsed(value)
    if tools is None or tools == "" or tools == []:
        return None
    if not isinstance(tools, list | tuple) or not all(isinstance(parsed(tool), Mapping) for tool in tools):
        found = f"a list with {kind(tools[0])}" if isinstance(tools, list | tuple) else kind(tools)
        raise RowError("wrong type", f"the tools are {found}, not a list of objects")
    return [_tool(parsed(tool)) for tool in tools]


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    read = dict(tool)
    if isinstance(read.get("function"), Mapping):
        read["function"] = _tool(read["function"])
    if "parameters" in read:
        read["parameters"] = parsed(read["parameters"])
        if isinstance(read["parameters"], str) and read["parameters"].strip():
            found = f"those of the tool {read.get('name')!r} are {read['parameters'][:80]!r}"
            raise RowError("parameters are not JSON", found)
    return read


def chat_template(dataset: DatasetConfig, config: Config) -> Chat:
    """``messages: [{role, content, ...}]``, optional ``tools``."""
    return _chat(dataset, config, MessageReader.of(dataset), "messages")


def sharegpt(dataset: DatasetConfig, config: Config) -> Chat:
    """``conversations: [{from, value}]``; ``conversation`` names the template where no ``chat_template`` is given."""
    given = dataset.chat_template or dataset.chat_template_jinja or config.template.chat_template
    style = None if given else dataset.conversation
    chat = _chat(dataset, config, MessageReader.of(dataset, "from", "value"), "conversations")
    return replace(chat, template=style or CONFIGURED)


def pygmalion(dataset: DatasetConfig, config: Config) -> Chat:
    """``conversations: [{role: system, human or bot, value}]``, in Metharme's prompts."""
    reader = MessageReader.of(dataset, "role", "value", {"assistant": ("bot", "assistant", "gpt")})
    return replace(_chat(dataset, config, reader, "conversations"), template="metharme")


def llama2_chat(dataset: DatasetConfig, config: Config) -> Chat:
    """``conversations: [{from, value}]``, in Llama 2's prompts (``[INST] <<SYS>>``)."""
    return replace(sharegpt(dataset, config), template="llama2")


def _chat(dataset: DatasetConfig, config: Config, reader: MessageReader, messages: str) -> Chat:
    return Chat(
        reader=reader,
        field_messages=dataset.field_messages or messages,
        field_tools=dataset.field_tools or "tools",
        field_system=dataset.field_system or "system",
        drop_system=dataset.drop_system_message,
        default_system=config.template.default_system_message,
    )
