"""How many optimiser steps a run takes, and at which of them it logs, evaluates and saves: exactly, in advance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from whet.config import Config
from whet.config.resolve import ResolvedRun
from whet.core.errors import ConfigError, Problem
from whet.data.mixing import DatasetShare
from whet.data.order import Order

Strategy = Literal["no", "steps", "epoch", "best"]


@dataclass(frozen=True, slots=True)
class Interval:
    """When something happens: never, every ``steps`` steps, at the end of every epoch, or when the model is the best.

    Attributes:
        steps: at least 1 when ``strategy`` is "steps"; else None.
    """

    strategy: Strategy
    steps: int | None = None

    def happens_at(self, total_steps: int, steps_per_epoch: int) -> list[int]:
        """The steps at which it happens, the last step of the run included. Empty for "no" and "best".

        >>> Interval("steps", 4).happens_at(total_steps=10, steps_per_epoch=5)
        [4, 8, 10]
        >>> Interval("epoch").happens_at(total_steps=12, steps_per_epoch=5)
        [5, 10, 12]
        """
        if self.strategy in ("no", "best"):
            return []
        every = self.steps if self.strategy == "steps" else steps_per_epoch
        assert every is not None
        return sorted({*range(every, total_steps + 1, every), total_steps})


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The run in numbers.

    Of a stream nobody knows how many rows, tokens and targets it has: there these are None, and the run is one epoch.

    Attributes:
        num_rows: rows of an epoch (packs, or samples when not packed).
        rows_per_step: rows of a full optimiser step over all ranks and micro-batches.
        steps_per_epoch: optimiser steps of an epoch; the last may see fewer rows.
        total_steps: optimiser steps of the run.
        warmup_steps: steps in which the learning rate rises.
        tokens: tokens that the run's steps compute, padding not counted.
        supervised_tokens: targets among them.
        shares: what the run sees of each dataset.
        logging: always by steps.
        saving: of checkpoints.
        evaluating: "no" without a validation set.
    """

    num_rows: int | None
    rows_per_step: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    tokens: int | None
    supervised_tokens: int | None
    shares: tuple[DatasetShare, ...]
    logging: Interval
    saving: Interval
    evaluating: Interval

    @property
    def num_epochs(self) -> float:
        """Epochs the steps amount to."""
        return self.total_steps / self.steps_per_epoch

    @property
    def save_steps(self) -> list[int]:
        return self.saving.happens_at(self.total_steps, self.steps_per_epoch)

    @property
    def eval_steps(self) -> list[int]:
        return self.evaluating.happens_at(self.total_steps, self.steps_per_epoch)


def plan_steps(
    resolved: ResolvedRun,
    order: Order,
    supervised: npt.ArrayLike,
    *,
    has_validation: bool,
) -> StepPlan:
    """Count the run.

    Args:
        order: of the training samples.
        supervised: int[N], targets of each training sample.
        has_validation: whether there is anything to evaluate on.

    Raises:
        ConfigError: the intervals asked for do not fit together, or an epoch has no row.
    """
    config = resolved.config
    accumulation, world_size = resolved.gradient_accumulation_steps, resolved.world_size
    steps_per_epoch = order.steps_per_epoch(accumulation, world_size)
    if steps_per_epoch == 0:
        raise ConfigError(Problem(config.where("datasets"), "there is no sample to train on", "check the datasets"))
    total_steps = count_steps(steps_per_epoch, config.loop.num_epochs, config.loop.max_steps)
    tokens, supervised_tokens = count_tokens(order, supervised, total_steps, accumulation, world_size)
    plan = StepPlan(
        num_rows=order.num_rows,
        rows_per_step=order.rows_per_step(accumulation, world_size),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        warmup_steps=count_warmup(total_steps, config.optimizer.warmup_steps, config.optimizer.warmup_ratio),
        tokens=tokens,
        supervised_tokens=supervised_tokens,
        shares=order.mix.shares(order.times_seen(total_steps, accumulation, world_size), order.lengths),
        logging=Interval("steps", count_logging(total_steps, config.loop.logging_steps)),
        saving=_saving(config, steps_per_epoch, total_steps),
        evaluating=_evaluating(config, steps_per_epoch, total_steps) if has_validation else Interval("no"),
    )
    problems = list(_conflicts(config, plan))
    if problems:
        raise ConfigError(problems)
    return plan


