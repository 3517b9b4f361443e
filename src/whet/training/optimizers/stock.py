"""Optimizers that transformers knows by name: PyTorch's own and those of bitsandbytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from whet.config import Config
from whet.training.optimizers.construct import called, check_arguments, known_arguments

_READ_BY_TRANSFORMERS = {"ademamix": frozenset({"beta1", "beta2", "beta3", "alpha", "t_alpha", "t_beta3"})}
"""Part of an optimizer's name -> the `optim_args` that transformers translates; all others are the class's own."""


def build(
    model: torch.nn.Module, groups: list[dict[str, Any]], config: Config, args: TrainingArguments
) -> torch.optim.Optimizer:
    """See `whet.training.optimizers.OPTIMIZERS`."""
    translated, own = split_arguments(config.optimizer.optimizer, config.optimizer.optim_args or {})
    args.optim_args = ",".join(f"{name}={value}" for name, value in translated.items()) or None
    optimizer_class, arguments = Trainer.get_optimizer_cls_and_kwargs(args)
    check_arguments(optimizer_class.__name__, own, known_arguments(optimizer_class), config)
    optimizer = called(optimizer_class, groups, {**arguments, **own}, config)
    if arguments.get("optim_bits") == 8:
        _keep_embeddings_in_32_bits(model, optimizer)
    return optimizer


def split_arguments(name: str, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`optim_args` that transformers translates, and those that go to the class as they are.

    >>> split_arguments("ademamix_8bit", {"beta3": 0.999, "block_wise": True})
    ({'beta3': 0.999}, {'block_wise': True})
    """
    read = next((names for part, names in _READ_BY_TRANSFORMERS.items() if part in name), frozenset())
    return (
        {key: value for key, value in arguments.items() if key in read},
        {key: value for key, value in arguments.items() if key not in read},
    )


def _keep_embeddings_in_32_bits(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Gradients of embeddings are too uneven for states of 8 bits (Dettmers et al., arXiv:2110.02861, section 2.3).

    The optimizer is given a manager of its own: the shared one knows parameters by their place in the groups, and would
    take those of the next optimizer in this process for them.
    """
    from bitsandbytes.optim import GlobalOptimManager

    embeddings = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    manager = GlobalOptimManager.__new__(GlobalOptimManager)
    manager.initialize()
    manager.override_config(embeddings, "optim_bits", 32)
    manager.register_parameters(optimizer.param_groups)
    optimizer.mng = manager  # type: ignore[attr-defined]  # of bitsandbytes, which has no types
