"""GaLore (Zhao et al., 2024, arXiv:2403.03507) and APOLLO (Zhu et al., 2024, arXiv:2412.05270).

The gradients of some matrices are projected to a lower rank, where the optimizer keeps its state. Of the packages,
galore-torch is Apache 2.0; apollo-torch forbids commercial use, so APOLLO comes from pytorch-optimizer (Apache 2.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainingArguments

from whet.config import Config
from whet.core.errors import ConfigError, Problem
from whet.training.optimizers.construct import Groups, betas, called, check_arguments, imported
from whet.training.optimizers.groups import embedding_parameters, partition


@dataclass(frozen=True, slots=True)
class LowRank:
    """How one of them is made.

    Attributes:
        target: its class.
        projector: the class that its state holds, which a checkpoint must be allowed to load.
        projection: arguments of a group of projected matrices; `optim_args` may change each.
        renamed: a name that `optim_args` has for one of them, as transformers spells it -> the package's own.
        fixed: arguments that the class always gets.
        is_adam: whether it takes betas and eps.
    """

    target: str
    projector: str
    projection: dict[str, Any]
    renamed: dict[str, str]
    fixed: dict[str, Any]
    is_adam: bool = True


_GALORE = {"rank": 128, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}
_GALORE_PROJECTOR = "galore_torch.galore_projector:GaLoreProjector"

RECIPES: dict[str, LowRank] = {
    "galore_adamw": LowRank(
        "galore_torch:GaLoreAdamW", _GALORE_PROJECTOR, _GALORE, {}, {"no_deprecation_warning": True}
    ),
    "galore_adamw_8bit": LowRank("galore_torch:GaLoreAdamW8bit", _GALORE_PROJECTOR, _GALORE, {}, {}),
    "galore_adafactor": LowRank(
        "galore_torch:GaLoreAdafactor",
        _GALORE_PROJECTOR,
        _GALORE,
        {},
        {"scale_parameter": False, "relative_step": False},
        is_adam=False,
    ),
    "apollo_adamw": LowRank(
        "pytorch_optimizer:APOLLO",
        "pytorch_optimizer.optimizer.utils.galore:GaLoreProjector",
        {"rank": 128, "update_proj_gap": 200, "scale": 1.0, "projection_type": "std", "scale_type": "channel"},
        {"proj_type": "projection_type"},
        {},
    ),
}


def build(model: torch.nn.Module, groups: Groups, config: Config, args: TrainingArguments) -> torch.optim.Optimizer:
    """See `whet.training.optimizers.OPTIMIZERS`."""
    recipe = RECIPES[config.optimizer.optimizer]
    make = imported(recipe.target)
    torch.serialization.add_safe_globals([imported(recipe.projector)])  # transformers loads nothing else
    own = {recipe.renamed.get(name, name): value for name, value in (config.optimizer.optim_args or {}).items()}
    check_arguments(make.__name__, own, {*recipe.projection, *recipe.renamed}, config)
    projected, others = partition(groups, target_parameters(model, config))
    for group in projected:
        group |= {**recipe.projection, **own}
    arguments: dict[str, Any] = {"lr": config.optimizer.learning_rate, **recipe.fixed}
    if recipe.is_adam:
        arguments |= {"betas": betas(config, (0.9, 0.999)), "eps": config.optimizer.adam_epsilon or 1e-8}
    return called(make, [*projected, *others], arguments, config)


def target_parameters(model: torch.nn.Module, config: Config) -> set[int]:
    """``id`` of each matrix that `optim_target_modules` names; by default all but embeddings and the head.

    Raises:
        ConfigError: a name matches no trainable matrix.
    """
    asked = config.optimizer.optim_target_modules or "all_linear"
    patterns = (asked,) if isinstance(asked, str) else asked
    excluded = embedding_parameters(model)
    linear = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.ndim == 2 and name not in excluded
    }
    problems = []
    chosen: set[int] = set()
    for pattern in patterns:
        is_all = pattern.replace("-", "_") == "all_linear"
        matched = [parameter for name, parameter in linear.items() if is_all or pattern in name]
        chosen |= set(map(id, matched))
        if not matched:
            found = f"optim_target_modules: '{pattern}' is in the name of no trainable matrix"
            fix = f"write parts of names such as {', '.join(list(linear)[:3]) or '(there is none)'}, or all_linear"
            problems.append(Problem(config.where("optim_target_modules"), found, fix, "optim_target_modules"))
    if problems:
        raise ConfigError(problems)
    return chosen
