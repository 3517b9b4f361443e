"""Raw text: ``type: completion`` (a whole text is trained) and ``type: input_output`` (segments say what is)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from whet.config.config import Config
from whet.config.schema.data import DatasetConfig
from whet.core.errors import RowError
from whet.core.types import Document, Segment
from whet.data.formats.base import Row, kind, listed, text


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


def completion(dataset: DatasetConfig, config: Config) -> Completion:
    """``{text: ...}``; ``field`` names another column."""
    return Completion(dataset.field or "text")


def input_output(dataset: DatasetConfig, config: Config) -> InputOutput:
    """``{segments: [{label: bool, text: str}]}``."""
    return InputOutput()
