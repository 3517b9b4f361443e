"""Dion (Ahn et al., 2025, arXiv:2504.05295): orthonormal updates of low rank, by one power iteration a step.

This is the algorithm of one device. A matrix W is m x n, its gradient G, the momentum M, the rank r; Q is n x r.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainingArguments

from whet.config import Config
from whet.training.optimizers.combined import Combined, matrices_and_adamw
from whet.training.optimizers.construct import Groups, construct


class Dion(torch.optim.Optimizer):
    """Algorithm 1 of the paper, for matrices.

    Args:
        momentum: mu, in [0, 1): the share of what an update has used that stays in the momentum.
        rank_fraction: rank over the smaller side.
        rank_multiple_of: the rank is rounded up to a multiple of it, and never above the smaller side.
        seed: of the first Q of each matrix, the same on every rank.
    """

    def __init__(
        self,
        params: Groups,
        lr: float = 0.01,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        rank_fraction: float = 1.0,
        rank_multiple_of: int = 1,
        seed: int = 0,
    ) -> None:
        self._rank_fraction, self._rank_multiple_of, self._seed = rank_fraction, rank_multiple_of, seed
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    def rank(self, rows: int, columns: int) -> int:
        """Rank of the updates of a matrix."""
        smaller, multiple = min(rows, columns), self._rank_multiple_of
        return min(smaller, math.ceil(self._rank_fraction * smaller / multiple) * multiple)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, weight: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight, dtype=torch.float32)
            state["basis"] = self._first_basis(weight)
        momentum, basis = state["momentum"], state["basis"]
        momentum.add_(weight.grad)
        left = torch.linalg.qr(momentum @ basis).Q  # [m, r], orthonormal
        right = momentum.T @ left  # [n, r]
        momentum.sub_((1 - group["momentum"]) * left @ right.T)
        basis.copy_(right / right.norm(dim=0, keepdim=True).clamp(min=1e-8))
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        scale = math.sqrt(weight.shape[0] / weight.shape[1])
        weight.add_((left @ basis.T).to(weight.dtype), alpha=-group["lr"] * scale)

    def _first_basis(self, weight: torch.Tensor) -> torch.Tensor:
        rows, columns = weight.shape
        generator = torch.Generator().manual_seed(self._seed)
        drawn = torch.randn(columns, self.rank(rows, columns), generator=generator)
        basis: torch.Tensor = torch.linalg.qr(drawn).Q
        return basis.to(weight.device)


def build(model: torch.nn.Module, groups: Groups, config: Config, args: TrainingArguments) -> Combined:
    """See `whet.training.optimizers.OPTIMIZERS`. `dion_lr` is the rate of the matrices, `learning_rate` of the rest."""
    settings = config.optimizer
    rate = settings.dion_lr or settings.learning_rate
    arguments = {
        "lr": rate,
        "momentum": 0.95 if settings.dion_momentum is None else settings.dion_momentum,
        "rank_fraction": settings.dion_rank_fraction,
        "rank_multiple_of": settings.dion_rank_multiple_of,
        "seed": int(args.seed),
    }

    def make(hidden: Groups) -> torch.optim.Optimizer:
        for group in hidden:
            group["lr"] *= rate / settings.learning_rate
        return construct(Dion, hidden, arguments, config)

    return matrices_and_adamw(model, groups, config, make)
