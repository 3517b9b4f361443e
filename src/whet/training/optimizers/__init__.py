"""The optimizers by name, what each needs, and how one is built from a config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whet.config.optimizers import IN_BACKWARD, LOW_RANK, SCHEDULE_FREE, unavailable
from whet.core.errors import ConfigError, Problem
from whet.core.log import warn
from whet.core.registry import Registry

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments

    from whet.config import Config
    from whet.training.optimizers.construct import Groups

_HERE = "whet.training.optimizers"
_STOCK = (
    *("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"),
    *("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit"),
    *("ademamix", "ademamix_8bit", "paged_ademamix_8bit", "paged_ademamix_32bit"),
    *("lion_8bit", "lion_32bit", "paged_lion_8bit", "paged_lion_32bit"),
    *("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
)
_PACKAGED = (
    *("schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd"),
    *("optimi_adamw", "stable_adamw", "came_pytorch", "grokadamw"),
    *("adopt_adamw", "lion", "adan", "soap", "mars"),
    *("adamw_torch_4bit", "adamw_torch_8bit", "ao_adamw_4bit", "ao_adamw_8bit", "ao_adamw_fp8"),
    *("flash_adam", "flash_adamw", "flash_lion", "flash_sgd", "flash_sgdw"),
)

OPTIMIZERS = Registry(
    "optimizers",
    {
        **dict.fromkeys(_STOCK, f"{_HERE}.stock:build"),
        **dict.fromkeys(_PACKAGED, f"{_HERE}.packages:build"),
        **dict.fromkeys(sorted(LOW_RANK), f"{_HERE}.low_rank:build"),
        **dict.fromkeys(sorted(IN_BACKWARD), f"{_HERE}.lomo:build"),
        "muon": f"{_HERE}.muon:build",
        "dion": f"{_HERE}.dion:build",
        "sinkgd": f"{_HERE}.sinkgd:build",
    },
)
"""Name -> a builder ``(model, groups, config, args) -> torch.optim.Optimizer``.

``groups`` are the model's parameter groups with ``lr`` and ``weight_decay`` set (`whet.training.optimizers.groups`),
``config`` is the run's `Config`, ``args`` are its TrainingArguments. What each needs: `whet.config.optimizers`.
"""


def build_optimizer(model: torch.nn.Module, config: Config, args: TrainingArguments) -> torch.optim.Optimizer:
    """The optimizer of a model's trainable parameters.

    Raises:
        ConfigError: no such optimizer, not here, an argument it does not know, or a group that matches no parameter.
    """
    from whet.training.optimizers.averages import keep_trained_weights
    from whet.training.optimizers.gradient_filter import filter_gradients
    from whet.training.optimizers.groups import parameter_groups
    from whet.training.optimizers.loading import keep_types

    name, where = config.optimizer.optimizer, config.where("optimizer")
    build = OPTIMIZERS.load(name, where)
    device = args.device.type
    reason = unavailable(name, device)
    if reason is not None:
        raise ConfigError(Problem(where, f"optimizer '{name}' cannot be used here: {reason}", "use adamw_torch_fused"))
    if name.startswith("paged_") and device == "cpu":
        warn(Problem(where, f"'{name}' is not paged on a CPU, where there is nothing to page from", "nothing to do"))
    groups, memory = parameter_groups(model, config), config.memory

    def built(own: Groups) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = build(model, own, config, args)
        keep_types(optimizer)
        return optimizer

    if memory.optimizer_in_backward or memory.stochastic_rounding:
        from whet.training.optimizers.each_parameter import EachParameter
        from whet.training.optimizers.rounding import Rounding

        return EachParameter(
            groups,
            built,
            in_backward=memory.optimizer_in_backward,
            rounding=Rounding(config.loop.seed) if memory.stochastic_rounding else None,
        )
    optimizer = built(groups)
    if name in SCHEDULE_FREE:
        keep_trained_weights(optimizer)
    filter_gradients(optimizer, config)
    return optimizer
