"""Grokfast (Lee et al., 2024, arXiv:2405.20233): the slow part of the gradient, added to it, for any optimizer."""

from __future__ import annotations

from typing import Any

import torch

from whet.config import Config
from whet.training.optimizers.loading import after_loading

ALPHA, LAMB = 0.98, 2.0
"""Values of the paper's EMA filter, for the key of the two that is not written."""

_KEY = "grokfast"


def filter_gradients(optimizer: torch.optim.Optimizer, config: Config) -> None:
    """Let an optimizer see ``g + lamb * mean`` with ``mean = alpha * mean + (1 - alpha) * g``, where the config asks.

    The first mean is the first gradient. The means are part of the optimizer's ``state_dict``. What the guard has
    dropped (a gradient that is None) leaves its mean as it was.
    """
    alpha, lamb = config.optimizer.grokfast_alpha, config.optimizer.grokfast_lamb
    if alpha is None and lamb is None:
        return
    decay, weight = ALPHA if alpha is None else alpha, LAMB if lamb is None else lamb
    means: dict[torch.Tensor, torch.Tensor] = {}

    def parameters(of: torch.optim.Optimizer) -> list[torch.Tensor]:
        return [parameter for group in of.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def before_step(of: torch.optim.Optimizer, *_: Any) -> None:
        for parameter in parameters(of):
            if parameter.grad is None:
                continue
            mean = means.setdefault(parameter, parameter.grad.clone())
            mean.lerp_(parameter.grad, 1 - decay)
            parameter.grad.add_(mean, alpha=weight)

    def when_saved(of: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
        saved[_KEY] = {index: means[each] for index, each in enumerate(parameters(of)) if each in means}

    def when_loaded(saved: dict[str, Any]) -> None:
        held = parameters(optimizer)
        means.clear()
        for index, mean in saved.get(_KEY, {}).items():
            means[held[index]] = mean.to(held[index].device).clone()

    optimizer.register_step_pre_hook(before_step)
    optimizer.register_state_dict_post_hook(when_saved)
    after_loading(optimizer, when_loaded)
