"""Optimizers of optional packages: for each its class, and how our keys are its arguments.

Where transformers knows the name too, the values that nobody wrote are transformers' (Adam's 0.9, 0.999 and 1e-8);
else they are those of the package. `whet.config.optimizers.PACKAGES` has the names to install.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from whet.config import Config
from whet.config.optimizers import SCHEDULE_FREE
from whet.training.optimizers.construct import Groups, betas, construct, imported

_ADAM = (0.9, 0.999)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one optimizer is made.

    Attributes:
        target: its class.
        betas: decay rates it starts from; None for a class without them.
        eps: what is added to denominators; a pair for CAME; None for a class without it.
        fixed: further arguments that it always gets.
    """

    target: str
    betas: tuple[float, ...] | None = _ADAM
    eps: float | tuple[float, float] | None = 1e-8
    fixed: Mapping[str, Any] = field(default_factory=dict)


_DECOUPLED = {"weight_decouple": True}

RECIPES: dict[str, Recipe] = {
    "schedule_free_adamw": Recipe("schedulefree:AdamWScheduleFree"),
    "schedule_free_radam": Recipe("schedulefree:RAdamScheduleFree"),
    "schedule_free_sgd": Recipe("schedulefree:SGDScheduleFree", betas=None, eps=None),
    "optimi_adamw": Recipe("optimi:AdamW", betas=(0.9, 0.99), eps=1e-6),
    "stable_adamw": Recipe("optimi:StableAdamW"),
    "came_pytorch": Recipe("came_pytorch:CAME", betas=(0.9, 0.999, 0.9999), eps=(1e-30, 1e-16)),
    "adopt_adamw": Recipe("pytorch_optimizer:ADOPT", betas=(0.9, 0.9999), eps=1e-6, fixed=_DECOUPLED),
    "lion": Recipe("pytorch_optimizer:Lion", betas=(0.9, 0.99), eps=None, fixed=_DECOUPLED),
    "adan": Recipe("pytorch_optimizer:Adan", betas=(0.98, 0.92, 0.99), fixed=_DECOUPLED),
    "soap": Recipe("pytorch_optimizer:SOAP", betas=(0.95, 0.95)),
    # Vectors are trained like matrices, for the package would give them a learning rate that no schedule reaches.
    "mars": Recipe("pytorch_optimizer:MARS", betas=(0.95, 0.99), fixed={**_DECOUPLED, "optimize_1d": True}),
    "adamw_torch_4bit": Recipe("torchao.optim:AdamW4bit"),
    "adamw_torch_8bit": Recipe("torchao.optim:AdamW8bit"),
    "ao_adamw_4bit": Recipe("torchao.optim:AdamW4bit"),
    "ao_adamw_8bit": Recipe("torchao.optim:AdamW8bit"),
    "ao_adamw_fp8": Recipe("torchao.optim:AdamWFp8"),
    "grokadamw": Recipe("whet.training.optimizers.grokadamw:ResumableGrokAdamW"),
    "flash_adam": Recipe("flashoptim:FlashAdam"),
    "flash_adamw": Recipe("flashoptim:FlashAdamW"),
    "flash_lion": Recipe("flashoptim:FlashLion", betas=(0.9, 0.99), eps=None),
    "flash_sgd": Recipe("flashoptim:FlashSGD", betas=None, eps=None),
    "flash_sgdw": Recipe("flashoptim:FlashSGDW", betas=None, eps=None),
}


def build(model: torch.nn.Module, groups: Groups, config: Config, args: TrainingArguments) -> torch.optim.Optimizer:
    """See `whet.training.optimizers.OPTIMIZERS`."""
    name = config.optimizer.optimizer
    recipe = RECIPES[name]
    arguments: dict[str, Any] = {"lr": config.optimizer.learning_rate, **recipe.fixed}
    if recipe.betas is not None:
        arguments["betas"] = betas(config, recipe.betas)
    if recipe.eps is not None:
        arguments["eps"] = _epsilon(config, recipe.eps)
    arguments |= _of_this_run(name, recipe, config, args)
    return construct(imported(recipe.target), groups, arguments, config)


def _epsilon(config: Config, default: float | tuple[float, float]) -> float | tuple[float, float]:
    first, second = config.optimizer.adam_epsilon, config.optimizer.adam_epsilon2
    if isinstance(default, tuple):
        return (first or default[0], second or default[1])
    return first or default


def _of_this_run(name: str, recipe: Recipe, config: Config, args: TrainingArguments) -> dict[str, Any]:
    """Arguments that depend on the device or the schedule."""
    if recipe.target.startswith("optimi:") and args.device.type != "cuda":
        # torch-optimi takes Triton where it is installed, on a CPU too, where Triton has no driver to run with.
        return {"triton": False}
    if name in SCHEDULE_FREE and name != "schedule_free_radam" and config.optimizer.lr_scheduler == "constant":
        return {"warmup_steps": int(args.warmup_steps)}
    return {}
