"""How much of a model is trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from whet.model.quantize import count_weights


@dataclass(frozen=True, slots=True)
class TrainableSummary:
    """How much of a model is trained."""

    trainable: int
    total: int

    def __str__(self) -> str:
        share = 100 * self.trainable / max(self.total, 1)
        return f"{self.trainable:,} of {self.total:,} parameters are trained ({share:.3g}%)"


def trainable_summary(model: torch.nn.Module) -> TrainableSummary:
    """Count parameters; those packed in 4 bits count as the weights they stand for."""
    counts = [(count_weights(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return TrainableSummary(sum(n for n, trained in counts if trained), sum(n for n, _ in counts))
