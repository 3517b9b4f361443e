"""LOMO and AdaLomo (Lv et al., 2023, arXiv:2306.09782, arXiv:2310.10195), by the package lomo-optim.

A weight is changed in the backward pass, as soon as its gradient is there, so that no more than one gradient is in
memory. transformers and accelerate run the backward pass through the optimizer where `args.optim` is one of the two.
"""

from __future__ import annotations

from typing import Any

import torch
from lomo_optim import AdaLomo, Lomo
from transformers import TrainingArguments

from whet.config import Config
from whet.training.optimizers.construct import Groups, construct

_STATE = ("exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col")


class ResumableAdaLomo(AdaLomo):
    """As in the package (0.1.1), whose second moments stand beside the state that a checkpoint holds."""

    def state_dict(self) -> dict[str, Any]:
        moments = {name: dict(getattr(self, name)) for name in _STATE}
        return {**super().state_dict(), "moments": moments, "step_num": self.step_num}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        self.step_num = state_dict["step_num"]
        for name, tensors in state_dict["moments"].items():
            held = getattr(self, name)
            for parameter, moment in tensors.items():
                held[parameter].copy_(moment)


def build(model: torch.nn.Module, groups: Groups, config: Config, args: TrainingArguments) -> torch.optim.Optimizer:
    """See `whet.training.optimizers.OPTIMIZERS`; all weights share one learning rate and one weight decay."""
    settings = config.optimizer
    arguments = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    return construct(ResumableAdaLomo if settings.optimizer == "adalomo" else Lomo, model, arguments, config)
