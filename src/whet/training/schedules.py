"""The learning rate over the run, by name.

A schedule is a factor of the optimizer's learning rates at each step. Those of transformers are its own; here are the
ones it lacks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from whet.config import Config
from whet.config.names import FOLLOW_EVALUATIONS
from whet.core.errors import ConfigError, Problem
from whet.core.registry import Registry
from whet.training.restarts import RestartingScheduler, Restarts

_HERE = "whet.training.schedules"

SCHEDULERS = Registry(
    "schedulers",
    {
        "linear": f"{_HERE}:stock",
        "cosine": f"{_HERE}:cosine",
        "cosine_with_restarts": f"{_HERE}:stock",
        "polynomial": f"{_HERE}:stock",
        "constant": f"{_HERE}:stock",
        "constant_with_warmup": f"{_HERE}:stock",
        "inverse_sqrt": f"{_HERE}:stock",
        "reduce_lr_on_plateau": f"{_HERE}:stock",
        "cosine_with_min_lr": f"{_HERE}:stock",
        "cosine_warmup_with_min_lr": f"{_HERE}:stock",
        "warmup_stable_decay": f"{_HERE}:stock",
        "greedy": f"{_HERE}:stock",
        "one_cycle": f"{_HERE}:one_cycle",
        "rex": f"{_HERE}:rex",
    },
)
"""Name -> a builder ``(optimizer, Schedule) -> LRScheduler``."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a schedule is made from.

    Attributes:
        total_steps, warmup_steps: optimiser steps.
        arguments: `lr_scheduler_kwargs`.
        min_ratio: lowest factor of the cosine and REX schedules.
        constant_ratio: share of the run after which the cosine stays at its lowest.
        quadratic_warmup: the factor of the warm-up is squared.
        restarts: of the rate, over the schedule; None without.
    """

    name: str
    total_steps: int
    warmup_steps: int
    arguments: dict[str, Any]
    min_ratio: float = 0.0
    constant_ratio: float = 1.0
    quadratic_warmup: bool = False
    restarts: Restarts | None = None


def schedule_from(config: Config, total_steps: int, warmup_steps: int) -> Schedule:
    """The schedule a config asks for, tried on a dummy so that a mistake is known before the run.

    Raises:
        ConfigError: no such scheduler, or arguments it does not take.
    """
    settings = config.optimizer
    schedule = Schedule(
        name=settings.lr_scheduler,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        arguments=dict(settings.lr_scheduler_kwargs or {}),
        min_ratio=settings.cosine_min_lr_ratio or 0.0,
        constant_ratio=settings.cosine_constant_lr_ratio if settings.cosine_constant_lr_ratio is not None else 1.0,
        quadratic_warmup=settings.lr_quadratic_warmup,
        restarts=restarts_from(config),
    )
    SCHEDULERS.load(schedule.name, config.where("lr_scheduler"))
    try:
        build_scheduler(_dummy_optimizer(settings.learning_rate), schedule)
    except (TypeError, ValueError) as error:
        found = f"scheduler '{schedule.name}' refuses its arguments: {error}"
        raise ConfigError(Problem(config.where("lr_scheduler_kwargs"), found, "correct lr_scheduler_kwargs")) from error
    return schedule


def build_scheduler(optimizer: torch.optim.Optimizer, schedule: Schedule) -> LRScheduler:
    """The schedule of an optimizer."""
    build: Callable[[torch.optim.Optimizer, Schedule], LRScheduler] = SCHEDULERS.load(schedule.name)
    scheduler = build(optimizer, schedule)
    return scheduler if schedule.restarts is None else RestartingScheduler(scheduler, schedule.restarts)


def restarts_from(config: Config) -> Restarts | None:
    """The restarts a config asks for."""
    settings = config.optimizer
    if settings.jagged_restart_steps is None:
        return None
    return Restarts(
        settings.jagged_restart_steps,
        settings.jagged_restart_warmup_steps or 0,
        settings.jagged_restart_anneal_steps or 0,
    )


def keeps_rates(config: Config) -> bool:
    """Whether the rates to come follow from the scheduler's state, and not from the step and the config alone."""
    name = config.optimizer.lr_scheduler
    return name == "one_cycle" or name in FOLLOW_EVALUATIONS or restarts_from(config) is not None


