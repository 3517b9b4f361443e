"""Preference rows: a prompt, an answer that was chosen and one that was rejected; for ``rl: dpo``.

A prompt or an answer may be a string, a message or a list of messages. A string is what the user, or the assistant,
said: preference rows are conversations here, rendered by the chat template like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whet.config.config import Config
from whet.config.schema.data import DatasetConfig
from whet.core.errors import RowError
from whet.core.types import Preference, Turn
from whet.data.formats.base import CONFIGURED, Row, kind, listed, required, text
from whet.data.formats.chat import read_tools
from whet.data.formats.messages import MessageReader


@dataclass(frozen=True, slots=True)
class Pairs:
    """Rows with a prompt and two answers.

    Attributes:
        reader: of messages.
        prompt: fields of the prompt, the first that is there counts; empty: it is what both answers begin with.
        chosen, rejected: fields of the answers, likewise.
        whole: the answers are whole conversations; what they share is the prompt.
        only_last: the prompt is a list of messages; of an answer that is one, its last message alone is the answer.
        system: field of a system text.
        default_system: system message of rows without one.
        template: as in `Format`.
    """

    reader: MessageReader
    prompt: Sequence[str] = ("prompt",)
    chosen: Sequence[str] = ("chosen",)
    rejected: Sequence[str] = ("rejected",)
    whole: bool = False
    only_last: bool = False
    system: str = "system"
    default_system: str | None = None
    template: str | None = CONFIGURED
    cuts_long_rows: bool = False
    tools: str = "tools"

    def read(self, row: Row) -> Preference:
        chosen, rejected = self._answer(row, self.chosen), self._answer(row, self.rejected)
        if self.whole or not any(row.get(name) is not None for name in self.prompt):
            prompt, chosen, rejected = _shared_prompt(chosen, rejected, self.prompt)
        else:
            prompt = self._prompt(row)
            if self.only_last:
                chosen, rejected = chosen[-1:], rejected[-1:]
        for name, answer in (("chosen", chosen), ("rejected", rejected)):
            if not answer or answer[0].role != "assistant":
                raise RowError("no assistant turn", f"the {name} answer does not begin with an assistant's message")
        if not prompt:
            raise RowError("empty conversation", "there is no message before the answers")
        return Preference(self._with_system(prompt, row), chosen, rejected, read_tools(row.get(self.tools)))

    def _prompt(self, row: Row) -> tuple[Turn, ...]:
        if self.only_last:
            return self.reader.read(listed(row, *self.prompt))
        return self._turns(required(row, *self.prompt), "user", self.prompt)

    def _answer(self, row: Row, names: Sequence[str]) -> tuple[Turn, ...]:
        return self._turns(required(row, *names), "assistant", names)

    def _turns(self, value: Any, role: str, names: Sequence[str]) -> tuple[Turn, ...]:
        if isinstance(value, str):
            return (Turn({"role": role, "content": value}),)
        if isinstance(value, Mapping):
            return self.reader.read([value])
        if isinstance(value, list | tuple):
            return self.reader.read(value)
        raise RowError("wrong type", f"'{names[0]}' is {kind(value)}, not a string or a list of messages")

    def _with_system(self, prompt: tuple[Turn, ...], row: Row) -> tuple[Turn, ...]:
        if any(turn.role == "system" for turn in prompt):
            return prompt
        system = text(row, self.system) if row.get(self.system) else self.default_system
        return prompt if system is None else (Turn({"role": "system", "content": system}), *prompt)


def _shared_prompt(
    chosen: tuple[Turn, ...], rejected: tuple[Turn, ...], names: Sequence[str]
) -> tuple[tuple[Turn, ...], tuple[Turn, ...], tuple[Turn, ...]]:
    """Two whole conversations -> what they share, and how each ends."""
    shared = 0
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if one != other:
            break
        shared += 1
    if shared == 0:
        listed_ = " or ".join(f"'{name}'" for name in names)
        raise RowError("missing field", f"there is no {listed_}, and the two answers do not begin alike")
    return chosen[:shared], chosen[shared:], rejected[shared:]


@dataclass(frozen=True, slots=True)
class Ultra:
    """``{prompt, chosen: [user, assistant], rejected: [...]}``: the second message of each is the answer."""

    pairs: Pairs

    @property
    def template(self) -> str | None:
        return self.pairs.template

    @property
    def cuts_long_rows(self) -> bool:
        return False

    def read(self, row: Row) -> Preference:
        answers = {name: listed(row, name)[-1:] for name in ("chosen", "rejected")}
        return self.pairs.read({**row, **answers})


def plain(dataset: DatasetConfig, config: Config) -> Pairs:
    """No ``type``: ``{prompt, chosen, rejected}``; without a prompt the answers are whole conversations."""
    return _pairs(dataset, config)


def chat_template(dataset: DatasetConfig, config: Config) -> Pairs:
    """``{messages, chosen, rejected}``; of an answer that is a list the last message counts."""
    return _pairs(dataset, config, prompt=(dataset.field_messages or "messages",), only_last=True)


def argilla_chat(dataset: DatasetConfig, config: Config) -> Pairs:
    """``{chosen, rejected}``, whole conversations that differ in their end."""
    return _pairs(dataset, config, whole=True, template=_style(dataset))


def default(dataset: DatasetConfig, config: Config) -> Pairs:
    """``chatml.default``, ``llama3.default``: the prompt under any of four names."""
    return _pairs(
        dataset,
        config,
        prompt=("prompt", "input", "question", "instruction"),
        chosen=(dataset.field_chosen or "chosen", "chosen_response"),
        rejected=(dataset.field_rejected or "rejected", "rejected_response"),
        template=_style(dataset),
    )


def icr(dataset: DatasetConfig, config: Config) -> Pairs:
    """``{input, chosen, rejected}``."""
    return _pairs(dataset, config, prompt=("input",), template=_style(dataset))


def intel(dataset: DatasetConfig, config: Config) -> Pairs:
    """``{question, chosen, rejected}``."""
    return _pairs(dataset, config, prompt=("question",), template=_style(dataset))


def prompt_pairs(dataset: DatasetConfig, config: Config) -> Pairs:
    """``{prompt, chosen, rejected}``."""
    return _pairs(dataset, config, template=_style(dataset))


def ultra(dataset: DatasetConfig, config: Config) -> Ultra:
    """``{prompt, chosen: [..., answer], rejected: [..., answer]}``."""
    return Ultra(_pairs(dataset, config, template=_style(dataset)))


def _style(dataset: DatasetConfig) -> str:
    """``chatml.intel`` -> the template ``chatml``; ``chat_template.…`` -> the config's."""
    style = (dataset.type or "").partition(".")[0]
    return CONFIGURED if style in ("", "chat_template") else style


def _pairs(dataset: DatasetConfig, config: Config, **options: Any) -> Pairs:
    return Pairs(
        reader=MessageReader.of(dataset),
        **{
            "chosen": (dataset.field_chosen or "chosen",),
            "rejected": (dataset.field_rejected or "rejected",),
            "system": dataset.field_system or "system",
            "tools": dataset.field_tools or "tools",
            "default_system": config.template.default_system_message,
            **options,
        },
    )
