"""Preference rows: a prompt, an answer that was chosen and one that was rejected; for ``rl: dpo``, ipo, simpo and orpo,
and for reward models.

A prompt or an answer may be a string, a message or a list of messages. A string is what the user, or the assistant,
said: preference rows are conversations here, rendered by the chat template like any other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whet.config.config import Config
from whet.config.names import TYPES
from whet.config.schema.data import DatasetConfig
from whet.config.tasks import task_of
from whet.core.errors import RowError
from whet.core.types import Preference, PreferenceText, Turn
from whet.data.formats.base import CONFIGURED, Row, kind, listed, required, text, type_name
from whet.data.formats.chat import has_system, read_tools
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
        prompt = with_system(prompt, row, self.system, self.default_system)
        return Preference(prompt, chosen, rejected, read_tools(row.get(self.tools)))

    def _prompt(self, row: Row) -> tuple[Turn, ...]:
        if self.only_last:
            return self.reader.read(listed(row, *self.prompt))
        return turns_of(self.reader, row, "user", self.prompt)

    def _answer(self, row: Row, names: Sequence[str]) -> tuple[Turn, ...]:
        return turns_of(self.reader, row, "assistant", names)


def turns_of(reader: MessageReader, row: Row, role: str, names: Sequence[str]) -> tuple[Turn, ...]:
    """A field that is a text, which ``role`` said, or a message, or a list of messages."""
    value = required(row, *names)
    if isinstance(value, str):
        return (Turn({"role": role, "content": value}),)
    if isinstance(value, Mapping):
        return reader.read([value])
    if isinstance(value, list | tuple):
        return reader.read(value)
    raise RowError("wrong type", f"'{names[0]}' is {kind(value)}, not a string or a list of messages")


def with_system(prompt: tuple[Turn, ...], row: Row, column: str, default: str | None) -> tuple[Turn, ...]:
    """The prompt, with the system turn that the row or the config gives where it has none."""
    if has_system(prompt):
        return prompt
    system = text(row, column) if row.get(column) else default
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


@dataclass(frozen=True, slots=True)
class Nectar:
    """``{prompt, answers: [{answer, rank}, ...]}``: the best of the ranked answers against the worst.

    Rank 1 is the best. (Axolotl takes the worst for the chosen one.) A prompt that is written as ``Human: ...
    Assistant: ...`` is read as the conversation it is.
    """

    pairs: Pairs

    @property
    def template(self) -> str | None:
        return self.pairs.template

    @property
    def cuts_long_rows(self) -> bool:
        return False

    def read(self, row: Row) -> Preference:
        ranked = sorted((self._ranked(number, answer) for number, answer in enumerate(listed(row, "answers"))))
        if len(ranked) < 2 or ranked[0][0] == ranked[-1][0]:
            raise RowError("no preference", f"{len(ranked)} answers, and none is better than another")
        prompt = _named_speakers(text(row, "prompt"))
        return self.pairs.read({**row, "prompt": prompt, "chosen": ranked[0][1], "rejected": ranked[-1][1]})

    @staticmethod
    def _ranked(number: int, answer: Any) -> tuple[float, str]:
        if not isinstance(answer, Mapping):
            raise RowError("wrong type", f"answer {number} is {kind(answer)}, not an object")
        rank = required(answer, "rank")
        if isinstance(rank, bool) or not isinstance(rank, int | float):
            raise RowError("wrong type", f"the rank of answer {number} is {kind(rank)}, not a number")
        return rank, text(answer, "answer")


_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]*")


def _named_speakers(prompt: str) -> str | list[dict[str, str]]:
    """``Human: Q Assistant:`` as messages; a prompt that does not begin and end so as it is."""
    stripped = prompt.strip()
    if not stripped.startswith("Human:") or not stripped.endswith("Assistant:"):
        return prompt
    _, *pieces = _SPEAKER.split(stripped)
    roles = {"Human": "user", "Assistant": "assistant"}
    said = zip(pieces[::2], pieces[1::2], strict=True)
    return [{"role": roles[name], "content": words.strip()} for name, words in said if words.strip()]


@dataclass(frozen=True, slots=True)
class PassThrough:
    """``{prompt, chosen, rejected}``: texts that hold their markup already; no chat template touches them."""

    chosen: str = "chosen"
    rejected: str = "rejected"
    template: str | None = None
    cuts_long_rows: bool = False

    def read(self, row: Row) -> PreferenceText:
        return PreferenceText(text(row, "prompt"), text(row, self.chosen), text(row, self.rejected))


def nectar(dataset: DatasetConfig, config: Config) -> Nectar:
    """``zephyr.nectar``, rendered with the config's template."""
    return Nectar(_pairs(dataset, config, chosen=("chosen",), rejected=("rejected",)))


