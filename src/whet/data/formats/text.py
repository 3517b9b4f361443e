"""Raw text: ``completion`` and ``pretrain`` (a whole text is trained), ``input_output`` (segments say what is) and
``prompt_completion`` (the second of two texts)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from whet.config.config import Config
from whet.config.schema.data import DatasetConfig
from whet.core.errors import RowError
from whet.core.types import Document, Segment
from whet.data.formats.base import Row, kind, listed, text, trains_on_inputs


@dataclass(frozen=True, slots=True)
class Completion:
    """A text, trained from its first word to the EOS that is put after it; a long one becomes several samples."""

    field: str = "text"
    template: str | None = None
    cuts_long_rows: bool = True

    def read(self, row: Row) -> Document:
        content = text(row, self.field)
        if not content:
            raise RowError("empty text", f"'{self.field}' is an empty string")
        return Document((Segment(content, train=True),), add_bos=True, add_eos=True)


@dataclass(frozen=True, slots=True)
class InputOutput:
    """Segments of text, each with a label; nothing is added, so the text holds every special token it needs."""

    field: str = "segments"
    template: str | None = None
    cuts_long_rows: bool = False

    def read(self, row: Row) -> Document:
        return Document(tuple(self._segment(n, segment) for n, segment in enumerate(listed(row, self.field))))

    def _segment(self, number: int, segment: Any) -> Segment:
        if not isinstance(segment, Mapping):
            raise RowError("wrong type", f"segment {number} is {kind(segment)}, not an object")
        label, content = segment.get("label"), segment.get("text")
        if not isinstance(label, bool):
            raise RowError("wrong type", f"the label of segment {number} is {kind(label)}, not true or false")
        if not isinstance(content, str):
            raise RowError("wrong type", f"the text of segment {number} is {kind(content)}, not a string")
        return Segment(content, label)


@dataclass(frozen=True, slots=True)
class PromptCompletion:
    """``{prompt, completion}``, raw texts; the completion and the EOS after it are trained."""

    prompt: tuple[str, ...] = ("prompt",)
    completion: tuple[str, ...] = ("completion",)
    train_prompt: bool = False
    template: str | None = None
    cuts_long_rows: bool = False

    def read(self, row: Row) -> Document:
        prompt, answer = text(row, *self.prompt), text(row, *self.completion)
        return Document((Segment(prompt, self.train_prompt), Segment(answer, train=True)), add_bos=True, add_eos=True)


def completion(dataset: DatasetConfig, config: Config) -> Completion:
    """``{text: ...}``; ``field``, or ``text_column``, names another column. ``pretrain`` is the same."""
    return Completion(dataset.field or dataset.text_column or "text")


def input_output(dataset: DatasetConfig, config: Config) -> InputOutput:
    """``{segments: [{label: bool, text: str}]}``."""
    return InputOutput()


def prompt_completion(dataset: DatasetConfig, config: Config) -> PromptCompletion:
    """The prompt is trained too under ``train_on_inputs``."""
    return PromptCompletion(train_prompt=trains_on_inputs(dataset, config))


def strided_structured(dataset: DatasetConfig, config: Config) -> PromptCompletion:
    """``ebft_strided_structured.transform``: a prompt and an answer under any of their usual names."""
    return PromptCompletion(("input", "prompt", "question"), ("output", "completion", "answer"))
