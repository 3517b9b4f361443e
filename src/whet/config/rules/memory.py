"""Rules about the memory levers: which go together."""

from __future__ import annotations

from whet.config.config import Config
from whet.config.rules.base import Rule, at
from whet.core.errors import Problem


def activations_stay_on_the_device(config: Config) -> Problem | None:
    value = config.memory.gradient_checkpointing
    if value in (True, False):
        return None
    return at(
        config,
        "gradient_checkpointing",
        f"gradient_checkpointing: {value} is not supported yet",
        "write gradient_checkpointing: true",
    )


def reentrant_checkpoints_need_gradients_everywhere(config: Config) -> Problem | None:
    if not _is_reentrant(config) or not config.model.unfrozen_parameters:
        return None
    return at(
        config,
        "gradient_checkpointing_kwargs",
        "use_reentrant: true loses the gradients of unfrozen_parameters",
        "write use_reentrant: false",
    )


def selective_checkpointing_is_checkpointing(config: Config) -> Problem | None:
    memory = config.memory
    if not memory.selective_checkpointing or memory.gradient_checkpointing:
        return None
    found = "selective_checkpointing is written, and gradient_checkpointing is off"
    return at(config, "selective_checkpointing", found, "add `gradient_checkpointing: true`")


def selective_checkpointing_is_not_reentrant(config: Config) -> Problem | None:
    if not config.memory.selective_checkpointing or not _is_reentrant(config):
        return None
    found = "use_reentrant: true computes everything again, and selective_checkpointing keeps a part"
    return at(config, "gradient_checkpointing_kwargs", found, "write use_reentrant: false")


def products_are_not_kept_under_an_adapter(config: Config) -> Problem | None:
    selection = config.memory.selective_checkpointing
    if not config.adapter.adapter or selection in (None, True, False):
        return None
    products = ("matmul", "aten.mm", "aten.addmm", "aten.bmm", "aten.linear")
    kept = next((name for name in selection.save if name.removesuffix(".default") in products), None)  # type: ignore[union-attr]
    if kept is None:
        return None
    found = f"selective_checkpointing.save names {kept}, which under an adapter keeps three results where one is needed"
    return at(config, "selective_checkpointing", found, "write save: [attention]")


def kept_results_stay_on_the_device(config: Config) -> Problem | None:
    selection = config.memory.selective_checkpointing
    if selection in (None, True, False) or not selection.offload:  # type: ignore[union-attr]
        return None
    found = "selective_checkpointing.offload is not built: what a layer keeps stays on the device"
    return at(config, "selective_checkpointing", found, "remove offload")


def layers_are_chosen_for_supervised_training(config: Config) -> Problem | None:
    if not config.method.rl:
        return None
    memory = config.memory
    for key, value in (
        ("gradient_checkpointing_every", memory.gradient_checkpointing_every > 1),
        ("selective_checkpointing", memory.selective_checkpointing),
    ):
        if value:
            found = f"{key} is written, and TRL's trainer for rl: {config.method.rl} checkpoints every layer or none"
            return at(config, key, found, "remove the line")
    return None


def _is_reentrant(config: Config) -> bool:
    return bool((config.memory.gradient_checkpointing_kwargs or {}).get("use_reentrant"))


MEMORY_RULES: tuple[Rule, ...] = (
    activations_stay_on_the_device,
    reentrant_checkpoints_need_gradients_everywhere,
    selective_checkpointing_is_checkpointing,
    selective_checkpointing_is_not_reentrant,
    products_are_not_kept_under_an_adapter,
    kept_results_stay_on_the_device,
    layers_are_chosen_for_supervised_training,
)
