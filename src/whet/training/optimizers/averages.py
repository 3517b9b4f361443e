"""Optimizers that train one set of weights and keep their average for use (Defazio et al., 2024, arXiv:2405.15682).

In the model are the weights that are trained; `use_averages` puts the average there, `optimizer.train()` (which
transformers calls before each forward pass) takes it out again. The package computes either set from the other, which
rounds: each evaluation and each checkpoint would change the run in its last bits. So the trained weights are kept while
the average is in use, put back as they were, and held by checkpoints beside the average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerControl, TrainerState, TrainingArguments

from whet.training.callbacks.saving import SaveBeside

FILE = "whet-trained-weights.safetensors"
_KEPT = "trained_weights"


def use_averages(optimizer: torch.optim.Optimizer | None) -> None:
    """Put the weights for use into the model; nothing to do for an optimizer that keeps no others."""
    switch = getattr(optimizer, "eval", None)
    if callable(switch):
        switch()


def keep_trained_weights(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer put the weights that it trains back bit for bit, from a copy while averages are in use."""
    switchable: Any = optimizer
    use, train = switchable.eval, switchable.train
    setattr(optimizer, _KEPT, None)

    @torch.no_grad()
    def keep_and_use() -> None:
        if _is_training(optimizer):
            setattr(optimizer, _KEPT, [parameter.detach().clone() for parameter in _parameters(optimizer)])
        use()

    @torch.no_grad()
    def train_as_before() -> None:
        was_training = _is_training(optimizer)
        train()
        kept = getattr(optimizer, _KEPT)
        setattr(optimizer, _KEPT, None)
        if kept is not None and not was_training:
            for parameter, before in zip(_parameters(optimizer), kept, strict=True):
                parameter.copy_(before)

    switchable.eval, switchable.train = keep_and_use, train_as_before


def _is_training(optimizer: torch.optim.Optimizer) -> bool:
    return bool(optimizer.param_groups[0]["train_mode"])


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[torch.nn.Parameter]:
    for group in optimizer.param_groups:
        yield from group["params"]


class Averages(SaveBeside):
    """Has the weights for use in the model when a run ends, and the trained ones in its checkpoints.

    Args:
        optimizer: the run's, once there is one.
        model: the model that is trained.
    """

    def __init__(self, optimizer: Callable[[], torch.optim.Optimizer | None], model: torch.nn.Module) -> None:
        super().__init__(self._take, self._hold)
        self._optimizer, self._model = optimizer, model
        self._restored: dict[str, torch.Tensor] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._restored is None:
            return
        names = self._names()
        optimizer = self._inner()
        if self._restored.keys() == set(names.values()):
            kept = [self._restored[names[each]].to(each.device) for each in _parameters(optimizer)]
            setattr(optimizer, _KEPT, kept)
        self._restored = None

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Each run ends with the end of an epoch, whole or not."""
        use_averages(self._optimizer())

    def _take(self) -> Callable[[Path], None]:
        """The trained weights, while those for use are in the model, as a function that writes them."""
        names, optimizer = self._names(), self._inner()
        kept: list[torch.Tensor] | None = getattr(optimizer, _KEPT, None)
        weights = {
            names[parameter]: tensor.to("cpu", copy=True).contiguous()
            for parameter, tensor in zip(_parameters(optimizer), kept or (), strict=kept is not None)
            if type(tensor) is torch.Tensor  # of sharded models each rank has a part, and keeps it to itself
        }

        def write(checkpoint: Path) -> None:
            if weights:
                save_file(weights, checkpoint / FILE)

        return write

    def _hold(self, checkpoint: Path) -> None:
        """Hold a checkpoint's trained weights ready for the first step."""
        path = checkpoint / FILE
        self._restored = load_file(path) if path.is_file() else None

    def _inner(self) -> torch.optim.Optimizer:
        optimizer: Any = self._optimizer()
        inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        return inner

    def _names(self) -> dict[torch.nn.Parameter, str]:
        return {parameter: name for name, parameter in self._model.named_parameters() if parameter.requires_grad}
