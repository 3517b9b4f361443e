"""Prompts that the model answers while it trains, with or without a reference answer: ``rl: grpo``, gdpo and ebft.

The row's other columns come along as they are, for reward functions read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from whet.config.config import Config
from whet.config.schema.data import DatasetConfig
from whet.core.errors import RowError
from whet.core.types import Document, Prompt, Several, Turn
from whet.data.formats.base import CONFIGURED, Format, Row, listed, text, type_name
from whet.data.formats.chat import read_tools
from whet.data.formats.messages import MessageReader, split_thought
from whet.data.formats.preference import turns_of, with_system
from whet.data.formats.text import PromptCompletion


@dataclass(frozen=True, slots=True)
class Prompts:
    """Rows with a prompt, as a text that the user said, a message or a list of messages.

    Attributes:
        reader: of messages.
        prompt: fields of the prompt, the first that is there counts.
        answer: fields of the reference answer, likewise; empty: there is none.
        without_thought: of an answer that begins with a thought, only what comes after it is the reference.
        system, tools: fields.
        default_system: system message of rows without one.
        template: as in `Format`.
    """

    reader: MessageReader
    prompt: Sequence[str] = ("prompt",)
    answer: Sequence[str] = ()
    without_thought: bool = False
    system: str = "system"
    tools: str = "tools"
    default_system: str | None = None
    template: str | None = CONFIGURED
    cuts_long_rows: bool = False

    def read(self, row: Row) -> Prompt:
        turns = turns_of(self.reader, row, "user", self.prompt)
        if not turns:
            raise RowError("empty conversation", f"'{self.prompt[0]}' is an empty list")
        return Prompt(
            turns=with_system(turns, row, self.system, self.default_system),
            tools=read_tools(row.get(self.tools)),
            answer=self._answer(row),
            columns=_others(row, (*self.prompt, *self.answer)),
        )

    def _answer(self, row: Row) -> str | None:
        if not self.answer:
            return None
        answer = text(row, *self.answer)
        return _without_thought(answer) if self.without_thought else answer


def _without_thought(answer: str) -> str:
    thought = split_thought(answer)
    return answer if thought is None else thought["answer"].strip()


def _others(row: Row, used: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in used}


@dataclass(frozen=True, slots=True)
class PassThrough:
    """``{prompt: text}``, which holds its markup already; no chat template touches it."""

    answer: Sequence[str] = ()
    template: str | None = None
    cuts_long_rows: bool = False

    def read(self, row: Row) -> Prompt:
        answer = text(row, *self.answer) if self.answer else None
        return Prompt(text=text(row, "prompt"), answer=answer, columns=_others(row, ("prompt", *self.answer)))


@dataclass(frozen=True, slots=True)
class Turns:
    """Conversations, an assistant's turn of which is the reference answer and what comes before it the prompt.

    Attributes:
        prompts: reads what the columns say beside the messages.
        messages: column of the conversation.
        which: "first" turn, with the messages after it in the column ``remaining_turns``; the "last"; or "all", each
            a sample of its own.
    """

    prompts: Prompts
    messages: str = "messages"
    which: Literal["first", "last", "all"] = "first"

    @property
    def template(self) -> str | None:
        return self.prompts.template

    @property
    def cuts_long_rows(self) -> bool:
        return False

    def read(self, row: Row) -> Prompt | Several:
        messages = listed(row, self.messages)
        turns = self.prompts.reader.read(messages)
        answers = [at for at, turn in enumerate(turns) if turn.role == "assistant" and at]
        if not answers:
            raise RowError("no assistant turn", f"'{self.messages}' holds no assistant's message after another")
        if self.which == "all":
            return Several(tuple(self._sample(row, turns, at) for at in answers))
        if self.which == "last":
            return self._sample(row, turns, answers[-1])
        return self._sample(row, turns, answers[0], {"remaining_turns": messages[answers[0] + 1 :]})

    def _sample(self, row: Row, turns: tuple[Turn, ...], at: int, more: Row | None = None) -> Prompt:
        prompts, answer = self.prompts, turns[at].message.get("content")
        if not isinstance(answer, str):
            raise RowError("no text to learn", f"message {at} is an assistant's without content")
        return Prompt(
            turns=with_system(turns[:at], row, prompts.system, prompts.default_system),
            tools=read_tools(row.get(prompts.tools)),
            answer=answer,
            columns={**_others(row, (self.messages,)), **(more or {})},
        )


@dataclass(frozen=True, slots=True)
class AnswerOnly:
    """As ``{prompt, answer}`` of raw text, without the thought at the beginning of the answer."""

    answers: Sequence[str]
    whole: PromptCompletion
    template: str | None = None
    cuts_long_rows: bool = False

    def read(self, row: Row) -> Document:
        answer = _without_thought(text(row, *self.answers))
        return self.whole.read({**row, self.answers[0]: answer})


_QUESTIONS = ("input", "prompt", "question", "problem")
_ANSWERS = ("output", "completion", "answer", "solution", "generation")


def prompt(dataset: DatasetConfig, config: Config) -> Prompts:
    """No ``type`` under ``rl: grpo``: ``{prompt, ...}``."""
    return _prompts(dataset, config)


def pass_through(dataset: DatasetConfig, config: Config) -> PassThrough:
    """``passthrough.default`` under ``rl: grpo``."""
    return PassThrough()


def prompt_and_answer(dataset: DatasetConfig, config: Config) -> Prompts:
    """No ``type`` under ``rl: ebft``: ``{prompt, ground_truth, ...}``."""
    return _prompts(dataset, config, answer=("ground_truth",))


def text_and_answer(dataset: DatasetConfig, config: Config) -> PassThrough:
    """``passthrough.default`` under ``rl: ebft``."""
    return PassThrough(("ground_truth",))


def opencode(dataset: DatasetConfig, config: Config) -> Prompts:
    """``ebft_opencode.transform``: ``{input, output}``."""
    return _prompts(dataset, config, prompt=("input",), answer=("output",))


def multiturn(dataset: DatasetConfig, config: Config) -> Turns:
    """``ebft_chat_multiturn.transform``, ``.transform_last_turn``, ``.transform_all_turns``: ``{messages}``."""
    kind = type_name(dataset, config).rpartition(".")[2]
    which: Literal["first", "last", "all"] = (
        "last" if kind == "transform_last_turn" else "all" if kind == "transform_all_turns" else "first"
    )
    return Turns(_prompts(dataset, config), dataset.field_messages or "messages", which)


def reasoning(dataset: DatasetConfig, config: Config) -> Format:
    """``ebft_reasoning.*``: a question, and an answer that begins with a thought; strided: as one raw text."""
    kind = type_name(dataset, config).rpartition(".")[2]
    answer_only = kind.endswith("answer_only")
    if not kind.startswith("transform_strided"):
        return _prompts(dataset, config, prompt=_QUESTIONS, answer=_ANSWERS, without_thought=answer_only)
    whole = PromptCompletion(_QUESTIONS, _ANSWERS)
    return AnswerOnly(_ANSWERS, whole) if answer_only else whole


def _prompts(dataset: DatasetConfig, config: Config, **options: Any) -> Prompts:
    return Prompts(
        reader=MessageReader.of(dataset),
        system=dataset.field_system or "system",
        tools=dataset.field_tools or "tools",
        default_system=config.template.default_system_message,
        **options,
    )
