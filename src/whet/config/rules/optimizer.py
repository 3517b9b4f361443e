"""Rules about single optimizers and about restarts of the learning rate."""

from __future__ import annotations

from whet.config.config import Config
from whet.config.names import FOLLOW_EVALUATIONS
from whet.config.optimizers import IN_BACKWARD, LOW_RANK, SCHEDULE_FREE
from whet.config.rules.base import Rule, at, first_set
from whet.core.errors import Problem

_READ_BY: dict[str, frozenset[str]] = {
    **dict.fromkeys(("adam_beta3", "adam_epsilon2"), frozenset({"came_pytorch"})),
    **dict.fromkeys(("dion_lr", "dion_momentum", "dion_rank_fraction", "dion_rank_multiple_of"), frozenset({"dion"})),
    "optim_target_modules": LOW_RANK,
}
"""Key -> the optimizers that read it."""


def optimizer_keys_have_their_optimizer(config: Config) -> Problem | None:
    name = config.optimizer.optimizer
    for key, readers in _READ_BY.items():
        default = type(config.optimizer).model_fields[key].default
        if config.value(key) != default and name not in readers:
            names = " or ".join(sorted(readers))
            return at(config, key, f"{key} is read by {names}, and optimizer is {name}", "remove the line")
    return None


def updates_in_backward_take_one_pass(config: Config) -> Problem | None:
    """LOMO changes a weight as soon as its gradient is there: nothing can be added up, clipped or filtered before."""
    name, batch = config.optimizer.optimizer, config.batch
    if name not in IN_BACKWARD:
        return None
    key = "gradient_accumulation_steps" if batch.batch_size is None else "batch_size"
    if (batch.gradient_accumulation_steps or 1) > 1 or (batch.batch_size or 0) > batch.micro_batch_size:
        found = f"optimizer: {name} updates weights in each backward pass, so passes cannot be added up"
        return at(config, key, found, "write gradient_accumulation_steps: 1")
    if config.is_set("max_grad_norm") and config.loop.max_grad_norm:
        found = f"optimizer: {name} has no gradients left to clip when their norm is known"
        return at(config, "max_grad_norm", found, "write max_grad_norm: 0")
    keys = ("lr_groups", "loraplus_lr_ratio", "embedding_lr", "embedding_lr_scale", "grokfast_alpha", "grokfast_lamb")
    other = next((key for key in keys if config.value(key) is not None), None)
    if other is None:
        return None
    return at(config, other, f"{other} is written, and optimizer: {name} treats all weights alike", "remove the line")


def restarts_have_an_interval(config: Config) -> Problem | None:
    settings = config.optimizer
    if settings.jagged_restart_steps is not None:
        return None
    key = first_set(config, ("jagged_restart_warmup_steps", "jagged_restart_anneal_steps"))
    if key is None or not config.value(key):
        return None
    return at(config, key, f"{key} is written, and jagged_restart_steps is not", "add jagged_restart_steps")


def restarts_have_room_for_their_ramps(config: Config) -> Problem | None:
    settings = config.optimizer
    ramps = (settings.jagged_restart_warmup_steps or 0) + (settings.jagged_restart_anneal_steps or 0)
    if settings.jagged_restart_steps is None or ramps <= settings.jagged_restart_steps:
        return None
    found = f"a restart every {settings.jagged_restart_steps} steps has no room for {ramps} steps of rise and fall"
    return at(config, "jagged_restart_steps", found, f"write {ramps} or more")


def restarts_have_a_known_schedule(config: Config) -> Problem | None:
    name = config.optimizer.lr_scheduler
    if config.optimizer.jagged_restart_steps is None or name not in FOLLOW_EVALUATIONS:
        return None
    found = f"jagged_restart_steps is written, and the rates of lr_scheduler: {name} follow evaluations"
    return at(config, "jagged_restart_steps", found, "write lr_scheduler: cosine")


def a_filter_of_gradients_is_written_once(config: Config) -> Problem | None:
    if config.optimizer.optimizer != "grokadamw":
        return None
    key = first_set(config, ("grokfast_alpha", "grokfast_lamb"))
    if key is None:
        return None
    return at(config, key, f"{key} is written, and grokadamw filters gradients itself", "write optim_args: {lamb: 2}")


def averages_take_the_place_of_decay(config: Config) -> Problem | None:
    """A remark: the average that a schedule-free optimizer keeps is what other runs decay the rate for."""
    settings = config.optimizer
    if settings.optimizer not in SCHEDULE_FREE or settings.lr_scheduler.startswith("constant"):
        return None
    found = f"{settings.optimizer} averages weights in place of a decay, and {settings.lr_scheduler} decays as well"
    return at(config, "lr_scheduler", found, "write lr_scheduler: constant; warmup_steps still holds")


OPTIMIZER_RULES: tuple[Rule, ...] = (
    optimizer_keys_have_their_optimizer,
    updates_in_backward_take_one_pass,
    restarts_have_an_interval,
    restarts_have_room_for_their_ramps,
    restarts_have_a_known_schedule,
    a_filter_of_gradients_is_written_once,
)
