"""SinkGD (Scetbon et al., 2025, arXiv:2502.06742): gradients whose rows and columns all have one size; no state."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from transformers import TrainingArguments

from whet.config import Config
from whet.training.optimizers.combined import Combined, matrices_and_adamw
from whet.training.optimizers.construct import Groups, construct


def sinkhorn_normalised(gradient_MN: torch.Tensor, iterations: int) -> torch.Tensor:
    """Rows scaled to norm sqrt(N), then columns to norm sqrt(M), so many times (algorithm 3 of the paper). fp32[M, N].

    >>> sinkhorn_normalised(torch.tensor([[3.0, 4.0], [0.5, 0.1]]), 50).square().mean(dim=1).round(decimals=2)
    tensor([1., 1.])
    """
    scaled = gradient_MN.float()
    rows, columns = scaled.shape
    for _ in range(iterations):
        scaled = scaled * (math.sqrt(columns) / scaled.norm(dim=1, keepdim=True).clamp(min=1e-20))
        scaled = scaled * (math.sqrt(rows) / scaled.norm(dim=0, keepdim=True).clamp(min=1e-20))
    return scaled


class SinkGD(torch.optim.Optimizer):
    """Gradient descent on normalised matrices.

    Args:
        sinkhorn_iters: passes over rows and columns.
        sinkgd_lr_scale: the matrices' share of the learning rate; 0.05 in the paper.
    """

    def __init__(
        self,
        params: Groups,
        lr: float = 0.02,
        weight_decay: float = 0.0,
        sinkhorn_iters: int = 5,
        sinkgd_lr_scale: float = 0.05,
    ) -> None:
        if sinkhorn_iters < 1 or sinkgd_lr_scale <= 0:
            raise ValueError("sinkhorn_iters must be at least 1, and sinkgd_lr_scale above 0")
        self._iterations, self._scale = sinkhorn_iters, sinkgd_lr_scale
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                update = sinkhorn_normalised(weight.grad, self._iterations)
                weight.add_(update.to(weight.dtype), alpha=-group["lr"] * self._scale)


def build(model: torch.nn.Module, groups: Groups, config: Config, args: TrainingArguments) -> Combined:
    """See `whet.training.optimizers.OPTIMIZERS`."""
    arguments = {"lr": config.optimizer.learning_rate}
    return matrices_and_adamw(model, groups, config, lambda hidden: construct(SinkGD, hidden, arguments, config))