def plan_stream(resolved: ResolvedRun, *, has_validation: bool) -> StepPlan:
    """What can be said of a run on a stream before it has read anything.

    Raises:
        ConfigError: the intervals asked for do not fit together.
    """
    config, total_steps = resolved.config, resolved.config.loop.max_steps
    assert total_steps is not None, "a rule of the config sees to it"
    plan = StepPlan(
        num_rows=None,
        rows_per_step=resolved.global_batch_size,
        steps_per_epoch=total_steps,
        total_steps=total_steps,
        warmup_steps=count_warmup(total_steps, config.optimizer.warmup_steps, config.optimizer.warmup_ratio),
        tokens=None,
        supervised_tokens=None,
        shares=(),
        logging=Interval("steps", count_logging(total_steps, config.loop.logging_steps)),
        saving=_saving(config, total_steps, total_steps),
        evaluating=_evaluating(config, total_steps, total_steps) if has_validation else Interval("no"),
    )
    problems = list(_conflicts(config, plan))
    if problems:
        raise ConfigError(problems)
    return plan


def count_steps(steps_per_epoch: int, num_epochs: float, max_steps: int | None) -> int:
    """Optimiser steps of a run; ``max_steps`` decides where it is given.

    >>> count_steps(10, num_epochs=1.25, max_steps=None), count_steps(10, num_epochs=1.25, max_steps=3)
    (13, 3)
    """
    if max_steps is not None and max_steps > 0:
        return max_steps
    return math.ceil(num_epochs * steps_per_epoch)


def count_warmup(total_steps: int, warmup_steps: int | None, warmup_ratio: float | None) -> int:
    """Steps of warm-up: as asked, or the smaller of 3% of the run and 100.

    >>> count_warmup(1000, None, None), count_warmup(10_000, None, None), count_warmup(1000, None, 0.1)
    (30, 100, 100)
    """
    if warmup_steps is not None:
        return int(warmup_steps)
    if warmup_ratio is not None:
        return int(warmup_ratio * total_steps)
    return min(int(0.03 * total_steps), 100)


def count_logging(total_steps: int, logging_steps: int | None) -> int:
    """Steps between two logged figures: as asked, or 0.5% of the run, at least 1 and at most 10.

    >>> count_logging(50, None), count_logging(1000, None), count_logging(10_000, None)
    (1, 5, 10)
    """
    return logging_steps if logging_steps else max(min(int(0.005 * total_steps), 10), 1)


def _saving(config: Config, steps_per_epoch: int, total_steps: int) -> Interval:
    loop = config.loop
    return _interval(loop.save_strategy, loop.save_steps, loop.saves_per_epoch, steps_per_epoch, total_steps)


def _evaluating(config: Config, steps_per_epoch: int, total_steps: int) -> Interval:
    loop = config.loop
    return _interval(loop.eval_strategy, loop.eval_steps, loop.evals_per_epoch, steps_per_epoch, total_steps)


def _interval(
    strategy: str | None, steps: float | None, per_epoch: float | None, steps_per_epoch: int, total_steps: int
) -> Interval:
    """Every so many steps (below 1: a share of the run), so often an epoch, or by strategy; by default every epoch."""
    if strategy in ("no", "epoch", "best"):
        return Interval(strategy)  # type: ignore[arg-type]  # the three literals just tested
    if steps == 0 or per_epoch == 0:
        return Interval("no")
    if steps is not None:
        return Interval("steps", math.ceil(steps * total_steps) if steps < 1 else int(steps))
    if per_epoch is not None:
        return Interval("steps", max(1, math.ceil(steps_per_epoch / per_epoch)))
    return Interval("epoch")


def _conflicts(config: Config, plan: StepPlan) -> Iterator[Problem]:
    """What transformers would refuse later, told now."""
    loop = config.loop
    if loop.early_stopping_patience and plan.evaluating.strategy == "no":
        yield Problem(
            config.where("early_stopping_patience"),
            "early stopping needs evaluations, and this run has none",
            "set val_set_size or test_datasets, and eval_steps or evals_per_epoch",
        )
    if not loop.load_best_model_at_end:
        return
    where = config.where("load_best_model_at_end")
    if plan.evaluating.strategy == "no":
        yield Problem(where, "no evaluation says which model is best", "set val_set_size or test_datasets")
    elif plan.saving.strategy not in ("best", plan.evaluating.strategy):
        found = f"saving is by '{plan.saving.strategy}' and evaluating by '{plan.evaluating.strategy}'"
        yield Problem(where, found, "give save_steps and eval_steps (or saves_per_epoch and evals_per_epoch) one value")
    elif plan.saving.steps and plan.evaluating.steps and plan.saving.steps % plan.evaluating.steps:
        found = f"checkpoints every {plan.saving.steps} steps are not all evaluated every {plan.evaluating.steps} steps"
        yield Problem(where, found, "make save_steps a multiple of eval_steps")


def count_tokens(
    order: Order, supervised: npt.ArrayLike, num_steps: int, accumulation: int, world_size: int = 1
) -> tuple[int, int]:
    """Tokens and targets of a run's first ``num_steps`` optimiser steps, exactly.

    Args:
        supervised: int[N], targets of each sample.
    """
    times_seen = order.times_seen(num_steps, accumulation, world_size)
    return int(times_seen @ order.lengths), int(times_seen @ np.asarray(supervised, dtype=np.int64))
