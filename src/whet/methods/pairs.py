"""Pairs of answers as a rank's micro-batches, in the order that the run computes; and figures of ranks that hold
different numbers of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import TrainingArguments

from whet.data.order import Order
from whet.training.loader import MicroBatchLoader, Rows, in_order

PAIRS = "example_ids"
"""Entry of a batch: int64[n], the numbers of its pairs; none of them where a rank is left without one."""
NUM_TOKENS = "num_tokens"
"""The figure of TRL's that is no mean: tokens of the run so far."""


@dataclass(frozen=True, eq=False)
class PairSamples(Dataset[Any]):
    """The rows of a data set by their numbers, as batches.

    A rank that is left without a pair at the end of an epoch gets the first one of the set, which does not count
    (`PAIRS` is empty): all ranks take part in a step. In that epoch the first one, too, is trained somewhere.

    Attributes:
        rows: a row by its number.
        collate: makes a batch of some rows.
    """

    rows: Sequence[Mapping[str, Any]]
    order: Order
    collate: Callable[[list[Mapping[str, Any]]], dict[str, Any]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, rows: Rows) -> dict[str, Any]:
        """PyTorch's hook for fetching a batch at once."""
        numbers = np.concatenate([np.zeros(0, np.int64), *map(np.asarray, rows)])
        batch = self.collate([self.rows[number] for number in numbers.tolist() or [0]])
        return {**batch, PAIRS: torch.from_numpy(numbers)}

    def loader(self, args: TrainingArguments) -> MicroBatchLoader:
        """This rank's micro-batches; not prepared by accelerate, which would repeat pairs to give ranks as many."""
        return in_order(self, self.order, args, args.gradient_accumulation_steps)


def count_of(batches: Sequence[Mapping[str, Any]], entries: Sequence[str]) -> torch.Tensor:
    """int64[1 + len(entries)]: pairs of some batches, and the sum of each entry over those that have any."""
    counts = torch.zeros(1 + len(entries), dtype=torch.int64)
    for batch in batches:
        if num_pairs := batch[PAIRS].numel():
            counts += torch.stack([torch.tensor(num_pairs), *(batch[name].sum().cpu() for name in entries)])
    return counts


@dataclass
class Figures:
    """Means over micro-batches by name, each with as many values as there are pairs counts.

    Attributes:
        values: of each micro-batch, by name.
        num_pairs: of each micro-batch; one without any has no part in a mean.
    """

    values: Mapping[str, Sequence[float]]
    num_pairs: Sequence[int]

    def means(self, over_ranks: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """The mean of each over the pairs of all ranks.

        Args:
            over_ranks: sums a float64 tensor over the ranks, which all have the same names.
        """
        names = sorted(self.values)
        sums = [float(sum(self.num_pairs))]
        for name in names:
            pairs = zip(self.values[name], self.num_pairs, strict=True)
            sums.append(sum(value * count for value, count in pairs if count))
        total, *weighted = over_ranks(torch.tensor(sums, dtype=torch.float64)).tolist()
        return {name: value / total for name, value in zip(names, weighted, strict=True)} if total else {}

    def shared_out(self, num_ranks: int) -> list[Figures]:
        """All of them to the first of so many ranks, and to the others the same names without a part in a mean.

        Right after a line of the log there are none, for any of them.
        """
        none = Figures({name: [0.0] for name in self.values}, [0] if self.num_pairs else [])
        return [self, *[none] * (num_ranks - 1)]

    @classmethod
    def joined(cls, parts: Sequence[Figures]) -> Figures:
        """The figures of several ranks in one."""
        names = sorted({name for part in parts for name in part.values})
        values = {name: [value for part in parts for value in part.values[name]] for name in names}
        return cls(values, [count for part in parts for count in part.num_pairs])

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Figures:
        """What `as_json` gave; an older checkpoint has no counts, and every value in it is of as many pairs."""
        values = {name: each for name, each in value["figures"].items() if name != NUM_TOKENS}
        return cls(values, value.get("pairs", [1] * max(map(len, values.values()), default=0)))

    def as_json(self) -> dict[str, Any]:
        return {"figures": {name: list(each) for name, each in self.values.items()}, "pairs": list(self.num_pairs)}
