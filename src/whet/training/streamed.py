"""Training on a stream: rows that come as the run asks for them, and where it stands in them for its checkpoints."""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import TrainingArguments

from whet.core.errors import ArtefactError, Problem
from whet.core.foreign import as_whet_writes
from whet.data.batch import Batch, Sample
from whet.data.feed import StreamSample
from whet.data.streaming import StreamMark, StreamSetup
from whet.data.windows import LookAhead, StreamRow, WindowMark
from whet.training.dataset_losses import SOURCES
from whet.training.evaluation import metric_names
from whet.training.loader import Collate, as_fetched

STATE = "whet-stream.json"
"""File of a checkpoint: where the run stands in its stream."""
NUM_TOKENS = "num_tokens"
"""Entry of a batch: tokens of its samples."""


@dataclass(frozen=True)
class DatasetReport:
    """What a run has read of a dataset, and trained on.

    Attributes:
        name: of the dataset.
        rows_read, rows_dropped: of the windows that were begun; rows that were read again count again.
        dropped: reason -> rows dropped for it.
        epochs: times that it was read to its end.
        samples, tokens, supervised_tokens: trained on.
        asked: share that the config asks for; None without weights.
        realised: share of the tokens (samples, with `mixing_by: samples`) trained on.
    """

    name: str
    rows_read: int
    rows_dropped: int
    dropped: Mapping[str, int]
    epochs: int
    samples: int
    tokens: int
    supervised_tokens: int
    asked: float | None
    realised: float

    def __str__(self) -> str:
        """``chat: 1,200 rows read, 3 dropped (3 nothing to train); 61.2% of the tokens (60.0% asked)``."""
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items())
        dropped = f", {self.rows_dropped:,} dropped ({reasons})" if self.rows_dropped else ""
        again = f", {self.epochs} times to its end" if self.epochs > 1 else ", once to its end" if self.epochs else ""
        asked = "" if self.asked is None else f" ({self.asked:.1%} asked)"
        return f"{self.name}: {self.rows_read:,} rows read{again}{dropped}; {self.realised:.1%} of the run{asked}"


@dataclass(frozen=True)
class Datasets:
    """The datasets of a stream, numbered as its samples number them: what `Split` says of its own."""

    names: tuple[str, ...]

    @property
    def source(self) -> npt.NDArray[np.int16]:
        return np.arange(len(self.names), dtype=np.int16)


