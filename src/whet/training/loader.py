"""One rank's micro-batches as a PyTorch DataLoader: the order says which samples, the layout how they are tensors."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import TrainingArguments

from whet.data.batch import Batch, TokenSource
from whet.data.order import Order
from whet.data.store import Split
from whet.training.steps import count_tokens

Rows = Sequence[npt.ArrayLike]
Collate = Callable[[TokenSource, Rows], Batch]


class Sources(Protocol):
    """Which datasets samples come from; `whet.data.store.Split` says it."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def source(self) -> npt.NDArray[np.int16]:
        """int16[N]: index into ``names`` of each sample."""
        ...


class TrainingSamples(Protocol):
    """What the trainer asks of its samples: prepared (`Samples`) or read as it trains (`StreamedSamples`)."""

    @property
    def split(self) -> Sources: ...

    def opened(self, checkpoint: Path | None) -> AbstractContextManager[None]:
        """Within it they can be trained on, from the beginning or from where a checkpoint stands."""
        ...

    def loader(self, args: TrainingArguments, accumulation: int = 1) -> DataLoader[Any]:
        """This rank's micro-batches."""
        ...

    def num_tokens(self, batch: Batch) -> int:
        """Tokens of a batch's samples."""
        ...

    def tokens_until(self, step: int, args: TrainingArguments) -> tuple[int, int]:
        """Tokens and targets of the run's first ``step`` steps; it begins, or goes on, after them."""
        ...

    def place(self, number: int) -> str:
        """The row of a sample of the current step, by its number in ``example_ids``."""
        ...

    def places_of_step(self, step: int, args: TrainingArguments) -> list[str]:
        """The rows of the current step (from 1), over all ranks."""
        ...

    def summary(self) -> Mapping[str, float]:
        """Figures for the last line of the metrics."""
        ...


def in_order(samples: Dataset[Any], order: Order, args: TrainingArguments, accumulation: int) -> MicroBatchLoader:
    """This rank's micro-batches of ``samples``, in the order that the run computes."""
    return MicroBatchLoader(
        samples,
        EpochBatches(order, args.process_index, args.world_size, accumulation),
        num_workers=args.dataloader_num_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
    )


@dataclass(frozen=True, eq=False)
class Samples(Dataset[Any]):
    """Samples, the order in which they are seen, and how rows of them become a batch.

    Attributes:
        collate: `whet.data.batch.flatten` or `pad` with its options bound; must pickle when workers are used.
    """

    split: Split
    order: Order
    collate: Collate

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, rows: Rows) -> Batch:
        """PyTorch's hook for fetching a batch at once: ``rows`` is what the batch sampler yielded."""
        return self.collate(self.split, rows)

    def opened(self, checkpoint: Path | None) -> AbstractContextManager[None]:
        """Nothing to open: the order is computed from the step."""
        return nullcontext()

    def loader(self, args: TrainingArguments, accumulation: int = 1) -> MicroBatchLoader:
        """This rank's micro-batches; not prepared by accelerate, which would shard them again."""
        return in_order(self, self.order, args, accumulation)

    def num_tokens(self, batch: Batch) -> int:
        """Tokens of a batch's samples."""
        return int(self.order.lengths[batch["example_ids"].numpy()].sum())

    def tokens_until(self, step: int, args: TrainingArguments) -> tuple[int, int]:
        """Tokens and targets of the run's first ``step`` steps."""
        return count_tokens(self.order, self.split.supervised, step, args.gradient_accumulation_steps, args.world_size)

    def place(self, number: int) -> str:
        """The row of a sample."""
        return self.split.place(number)

    def places_of_step(self, step: int, args: TrainingArguments) -> list[str]:
        """The rows of optimiser step ``step`` (from 1), over all ranks."""
        return [self.split.place(number) for number in samples_of_step(self.order, step, args)]

    def summary(self) -> Mapping[str, float]:
        """Nothing that the plan has not said."""
        return {}


def samples_of_step(order: Order, step: int, args: TrainingArguments) -> list[int]:
    """The samples of optimiser step ``step`` (from 1), over all ranks."""
    accumulation = args.gradient_accumulation_steps
    epoch, step_of_epoch = divmod(step - 1, order.steps_per_epoch(accumulation, args.world_size))
    numbers: list[int] = order.step_samples(epoch, step_of_epoch, accumulation, args.world_size).tolist()
    return numbers


class EpochBatches:
    """A batch sampler: this rank's micro-batches of the epoch that was set last.

    Args:
        rank, world_size: which of the processes asks.
        accumulation: micro-batches of an optimiser step.
    """

    def __init__(self, order: Order, rank: int = 0, world_size: int = 1, accumulation: int = 1) -> None:
        self.order, self.rank, self.world_size, self.accumulation = order, rank, world_size, accumulation
        self.epoch = 0
        self._passed_over: tuple[int, int] | None = None

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def pass_over(self, epoch: int, num_batches: int) -> None:
        """Say that nobody will look at the first micro-batches of an epoch: a resumed run begins behind them.

        accelerate asks for all of them and throws them away. They then cost nothing: they are empty.
        """
        self._passed_over = epoch, num_batches

    def __len__(self) -> int:
        return self.order.num_micro_batches(self.world_size)

    def __iter__(self) -> Iterator[Rows]:
        epoch, passed_over = self._passed_over or (-1, 0)
        begin = passed_over if epoch == self.epoch else 0
        batches = self.order.micro_batches(self.epoch, self.rank, self.world_size, self.accumulation)
        return chain(repeat((), begin), map(batches.__getitem__, range(begin, len(batches))))


class MicroBatchLoader(DataLoader[Any]):
    """A DataLoader whose epoch can be set, which transformers does before each one.

    It draws from a generator of its own, so that making an iterator leaves the global random state alone.
    """

    def __init__(
        self,
        samples: Dataset[Any],
        batches: EpochBatches,
        *,
        num_workers: int = 0,
        prefetch_factor: int | None = None,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(
            samples,
            batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of index lists; the stub asks for Sampler
            collate_fn=as_fetched,  # type: ignore[arg-type]  # it gets a batch, not a list, by `__getitems__`
            num_workers=num_workers,
            prefetch_factor=prefetch_factor if num_workers else None,
            pin_memory=pin_memory,
            generator=torch.Generator(),
            worker_init_fn=leave_signals_to_training,
        )
        self.batches = batches

    def set_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)


def leave_signals_to_training(worker: int) -> None:
    """In a process that loads rows: the training process answers Ctrl-C, and may end this one.

    It is a copy of that process, with its handlers: each would say that it stops after this step,
    and none would end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, signal.SIG_DFL)


def as_fetched(batch: Batch) -> Batch:
    """`Samples.__getitems__` has collated already."""
    return batch
