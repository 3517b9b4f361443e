"""What a run is, kept in each of its checkpoints, and obeyed where it was allowed to change when it goes on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from whet.config import Config
from whet.config.changes import judged, names_in
from whet.config.differences import differences
from whet.config.facts import RunFacts, read_facts, write_facts
from whet.config.resolve import ResolvedRun
from whet.core.errors import ConfigError, Problem
from whet.core.log import say
from whet.model.identity import identity_of, write_identity
from whet.training.callbacks.saving import SaveBeside
from whet.training.optimizers.loading import after_loading
from whet.training.schedules import keeps_rates

_SCHEDULE = frozenset(
    {"num_epochs", "max_steps", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "lr_quadratic_warmup"}
    | {"cosine_min_lr_ratio", "cosine_constant_lr_ratio", "jagged_restart_warmup_steps", "jagged_restart_anneal_steps"}
    | {"batch_size", "micro_batch_size", "gradient_accumulation_steps", "data", "datasets"}
)
_RATES = frozenset(
    {"learning_rate", "embedding_lr", "embedding_lr_scale", "loraplus_lr_ratio", "loraplus_lr_embedding"}
)
_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "weight_decay": ("weight_decay",),
    "adam_beta1": ("betas", "beta1"),
    "adam_beta2": ("betas", "beta2"),
    "adam_beta3": ("betas", "beta3"),
    "adam_epsilon": ("eps",),
    "adam_epsilon2": ("eps",),
    "dion_momentum": ("mu", "momentum"),
}
"""Key -> what optimizers call it in their groups. `optim_args` and `dion_lr` are looked up when they change."""


class KeepFacts(SaveBeside):
    """Writes the facts of the run into each checkpoint, and for an adapter what its base is.

    A checkpoint restores the settings of optimizer and schedule with their state, so a value that the user has
    allowed to change would be read and then lost. This gives them back.

    Args:
        trainer: of the run.
        resolved: the run.
        facts: what is to be kept; asked for at each save, as the identity of the base becomes known on the way.
    """

    def __init__(self, trainer: Trainer, resolved: ResolvedRun, facts: Callable[[], RunFacts]) -> None:
        super().__init__(self._take, self._compare)
        self._trainer, self._resolved, self._facts = trainer, resolved, facts
        self._settings: _Settings | None = None

    def _take(self) -> Callable[[Path], None]:
        return partial(_write, facts=self._facts(), of_adapter=_is_beside_an_adapter(self._resolved))

    def _compare(self, checkpoint: Path) -> None:
        """Before a run goes on: what of the optimizer and the schedule was allowed to change.

        Raises:
            ConfigError: the rates are in the checkpoint, and cannot become others.
        """
        then = read_facts(checkpoint)
        if then is None:
            return
        config = self._resolved.config
        allowed = judged(differences(then, self._facts()), names_in(config.loop.allow_change)).allowed
        changed = {change.key.partition(".")[0] for change in allowed}
        if keeps_rates(config) and (keys := changed & (_SCHEDULE | _RATES)):
            raise _cannot_be_rescheduled(config, keys)
        if changed & (_SCHEDULE | _RATES | {*_SETTINGS, "optim_args", "dion_lr"}):
            self._settings = _Settings(frozenset(changed), dict(config.optimizer.optim_args or {}))
            _watch_creation(self._trainer, self._settings)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._settings is not None:
            scheduler = kwargs["lr_scheduler"]
            self._settings.reschedule(getattr(scheduler, "scheduler", scheduler), self._resolved)


def _cannot_be_rescheduled(config: Config, keys: Collection[str]) -> ConfigError:
    name, listed = config.optimizer.lr_scheduler, ", ".join(sorted(keys))
    found = f"{listed}: the schedule '{name}' keeps its rates in the checkpoint and cannot be changed on its way"
    fix = "write the old values, or begin a new run from the weights in the checkpoint, in another output_dir"
    return ConfigError(Problem(config.where("lr_scheduler"), found, fix))


def _is_beside_an_adapter(resolved: ResolvedRun) -> bool:
    """Whether what is saved is an adapter that needs its base; with `relora` it is a full model."""
    adapter = resolved.config.adapter
    return adapter.adapter is not None and not adapter.relora


def _write(folder: Path, *, facts: RunFacts, of_adapter: bool) -> None:
    write_facts(folder, facts)
    base = identity_of(facts.identities.get("base_model"))
    if of_adapter and base is not None:
        write_identity(folder, base)


@dataclass
class _Settings:
    """Settings of the config, and how the optimizer and its schedule come back to them after a checkpoint is loaded.

    Attributes:
        changed: the keys.
        arguments: `optim_args`.
        groups: the settings of each group as the optimizer was made.
    """

    changed: frozenset[str]
    arguments: Mapping[str, Any]
    groups: tuple[dict[str, Any], ...] = ()

    def remember(self, optimizer: torch.optim.Optimizer) -> None:
        """A new optimizer, before any state is loaded into it."""
        self.groups = tuple(
            {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
        )
        after_loading(optimizer, lambda _: self.give_back(optimizer))

    def give_back(self, optimizer: torch.optim.Optimizer) -> None:
        """What the checkpoint has replaced and the user has changed."""
        names = {name for key in self.changed for name in _SETTINGS.get(key, ())}
        if "optim_args" in self.changed:
            names |= self.arguments.keys()
        for group, own in zip(optimizer.param_groups, self.groups, strict=True):
            group.update({name: own[name] for name in names if name in own})
            if self.changed & (_RATES | {"dion_lr"}):
                group["initial_lr"] = own["lr"]

    def reschedule(self, scheduler: Any, resolved: ResolvedRun) -> None:
        """The learning rate of the step that comes next, from the settings of now."""
        if keeps_rates(resolved.config):
            return  # nothing that would change them was let through
        groups = scheduler.optimizer.param_groups
        before = float(groups[0]["lr"])
        if self.changed & (_RATES | {"dion_lr"}):
            scheduler.base_lrs = [group["initial_lr"] for group in groups]
        for group, base, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            rate = base * factor(scheduler.last_epoch)
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        scheduler._last_lr = [float(group["lr"]) for group in groups]
        after = scheduler._last_lr[0]
        if resolved.hardware.rank == 0 and before != after:
            say(f"the next step's learning rate was to be {before:.3g} and is now {after:.3g}")


def _watch_creation(trainer: Trainer, settings: _Settings) -> None:
    """Remember the settings of the optimizer when the trainer makes it."""
    create = trainer.create_optimizer

    def create_and_remember(*arguments: Any, **options: Any) -> torch.optim.Optimizer:
        is_new = trainer.optimizer is None
        optimizer: torch.optim.Optimizer = create(*arguments, **options)
        if is_new:
            settings.remember(optimizer)
        return optimizer

    trainer.create_optimizer = create_and_remember