class StreamedSamples(Dataset[Any]):
    """Rows of a stream as this rank's micro-batches; as `whet.training.loader.Samples` for the trainer.

    Every rank reads the same rows; of each turn, one row for every rank, it takes its own. It can be trained on only
    within `opened`.

    Args:
        collate: `whet.data.batch.flatten` or `pad` with its options bound.
        where: place in the YAML of what a checkpoint's stream can contradict.
    """

    def __init__(
        self,
        setup: StreamSetup,
        collate: Collate,
        *,
        micro_batch_size: int,
        accumulation: int,
        rank: int = 0,
        world_size: int = 1,
        where: str = "",
    ) -> None:
        self.setup, self.split = setup, Datasets(setup.names)
        self._collate, self._where = collate, where
        self._micro_batch_size, self._rank, self._world_size = micro_batch_size, rank, world_size
        self._latest: deque[dict[int, str]] = deque(maxlen=micro_batch_size * accumulation * world_size)
        self._ahead: LookAhead | None = None
        self._seen = np.zeros((len(setup.parts), 3), dtype=np.int64)  # samples, tokens, targets of each dataset

    @contextmanager
    def opened(self, checkpoint: Path | None) -> Iterator[None]:
        """Read, from the beginning or from where a checkpoint stands.

        Raises:
            ArtefactError: the checkpoint knows no place in a stream, or in another one.
            DataError: the rows are not those that the checkpoint's run had read.
        """
        state = None if checkpoint is None else self._read_state(checkpoint)
        setup = self.setup
        if state is None:
            self._seen[:] = 0
            stream = setup.stream()
            begin, first, read = WindowMark(0, 0, 0, stream.mark()), 0, None
        else:
            self._seen[:] = state["seen"]
            begin, first = WindowMark.from_dict(state["window"]), state["row"]
            stream = setup.stream(begin.stream)
            # Of a run that was over nothing is read again; older checkpoints do not say how far it had read.
            read = StreamMark.from_dict(state["read"]) if "read" in state else None
        self._ahead = LookAhead(stream, setup.rows, setup.window, begin, first, read)
        try:
            yield
        finally:
            self._ahead.close()

    def loader(self, args: TrainingArguments, accumulation: int = 1) -> DataLoader[Any]:
        """This rank's micro-batches, without end; transformers passes over numbers of them, which costs nothing."""
        return DataLoader(
            self,
            batch_sampler=_Numbers(),  # type: ignore[arg-type]  # any iterable; the stub asks for lists of indices
            collate_fn=as_fetched,  # type: ignore[arg-type]  # it gets a batch, not a list, by `__getitems__`
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            generator=torch.Generator(),
        )

    def __getitems__(self, number: int) -> Batch:
        """The next micro-batch; PyTorch's hook for fetching a batch at once."""
        rows = self._open.take(self._micro_batch_size * self._world_size)
        for row in rows:
            places = (sample.place for sample in row.samples)
            self._latest.append(dict(zip(row.numbers.tolist(), places, strict=True)))
            for sample in row.samples:
                self._seen[sample.source] += (1, sample.num_tokens, sample.num_supervised)
        return self._batch(rows[self._rank :: self._world_size])

    def num_tokens(self, batch: Batch) -> int:
        """Tokens of a batch's samples."""
        return int(batch[NUM_TOKENS])

    def tokens_until(self, step: int, args: TrainingArguments) -> tuple[int, int]:
        """Tokens and targets that the run has seen when it begins, or goes on."""
        _, tokens, targets = self._seen.sum(axis=0).tolist()
        return tokens, targets

    def place(self, number: int) -> str:
        """The row of a sample of the latest step."""
        return self._places()[number]

    def places_of_step(self, step: int, args: TrainingArguments) -> list[str]:
        """The rows of the latest step's samples, over all ranks."""
        return list(self._places().values())

    def take(self) -> Callable[[Path], None]:
        """Where the run stands now, as a function that writes it into a checkpoint's folder."""
        state = {
            "identity": self.setup.identity(),
            "encoding": self.setup.encoding(),
            "row": self._open.next_row,
            "seen": self._seen.tolist(),
            "window": self._open.mark().as_dict(),
            "read": self._open.read().as_dict(),
        }
        text = json.dumps(state) + "\n"

        def write(checkpoint: Path) -> None:
            (checkpoint / STATE).write_text(text, encoding="utf-8")

        return write

    def report(self) -> tuple[DatasetReport, ...]:
        """What has been read and trained on so far; nothing before the first `opened`."""
        if self._ahead is None:
            return ()
        setup, read = self.setup, self._ahead.read()
        column = 1 if setup.config.data.mixing_by == "tokens" else 0
        total = max(1, int(self._seen[:, column].sum()))
        reports = []
        for name, mark, asked, seen in zip(setup.names, read.feeds, setup.asked, self._seen.tolist(), strict=True):
            ledger, (samples, tokens, supervised) = mark.ledger(name), seen
            reports.append(
                DatasetReport(
                    name,
                    ledger.read,
                    ledger.num_dropped,
                    {reason: tally.count for reason, tally in ledger.dropped.items()},
                    mark.epoch,
                    samples,
                    tokens,
                    supervised,
                    asked,
                    realised=seen[column] / total,
                )
            )
        return tuple(reports)

    def summary(self) -> dict[str, float]:
        """The report as figures for the last line of the metrics."""
        figures: dict[str, float] = {} if self._ahead is None else {"stream_wait_seconds": self._ahead.seconds_waited}
        for key, report in zip(metric_names(list(self.split.names)), self.report(), strict=True):
            figures |= {
                f"rows_read/{key}": report.rows_read,
                f"rows_dropped/{key}": report.rows_dropped,
                f"epochs/{key}": report.epochs,
                f"share/{key}": report.realised,
            }
        return figures

    @property
    def _open(self) -> LookAhead:
        assert self._ahead is not None, "a stream is read within `opened`"
        return self._ahead

    def _batch(self, rows: Sequence[StreamRow]) -> Batch:
        samples = [sample for row in rows for sample in row.samples]
        numbers = np.concatenate([np.zeros(0, np.int64), *(row.numbers for row in rows)])
        ends = np.cumsum([len(row.samples) for row in rows])
        batch = self._collate(_Held(samples), np.split(np.arange(len(samples)), ends[:-1]))
        in_batch = batch["example_ids"].numpy()
        batch["example_ids"] = torch.from_numpy(numbers[in_batch])
        batch[NUM_TOKENS] = sum(sample.num_tokens for sample in samples)
        if len(self.split.names) > 1:
            batch[SOURCES] = torch.tensor([samples[at].source for at in in_batch.tolist()], dtype=torch.int64)
        return batch

    def _places(self) -> dict[int, str]:
        return {number: place for row in self._latest for number, place in row.items()}

    def _read_state(self, checkpoint: Path) -> dict[str, Any]:
        try:
            with as_whet_writes(str(checkpoint / STATE), "it cannot be read", "resume from another checkpoint"):
                state: dict[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            found = f"{checkpoint} was written by a run that did not stream, and this one does"
            raise ArtefactError(Problem(self._where, found, "remove streaming, or begin a new run")) from None
        with as_whet_writes(str(checkpoint / STATE), "it cannot be read", "resume from another checkpoint"):
            return self._checked_state(checkpoint, state)

    def _checked_state(self, checkpoint: Path, state: dict[str, Any]) -> dict[str, Any]:
        now = self.setup.identity()
        changed = [key for key, value in state["identity"].items() if now[key] != value]
        fix = "write them as they were, or begin a new run"
        if changed:
            before = ", ".join(f"{key} {json.dumps(state['identity'][key])}" for key in changed)
            raise ArtefactError(Problem(self._where, f"{checkpoint} stands in a stream with {before}", fix, changed[0]))
        if self.setup.encoding() != state["encoding"]:
            found = f"{checkpoint} stands in a stream with another tokenizer, template or options of its datasets"
            raise ArtefactError(Problem(self._where, found, fix))
        return state


@dataclass(frozen=True)
class _Held:
    """Samples by their place in a micro-batch (`whet.data.batch.TokenSource`)."""

    samples: Sequence[StreamSample]

    def tokens(self, index: int) -> Sample:
        sample = self.samples[index]
        return sample.input_ids, sample.supervised


class _Numbers:
    """0, 1, 2 ...: the numbers of micro-batches. Without a length, which tells transformers that there is no epoch."""

    def __iter__(self) -> Iterator[int]:
        return itertools.count()
