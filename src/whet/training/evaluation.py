"""The loss of every example of an evaluation set, exactly, however the examples were batched or packed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from whet.core.disk import replace_text
from whet.data.batch import Batch
from whet.data.store import Split
from whet.model.loss import LossParts, document_of_position, supervised_logits_loss

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, eq=False)
class ExampleLosses:
    """What a model makes of each example.

    Attributes:
        total: float64[N], the sum of -log p over the example's targets, in nats.
        num_targets: int64[N].
    """

    total: npt.NDArray[np.float64]
    num_targets: npt.NDArray[np.int64]

    def mean(self, chosen: npt.NDArray[np.bool_] | slice = slice(None)) -> float:
        """Nats per supervised token over the chosen examples; nan when they have no target."""
        count = int(self.num_targets[chosen].sum())
        return float(self.total[chosen].sum() / count) if count else math.nan


def evaluate_examples(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    to_device: Callable[[Batch], Batch],
    accelerator: Accelerator,
    num_examples: int,
) -> ExampleLosses:
    """Run the model over this rank's batches and put the ranks' results together.

    Every rank gets all results. Dropout is off; the model is left in the mode it came in.
    """
    was_training = model.training
    model.eval()
    total = np.zeros(num_examples)
    num_targets = np.zeros(num_examples, dtype=np.int64)
    with torch.no_grad():
        for batch in batches:
            parts = supervised_logits_loss(model, to_device(batch))
            owner = example_of_position(batch, parts)
            np.add.at(total, owner, parts.per_token.double().cpu().numpy())
            np.add.at(num_targets, owner, 1)
    model.train(was_training)
    if accelerator.num_processes > 1:
        # Each example lives on one rank, so adding the ranks' arrays is exact. float64 is not known to every device.
        total, num_targets = (np.sum(parts, axis=0) for parts in zip(*_gathered((total, num_targets)), strict=True))
    return ExampleLosses(total, num_targets)


def example_of_position(batch: Batch, parts: LossParts) -> npt.NDArray[np.int64]:
    """int64[targets]: the example that each predicted token belongs to, in either layout of a batch."""
    document = document_of_position(batch, parts.positions.to(batch["input_ids"].device))
    examples: npt.NDArray[np.int64] = batch["example_ids"].cpu().numpy()[document.cpu().numpy()]
    return examples


def evaluation_metrics(losses: ExampleLosses, split: Split, prefix: str) -> dict[str, float]:
    """``<prefix>_loss`` over all targets, and ``<prefix>_<dataset>_loss`` for each dataset where there are several."""
    metrics = {f"{prefix}_loss": losses.mean()}
    sources = split.source
    present = np.unique(sources).tolist()
    if len(present) > 1:
        keys = metric_names([split.names[source] for source in present])
        for key, source in zip(keys, present, strict=True):
            metrics[f"{prefix}_{key}_loss"] = losses.mean(sources == source)
    return metrics


def metric_names(names: list[str]) -> list[str]:
    """Short, distinct names that every tracker takes, from the names of datasets.

    >>> metric_names(["data/chat.jsonl", "org/code", "more/chat.jsonl"])
    ['chat', 'code', 'chat-2']
    """
    found: list[str] = []
    for name in names:
        key = re.sub(r"[^A-Za-z0-9]+", "-", Path(name).stem).strip("-") or "dataset"
        copies = sum(re.fullmatch(rf"{re.escape(key)}(-\d+)?", other) is not None for other in found)
        found.append(f"{key}-{copies + 1}" if copies else key)
    return found


def write_examples(losses: ExampleLosses, split: Split, output_dir: str, prefix: str, step: int | None) -> Path:
    """One line an example: its dataset, where it stands, its mean loss and its targets; no half of the file is seen.

    Raises:
        OSError: it cannot be written; an earlier one is as it was.
    """
    folder = Path(output_dir) / prefix
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("examples.jsonl" if step is None else f"examples-step-{step}.jsonl")
    sources = split.source
    lines = []
    for example, (total, count) in enumerate(zip(losses.total.tolist(), losses.num_targets.tolist(), strict=True)):
        line: dict[str, Any] = {
            "example": example,
            "dataset": split.names[sources[example]],
            "place": split.place(example),
            "loss": total / count if count and math.isfinite(total) else None,
            "supervised_tokens": count,
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    replace_text(path, "".join(lines))
    return path


def _gathered(mine: Any) -> list[Any]:
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, mine)
    return everyone
