"""What contradicts nothing and the user would want to know: keys without an effect."""

from __future__ import annotations

from whet.config.config import Config
from whet.config.rules.base import Rule, at, first_set
from whet.config.rules.loss import entropy_options_need_eaft
from whet.config.rules.mixing import MIXING_REMARKS
from whet.config.rules.optimizer import averages_take_the_place_of_decay
from whet.config.rules.streaming import STREAMING_REMARKS
from whet.config.rules.trust import code_of_others_is_announced
from whet.core.errors import Problem

_WITHOUT_MEANS = frozenset(
    {
        *("sgd", "adagrad", "rmsprop", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit", "adafactor"),
        *("galore_adafactor", "lomo", "adalomo", "flash_sgd", "flash_sgdw", "schedule_free_sgd"),
    }
)
"""Optimizers without the running means that adam_beta1 and the like are about."""


def adam_options_need_adam(config: Config) -> Problem | None:
    key = first_set(config, ("adam_beta1", "adam_beta2", "adam_epsilon"))
    name = config.optimizer.optimizer
    without_epsilon = key == "adam_epsilon" and "lion" in name
    if key is None or not (name in _WITHOUT_MEANS or without_epsilon):
        return None
    return at(config, key, f"{key} changes nothing: {name} does not use it", "remove the line")


def evaluations_without_rows(config: Config) -> Problem | None:
    if not config.is_set("evals_per_epoch") or config.data.val_set_size or config.data.test_datasets:
        return None
    return at(
        config, "evals_per_epoch", "no evaluation takes place: there are no rows for it", "add val_set_size: 0.05"
    )


def checkpointing_options_need_checkpointing(config: Config) -> Problem | None:
    key = first_set(config, ("gradient_checkpointing_kwargs", "gradient_checkpointing_every"))
    if key is None or not config.value(key) or config.memory.gradient_checkpointing:
        return None
    found = f"{key} changes nothing: gradient_checkpointing is off"
    return at(config, key, found, "add `gradient_checkpointing: true`, or remove it")


def compile_options_need_compiling(config: Config) -> Problem | None:
    key = first_set(config, ("torch_compile_backend", "torch_compile_mode", "torch_compile_options"))
    if key is None or config.memory.torch_compile:
        return None
    return at(config, key, f"{key} changes nothing: torch_compile is off", "add `torch_compile: true`, or remove it")


def wandb_options_need_a_project(config: Config) -> Problem | None:
    key = first_set(config, ("wandb_name", "wandb_entity", "wandb_run_id", "wandb_watch", "wandb_log_model"))
    if key is None or config.tracking.wandb_project or config.tracking.use_wandb is not None:
        return None
    return at(config, key, f"{key} changes nothing: there is no wandb_project", "add wandb_project, or remove it")


def hub_options_need_a_repository(config: Config) -> Problem | None:
    key = first_set(config, ("hub_strategy", "hub_revision"))
    if key is None or config.output.hub_model_id:
        return None
    return at(config, key, f"{key} changes nothing: there is no hub_model_id", "add hub_model_id, or remove it")


def patience_needs_a_threshold(config: Config) -> Problem | None:
    if not config.is_set("loss_watchdog_patience") or config.loop.loss_watchdog_threshold is not None:
        return None
    return at(
        config,
        "loss_watchdog_patience",
        "loss_watchdog_patience changes nothing: there is no loss_watchdog_threshold",
        "add loss_watchdog_threshold, or remove it",
    )


REMARKS: tuple[Rule, ...] = (
    adam_options_need_adam,
    averages_take_the_place_of_decay,
    code_of_others_is_announced,
    evaluations_without_rows,
    checkpointing_options_need_checkpointing,
    compile_options_need_compiling,
    entropy_options_need_eaft,
    wandb_options_need_a_project,
    hub_options_need_a_repository,
    patience_needs_a_threshold,
    *MIXING_REMARKS,
    *STREAMING_REMARKS,
)
