"""``type: metharme``: a prompt that holds its own tokens, and what is generated after it."""

from __future__ import annotations

from dataclasses import dataclass

from whet.config.config import Config
from whet.config.schema.data import DatasetConfig
from whet.core.types import Document, Segment
from whet.data.formats.base import Row, text, trains_on_inputs


@dataclass(frozen=True, slots=True)
class Metharme:
    """``{prompt, generation}``; the generation and the EOS after it are trained."""

    train_prompt: bool = False
    template: str | None = None
    cuts_long_rows: bool = False

    def read(self, row: Row) -> Document:
        prompt, generation = text(row, "prompt"), text(row, "generation")
        segments = (Segment(prompt, self.train_prompt), Segment(generation, train=True))
        return Document(segments, add_bos=True, add_eos=True)


def metharme(dataset: DatasetConfig, config: Config) -> Metharme:
    """The prompt is trained too under ``train_on_inputs``."""
    return Metharme(train_prompt=trains_on_inputs(dataset, config))
