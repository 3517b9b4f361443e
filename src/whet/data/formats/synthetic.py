"""``type: _synthetic``: random tokens, every one of them trained, for measuring speed without data.

A row is only a number, ``{"synthetic": 7}``; its tokens follow from the seed and that number, so rows need no file, and
every process draws the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from whet.config.config import Config
from whet.config.schema.data import DatasetConfig
from whet.core.errors import ConfigError, Problem, RowError
from whet.core.types import Tokens
from whet.data.formats.base import Row, required

DEFAULT_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Tokens drawn evenly from ``low`` to below ``high``.

    Attributes:
        length: tokens of a row.
        low, high: bounds of the ids; None is the size of the vocabulary, which `bound` fills in.
        seed: of the draw.
        where: place of the dataset in the config, for errors.
    """

    length: int
    low: int
    high: int | None
    seed: int
    where: str = ""
    template: str | None = None
    cuts_long_rows: bool = False

    def bound(self, tokenizer: Any) -> Synthetic:
        """With the size of the tokenizer's vocabulary where the config has no ``max_input_id``."""
        high = tokenizer.vocab_size if self.high is None else self.high
        if high <= self.low:
            found = f"min_input_id {self.low} is not below the size of the vocabulary, {high}"
            raise ConfigError(Problem(self.where, found, "lower min_input_id", "datasets"))
        return replace(self, high=high)

    def read(self, row: Row) -> Tokens:
        assert self.high is not None, "bound() comes before read()"
        number = required(row, "synthetic")
        if not isinstance(number, int) or number < 0:
            raise RowError("wrong type", "'synthetic' is not the number of a row")
        draw = np.random.default_rng((self.seed, number))
        ids = draw.integers(self.low, self.high, self.length).tolist()
        return Tokens(ids, [True] * len(ids))


def synthetic(dataset: DatasetConfig, config: Config) -> Synthetic:
    """``length`` rows of ``sequence_length`` tokens."""
    return Synthetic(
        length=dataset.sequence_length or config.data.sequence_len,
        low=100 if dataset.min_input_id is None else dataset.min_input_id,
        high=dataset.max_input_id,
        seed=config.loop.seed if dataset.seed is None else dataset.seed,
        where=config.where("datasets"),
    )
