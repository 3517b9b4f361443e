"""One optimizer made of two: one for the matrices between embeddings and head, and AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from whet.config import Config
from whet.core.errors import ConfigError, Problem
from whet.training.optimizers.construct import Groups, betas, called
from whet.training.optimizers.groups import embedding_parameters, partition


class Combined(torch.optim.Optimizer):
    """Several optimizers that look like one.

    The groups and the state of the parts are the groups and the state of the whole, so that learning rate schedules,
    gradient scalers and checkpoints treat it like any other.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self._parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Give the parts the whole's groups and state."""
        start = 0
        for part in self._parts:
            stop = start + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[start:stop], self.state
            start = stop

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else closure()
        for part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()


def matrices_and_adamw(
    model: torch.nn.Module,
    groups: Groups,
    config: Config,
    make: Callable[[Groups], torch.optim.Optimizer],
) -> Combined:
    """``make``'s optimizer for the matrices, AdamW for embeddings, head, vectors and stacked matrices (experts).

    Raises:
        ConfigError: there is no matrix to train.
    """
    excluded = embedding_parameters(model)
    matrices = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and name not in excluded and "lora_embedding" not in name and not name.endswith("bias")
    }
    hidden, others = partition(groups, matrices)
    if not hidden:
        name = config.optimizer.optimizer
        found = f"optimizer: {name} is for matrices between embeddings and head, and none of them is trained"
        raise ConfigError(Problem(config.where("optimizer"), found, "write adamw_torch_fused"))
    parts = [make(hidden)]
    if others:
        arguments = {
            "lr": config.optimizer.learning_rate,
            "betas": betas(config, (0.9, 0.999)),
            "eps": config.optimizer.adam_epsilon or 1e-8,
            "fused": True,
        }
        parts.append(called(torch.optim.AdamW, others, arguments, config))
    return Combined(*parts)
