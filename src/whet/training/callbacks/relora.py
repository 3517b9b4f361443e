"""ReLoRA (Lialin et al., 2023, arXiv:2307.05695): the adapter is merged into the base again and again, and starts anew.

Each adapter is of low rank; their sum need not be. The base weights change, so every checkpoint holds those of the
adapted layers, in ``relora/base.safetensors``, and the result of the run is a full model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from whet.config import Config
from whet.core.errors import ArtefactError, ModelError, Problem
from whet.core.log import say
from whet.model.loss import innermost

FILE = Path("relora") / "base.safetensors"
PRUNE_RATIO, RESET_RATIO = 0.9, 0.999
"""Share of the optimizer's state that a restart sets to 0: by magnitude or at random, and under `reset`."""
_ADAPTER = "default"
_STATES = ("exp_avg", "exp_avg_sq")


class ReLoRA(TrainerCallback):
    """Restarts the adapter every so many steps.

    Args:
        model: with its adapter.
        every: optimiser steps between restarts.
        method: which entries of the optimizer's state become 0: "magnitude" (the smallest), "random", or "reset"
            (at random, nearly all).
        ratio: share of them.
        start: how matrices A start, as PEFT's ``init_lora_weights``.
        seed: of new matrices and random pruning, together with the step, so that a resumed run draws the same.
        on_cpu: merge there, a layer at a time.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        every: int,
        *,
        method: str = "magnitude",
        ratio: float = PRUNE_RATIO,
        start: bool | str = True,
        seed: int = 0,
        on_cpu: bool = False,
    ) -> None:
        self._layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
        self._every, self._method, self._ratio = every, method, ratio
        self._start, self._seed, self._on_cpu = start, seed, on_cpu

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        assert optimizer is not None
        if state.global_step % self._every == 0:
            with _seeded(self._seed * 1_000_003 + state.global_step, args.device):
                self.restart(optimizer)

    @torch.no_grad()
    def restart(self, optimizer: torch.optim.Optimizer) -> None:
        """Merge, start anew, and prune what the optimizer knows of the old adapter."""
        for layer in self._layers.values():
            with _merged_on_cpu(layer, self._on_cpu):
                layer.merge()
            layer.merged_adapters.clear()  # what was merged stays in the base
            layer.reset_lora_parameters(_ADAPTER, self._start)
            for name, parameter in layer.named_parameters():
                if "lora_" not in name:
                    continue
                for moment in (optimizer.state.get(parameter, {}).get(each) for each in _STATES):
                    if moment is not None:
                        prune(moment, self._ratio, self._method)

    def take(self) -> Callable[[Path], None]:
        """The base weights of the adapted layers, as a function that writes them into a checkpoint's folder."""
        weights = {
            name: weight.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, weight in self._weights().items()
        }

        def write(checkpoint: Path) -> None:
            path = checkpoint / FILE
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(weights, path)

        return write

    @torch.no_grad()
    def restore(self, checkpoint: Path) -> None:
        """Put the base weights of a checkpoint into the model.

        Raises:
            ArtefactError: the checkpoint has none, or those of another model.
        """
        path = checkpoint / FILE
        if not path.is_file():
            found = f"{checkpoint} has no {FILE}, so it is not of a run with relora"
            raise ArtefactError(Problem("", found, "resume with the config that the run had"))
        saved, weights = load_file(path), self._weights()
        if saved.keys() != weights.keys():
            found = f"{path} is of other layers than the adapter's"
            raise ArtefactError(Problem("", found, "resume with the config that the run had"))
        for name, weight in weights.items():
            weight.copy_(saved[name])

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: layer.get_base_layer().weight for name, layer in self._layers.items()}


def prune(moment: torch.Tensor, ratio: float, method: str) -> None:
    """Set a share of a state's entries to 0, in place.

    >>> moment = torch.tensor([3.0, -1.0, 2.0, -4.0])
    >>> prune(moment, 0.5, "magnitude")
    >>> moment
    tensor([ 3.,  0.,  0., -4.])
    """
    if method == "magnitude":
        count = int(ratio * moment.numel())
        if count:
            smallest = moment.abs().flatten().topk(count, largest=False).indices
            moment.view(-1)[smallest] = 0
        return
    drawn = torch.rand(moment.shape, device=moment.device)
    moment.masked_fill_(drawn < ratio, 0)


def relora(model: torch.nn.Module, config: Config) -> ReLoRA:
    """The callback that a config with `relora` asks for.

    Raises:
        ModelError: an adapted layer shares its weight with one that is not adapted.
    """
    section, every = config.adapter, config.optimizer.jagged_restart_steps
    assert every is not None, "a rule of the config sees to it"
    is_reset = section.relora_prune_method == "reset"
    ratio = section.relora_prune_ratio
    if ratio is None:
        ratio = RESET_RATIO if is_reset else PRUNE_RATIO
    callback = ReLoRA(
        model,
        every,
        method=section.relora_prune_method,
        ratio=ratio,
        start=True if section.peft_init_lora_weights is None else section.peft_init_lora_weights,
        seed=config.loop.seed,
        on_cpu=section.relora_cpu_offload,
    )
    base: Any = innermost(model)
    head = base.get_output_embeddings()
    shared = base.get_input_embeddings().weight
    if head is not None and head.weight is shared and any(weight is shared for weight in callback._weights().values()):
        found = "relora: embedding and head are one tensor in the base model, and merging into one changes the other"
        raise ModelError(Problem(config.where("relora"), found, "take both out of lora_target_modules", "relora"))
    say(f"relora: merged into the base and started anew every {every} steps; {ratio:.1%} of Adam's state becomes 0")
    return callback


@contextmanager
def _merged_on_cpu(layer: torch.nn.Module, wanted: bool) -> Iterator[None]:
    device = next(layer.parameters()).device
    if wanted:
        layer.to("cpu")
    yield
    if wanted:
        layer.to(device)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random draws of a seed, with the run's own random state as it was afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed % 2**63)
        yield
