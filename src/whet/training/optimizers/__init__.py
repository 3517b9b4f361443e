"""The optimizers by name, what each needs, and how one is built from a config."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from whet.core.errors import ConfigError, Problem
from whet.core.log import warn
from whet.core.registry import Registry

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments

    from whet.config import Config

_STOCK = "whet.training.optimizers.stock:build"

OPTIMIZERS = Registry(
    "optimizers",
    {
        "adamw_torch": _STOCK,
        "adamw_torch_fused": _STOCK,
        "adafactor": _STOCK,
        "sgd": _STOCK,
        "adagrad": _STOCK,
        "rmsprop": _STOCK,
        "adamw_8bit": _STOCK,
        "adamw_bnb_8bit": _STOCK,
        "paged_adamw_8bit": _STOCK,
        "paged_adamw_32bit": _STOCK,
        "ademamix": _STOCK,
        "ademamix_8bit": _STOCK,
        "paged_ademamix_8bit": _STOCK,
        "paged_ademamix_32bit": _STOCK,
        "lion_8bit": _STOCK,
        "lion_32bit": _STOCK,
        "paged_lion_8bit": _STOCK,
        "paged_lion_32bit": _STOCK,
        "rmsprop_bnb": _STOCK,
        "rmsprop_bnb_8bit": _STOCK,
        "rmsprop_bnb_32bit": _STOCK,
    },
)
"""Name -> a builder ``(model, groups, config, args) -> torch.optim.Optimizer``.

``groups`` are the model's parameter groups with ``lr`` and ``weight_decay`` set (`whet.training.optimizers.groups`),
``config`` is the run's `Config`, ``args`` are its TrainingArguments.
"""

_TORCH_ONLY = frozenset({"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"})


def needs_bitsandbytes(name: str) -> bool:
    """Whether an optimizer of ours comes from bitsandbytes.

    >>> needs_bitsandbytes("adamw_8bit"), needs_bitsandbytes("rmsprop")
    (True, False)
    """
    return name in OPTIMIZERS and name not in _TORCH_ONLY and any(part in name for part in ("bit", "bnb", "ademamix"))


def unavailable(name: str, device: str) -> str | None:
    """Why an optimizer cannot be used here, or None when it can.

    Args:
        device: "cpu", "cuda" or "mps".
    """
    if not needs_bitsandbytes(name):
        return None
    if find_spec("bitsandbytes") is None:
        return "it comes from the package bitsandbytes, which is not installed (pip install bitsandbytes)"
    if device == "mps":
        return "bitsandbytes has no optimizer for MPS"
    return None


def build_optimizer(model: torch.nn.Module, config: Config, args: TrainingArguments) -> torch.optim.Optimizer:
    """The optimizer of a model's trainable parameters.

    Raises:
        ConfigError: no such optimizer, not here, an argument it does not know, or a group that matches no parameter.
    """
    from whet.training.optimizers.groups import parameter_groups

    name, where = config.optimizer.optimizer, config.where("optimizer")
    build = OPTIMIZERS.load(name, where)
    device = args.device.type
    reason = unavailable(name, device)
    if reason is not None:
        raise ConfigError(Problem(where, f"optimizer '{name}' cannot be used here: {reason}", "use adamw_torch_fused"))
    if name.startswith("paged_") and device == "cpu":
        warn(Problem(where, f"'{name}' is not paged on a CPU, where there is nothing to page from", "nothing to do"))
    optimizer: torch.optim.Optimizer = build(model, parameter_groups(model, config), config, args)
    return optimizer