def learning_rates(schedule: Schedule, learning_rate: float) -> list[float]:
    """The learning rate of every step of the run, exactly: ``[0]`` is that of the first step.

    Raises:
        ConfigError: the rate depends on evaluations yet to come.
    """
    if schedule.name in FOLLOW_EVALUATIONS:
        found = f"the learning rates of '{schedule.name}' follow from evaluations that are yet to come"
        raise ConfigError(Problem("lr_scheduler", found, "choose another to know them before the run"))
    optimizer = _dummy_optimizer(learning_rate)
    scheduler = build_scheduler(optimizer, schedule)
    rates = []
    for _ in range(schedule.total_steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


def stock(optimizer: torch.optim.Optimizer, schedule: Schedule) -> LRScheduler:
    """A scheduler of transformers, by its name there."""
    from transformers import get_scheduler

    scheduler: LRScheduler = get_scheduler(
        schedule.name,
        optimizer,
        num_warmup_steps=schedule.warmup_steps,
        num_training_steps=schedule.total_steps,
        scheduler_specific_kwargs=schedule.arguments,
    )
    return scheduler


def cosine(optimizer: torch.optim.Optimizer, schedule: Schedule) -> LRScheduler:
    """Half a cosine, with a floor, an early end and a quadratic warm-up where they are asked for."""
    if (schedule.min_ratio, schedule.constant_ratio, schedule.quadratic_warmup) == (0.0, 1.0, False):
        return stock(optimizer, schedule)
    if schedule.arguments:
        raise ValueError("with cosine_min_lr_ratio, cosine_constant_lr_ratio or lr_quadratic_warmup it takes none")
    return LambdaLR(optimizer, partial(cosine_factor, schedule=schedule))


def cosine_factor(step: int, schedule: Schedule) -> float:
    """Warm-up, then ``min + (1 - min) (1 + cos(pi p)) / 2`` with p the share of the decay that is done.

    >>> schedule = Schedule("cosine", total_steps=10, warmup_steps=2, arguments={}, min_ratio=0.1)
    >>> [round(cosine_factor(step, schedule), 3) for step in (0, 1, 2, 6, 10)]
    [0.0, 0.5, 1.0, 0.55, 0.1]
    """
    if step < schedule.warmup_steps:
        return _warmup(step, schedule)
    decay_steps = schedule.total_steps * schedule.constant_ratio - schedule.warmup_steps
    done = min(1.0, (step - schedule.warmup_steps) / max(1.0, decay_steps))
    return schedule.min_ratio + (1 - schedule.min_ratio) * (1 + math.cos(math.pi * done)) / 2


def rex(optimizer: torch.optim.Optimizer, schedule: Schedule) -> LRScheduler:
    """REX (Chen, Wolfe and Kyrillidis, "REX: Revisiting Budgeted Training ...", 2021, arXiv:2107.04197)."""
    if schedule.arguments:
        raise ValueError("it takes none")
    return LambdaLR(optimizer, partial(rex_factor, schedule=schedule))


def rex_factor(step: int, schedule: Schedule) -> float:
    """Warm-up, then ``min + (1 - min) (1 - p) / (1 - p / 2)`` with p the share of the decay that is done.

    >>> schedule = Schedule("rex", total_steps=10, warmup_steps=0, arguments={})
    >>> [round(rex_factor(step, schedule), 3) for step in (0, 5, 10)]
    [1.0, 0.667, 0.0]
    """
    if step < schedule.warmup_steps:
        return _warmup(step, schedule)
    done = min(1.0, (step - schedule.warmup_steps) / max(1, schedule.total_steps - schedule.warmup_steps))
    return schedule.min_ratio + (1 - schedule.min_ratio) * (1 - done) / (1 - done / 2)


def one_cycle(optimizer: torch.optim.Optimizer, schedule: Schedule) -> LRScheduler:
    """PyTorch's OneCycleLR (Smith and Topin, arXiv:1708.07120), rising for as long as the warm-up.

    The momentum stays as it is unless `lr_scheduler_kwargs` asks for ``cycle_momentum``.
    """
    rising = schedule.warmup_steps if schedule.warmup_steps > 1 else 0  # PyTorch divides by the steps between, less one
    defaults = {"pct_start": rising / schedule.total_steps, "cycle_momentum": False}
    peaks = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, max_lr=peaks, total_steps=schedule.total_steps, **{**defaults, **schedule.arguments})


def _warmup(step: int, schedule: Schedule) -> float:
    done = step / max(1, schedule.warmup_steps)
    return done * done if schedule.quadratic_warmup else done


def _dummy_optimizer(learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=learning_rate, momentum=0.9)