def pass_through(dataset: DatasetConfig, config: Config) -> PassThrough:
    """``passthrough.default``."""
    return PassThrough(dataset.field_chosen or "chosen", dataset.field_rejected or "rejected")


def bradley_terry(dataset: DatasetConfig, config: Config) -> Pairs:
    """``{system?, input, chosen, rejected}``; ``bradley_terry.llama3`` brings its template."""
    style = type_name(dataset, config).rpartition(".")[2]
    return _pairs(dataset, config, prompt=("input",), template="llama3" if style == "llama3" else CONFIGURED)


def argilla(dataset: DatasetConfig, config: Config) -> Pairs:
    """``{instruction, chosen_response, rejected_response}``, or the answers as ``chosen`` and ``rejected``."""
    return _pairs(
        dataset,
        config,
        prompt=("instruction",),
        chosen=(dataset.field_chosen or "chosen_response", "chosen"),
        rejected=(dataset.field_rejected or "rejected_response", "rejected"),
        template=style_of(dataset, config),
    )


def plain(dataset: DatasetConfig, config: Config) -> Pairs:
    """No ``type``: ``{prompt, chosen, rejected}``; without a prompt the answers are whole conversations."""
    return _pairs(dataset, config)


def chat_template(dataset: DatasetConfig, config: Config) -> Pairs:
    """``{messages, chosen, rejected}``; of an answer that is a list the last message counts."""
    return _pairs(dataset, config, prompt=(dataset.field_messages or "messages",), only_last=True)


def argilla_chat(dataset: DatasetConfig, config: Config) -> Pairs:
    """``{chosen, rejected}``, whole conversations that differ in their end."""
    return _pairs(dataset, config, whole=True, template=style_of(dataset, config))


def default(dataset: DatasetConfig, config: Config) -> Pairs:
    """``chatml.default``, ``llama3.default``: the prompt under any of four names."""
    return _pairs(
        dataset,
        config,
        prompt=("prompt", "input", "question", "instruction"),
        chosen=(dataset.field_chosen or "chosen", "chosen_response"),
        rejected=(dataset.field_rejected or "rejected", "rejected_response"),
        template=style_of(dataset, config),
    )


def icr(dataset: DatasetConfig, config: Config) -> Pairs:
    """``{input, chosen, rejected}``."""
    return _pairs(dataset, config, prompt=("input",), template=style_of(dataset, config))


def intel(dataset: DatasetConfig, config: Config) -> Pairs:
    """``{question, chosen, rejected}``."""
    return _pairs(dataset, config, prompt=("question",), template=style_of(dataset, config))


def prompt_pairs(dataset: DatasetConfig, config: Config) -> Pairs:
    """``{prompt, chosen, rejected}``."""
    return _pairs(dataset, config, template=style_of(dataset, config))


def ultra(dataset: DatasetConfig, config: Config) -> Ultra:
    """``{prompt, chosen: [..., answer], rejected: [..., answer]}``."""
    return Ultra(_pairs(dataset, config, template=style_of(dataset, config)))


def style_of(dataset: DatasetConfig, config: Config) -> str:
    """``chatml.intel`` -> the template ``chatml``; ``chat_template.…`` -> the config's."""
    name = type_name(dataset, config)
    style = name.partition(".")[0]
    return style if style in ("chatml", "llama3") and name in TYPES[task_of(config)] else CONFIGURED


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
