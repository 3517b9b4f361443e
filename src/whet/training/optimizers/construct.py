"""Calling an optimizer's class: which of the config's values it takes, and what is wrong with those it does not."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch

from whet.config import Config
from whet.core.errors import ConfigError, Problem
from whet.core.nearest import suggestion

Groups = list[dict[str, Any]]
OWN_KEYS = {"lr": "write learning_rate", "weight_decay": "write weight_decay, a key of its own"}
"""Arguments that are keys of their own in the YAML; every group has them already -> what to write."""

_GIVEN = frozenset({"params", "model"})


def imported(target: str) -> Any:
    """What ``"module:attribute"`` names."""
    module, attribute = target.split(":")
    return getattr(importlib.import_module(module), attribute)


def construct(
    make: type[torch.optim.Optimizer], first: Any, arguments: Mapping[str, Any], config: Config
) -> torch.optim.Optimizer:
    """``make(first, **arguments, **optim_args)``.

    Args:
        first: parameter groups; the model, for an optimizer that hooks into its backward pass.

    Raises:
        ConfigError: one of `optim_args` is no argument of the class, or it refuses a value.
    """
    own = dict(config.optimizer.optim_args or {})
    check_arguments(make.__name__, own, known_arguments(make), config)
    return called(make, first, {**arguments, **own}, config)


def known_arguments(make: type[torch.optim.Optimizer]) -> set[str]:
    """What `optim_args` may hold."""
    return set(inspect.signature(make).parameters) - OWN_KEYS.keys() - _GIVEN


def check_arguments(name: str, own: Mapping[str, Any], known: set[str], config: Config) -> None:
    """
    Raises:
        ConfigError: one of `optim_args` is not ``known``.
    """
    problems = [
        Problem(
            config.where(("optim_args", each)),
            f"'{each}' is no argument of {name}" if each not in OWN_KEYS else f"optim_args.{each} would change nothing",
            OWN_KEYS.get(each) or suggestion(each, known),
        )
        for each in sorted(own.keys() - known)
    ]
    if problems:
        raise ConfigError(problems)


def called(
    make: type[torch.optim.Optimizer], first: Any, arguments: Mapping[str, Any], config: Config
) -> torch.optim.Optimizer:
    """
    Raises:
        ConfigError: the class refuses a value.
    """
    try:
        return make(first, **arguments)
    except (ValueError, TypeError, AssertionError) as error:
        found = f"{make.__name__} refuses its arguments: {error}"
        raise ConfigError(Problem(config.where("optim_args"), found, "correct the value")) from error


def betas(config: Config, default: tuple[float, ...]) -> tuple[float, ...]:
    """The decay rates of the running means: ``default`` where nothing is written."""
    settings = config.optimizer
    written = (settings.adam_beta1, settings.adam_beta2, settings.adam_beta3)
    return tuple(usual if value is None else value for usual, value in zip(default, written, strict=False))
