"""Unpaired rows: a prompt, one answer and whether it is wanted; for ``rl: kto``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from whet.config.config import Config
from whet.config.schema.data import DatasetConfig
from whet.core.errors import RowError
from whet.core.types import Unpaired, UnpairedText
from whet.data.formats.base import CONFIGURED, Row, flag, text
from whet.data.formats.chat import read_tools
from whet.data.formats.messages import MessageReader
from whet.data.formats.preference import style_of, turns_of, with_system


@dataclass(frozen=True, slots=True)
class Judged:
    """Rows with a prompt, an answer and a label; prompt and answer as in `preference.Pairs`.

    Attributes:
        reader: of messages.
        prompt: fields of the prompt, the first that is there counts; empty: the answer is a whole conversation.
        completion: field of the answer. A whole conversation where there is no prompt; its last turn is the answer.
        label: field that says whether the answer is wanted.
        system: field of a system text.
        default_system: system message of rows without one.
        tools: field of the tools.
        template: as in `Format`.
    """

    reader: MessageReader
    prompt: Sequence[str] = ("prompt",)
    completion: str = "completion"
    label: str = "label"
    system: str = "system"
    default_system: str | None = None
    tools: str = "tools"
    template: str | None = CONFIGURED
    cuts_long_rows: bool = False

    def read(self, row: Row) -> Unpaired:
        answer = turns_of(self.reader, row, "assistant", (self.completion,))
        if any(row.get(name) is not None for name in self.prompt):
            prompt = turns_of(self.reader, row, "user", self.prompt)
        elif len(answer) > 1:
            prompt, answer = answer[:-1], answer[-1:]
        else:
            wanted = " or ".join(f"'{name}'" for name in self.prompt)
            missing = f"there is no {wanted}, and" if wanted else f"'{self.completion}':"
            raise RowError("missing field", f"{missing} the answer is no conversation with a prompt in it")
        if not answer or answer[0].role != "assistant":
            raise RowError("no assistant turn", "the answer does not begin with an assistant's message")
        if not prompt:
            raise RowError("empty conversation", "there is no message before the answer")
        prompt = with_system(prompt, row, self.system, self.default_system)
        return Unpaired(prompt, answer, flag(row, self.label), read_tools(row.get(self.tools)))


@dataclass(frozen=True, slots=True)
class PassThrough:
    """``{prompt, completion, label}``: texts that hold their markup already; no chat template touches them."""

    template: str | None = None
    cuts_long_rows: bool = False

    def read(self, row: Row) -> UnpairedText:
        return UnpairedText(text(row, "prompt"), text(row, "completion"), flag(row, "label"))


def plain(dataset: DatasetConfig, config: Config) -> Judged:
    """No ``type``, ``prompt_pairs`` and ``ultra``: ``{prompt, completion, label}``."""
    return _judged(dataset, config)


def argilla(dataset: DatasetConfig, config: Config) -> Judged:
    """``{instruction, completion, label}``."""
    return _judged(dataset, config, prompt=("instruction",))


def intel(dataset: DatasetConfig, config: Config) -> Judged:
    """``{question, completion, label}``."""
    return _judged(dataset, config, prompt=("question",))


def argilla_chat(dataset: DatasetConfig, config: Config) -> Judged:
    """``{completion: [..., user, assistant], label}``."""
    return _judged(dataset, config, prompt=())


def pass_through(dataset: DatasetConfig, config: Config) -> PassThrough:
    """``passthrough.default``."""
    return PassThrough()


def _judged(dataset: DatasetConfig, config: Config, **options: Any) -> Judged:
    return Judged(
        reader=MessageReader.of(dataset),
        system=dataset.field_system or "system",
        tools=dataset.field_tools or "tools",
        default_system=config.template.default_system_message,
        template=style_of(dataset, config),
        **options,
    )
