"""LISA (Pan et al., 2024, arXiv:2403.17919): of the layers, only a few drawn at random are trained at a time.

Embeddings, final norm and head are always trained. A layer that is put to rest gives up its optimizer state, which is
what saves the memory; it starts anew when it is drawn again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from whet.config import Config
from whet.core.errors import ConfigError, Problem
from whet.core.log import say
from whet.model.loss import innermost


class LayerSampling(TrainerCallback):
    """Which layers are trained is a function of (seed, step), so that a resumed run draws the same.

    Args:
        layers: of the model, in order.
        num_trained: how many of them at a time.
        interval: optimiser steps until the next draw.
        seed: of the draws.
    """

    def __init__(self, layers: Sequence[torch.nn.Module], num_trained: int, interval: int, seed: int) -> None:
        self._layers, self._num_trained = layers, num_trained
        self._interval, self._seed = interval, seed
        self._draw: int | None = None

    def trained_at(self, step: int) -> list[int]:
        """Numbers of the layers that optimiser step ``step`` (from 0) trains."""
        draw = random.Random(self._seed * 1_000_003 + step // self._interval)
        return sorted(draw.sample(range(len(self._layers)), self._num_trained))

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        assert optimizer is not None
        draw = state.global_step // self._interval
        if draw == self._draw:
            return
        self._draw = draw
        trained = self.trained_at(state.global_step)
        for number, layer in enumerate(self._layers):
            for parameter in layer.parameters():
                parameter.requires_grad_(number in trained)
                if number not in trained:
                    parameter.grad = None
                    optimizer.state.pop(parameter, None)


def layer_sampling(model: torch.nn.Module, config: Config) -> LayerSampling:
    """The callback that a config with `lisa_n_layers` asks for.

    Raises:
        ConfigError: the model has no such list of layers, or fewer than are to be trained.
    """
    section = config.model
    assert section.lisa_n_layers is not None
    assert section.lisa_step_interval is not None
    path = section.lisa_layers_attribute
    try:
        layers = attrgetter(path)(innermost(model))
    except AttributeError:
        layers = None
    if not isinstance(layers, torch.nn.ModuleList):
        lists = [name for name, module in innermost(model).named_modules() if isinstance(module, torch.nn.ModuleList)]
        found = f"lisa_layers_attribute: the model has no list of layers '{path}'"
        fix = f"write {' or '.join(lists[:3]) or 'the path of a ModuleList'}"
        raise ConfigError(Problem(config.where("lisa_layers_attribute"), found, fix, "lisa_layers_attribute"))
    if section.lisa_n_layers > len(layers):
        found = f"lisa_n_layers is {section.lisa_n_layers}, and '{path}' has {len(layers)} layers"
        fix = f"write at most {len(layers)}"
        raise ConfigError(Problem(config.where("lisa_n_layers"), found, fix, "lisa_n_layers"))
    say(f"lisa: {section.lisa_n_layers} of {len(layers)} layers, drawn anew every {section.lisa_step_interval} steps")
    return LayerSampling(list(layers), section.lisa_n_layers, section.lisa_step_interval, config.loop.seed)
