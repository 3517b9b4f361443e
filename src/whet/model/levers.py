"""What makes a model faster or smaller in training without changing its numbers, in the order in which it is done.

A lever is ``install(model, config, resolved) -> str | None``: it looks at the model with its adapter, does what it is
for where that applies, and returns the sentence that the run announces; None where there is nothing to say. What the
user asked for by name and cannot have is an error, never a sentence.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from whet.config import Config
    from whet.config.resolve import ResolvedRun

LEVERS: tuple[str, ...] = (
    "whet.model.norms_in_float32:install",
    "whet.model.qat:install",
    "whet.model.float8:install",
    "whet.model.memory.host_allocator:install",
    "whet.model.kernels.moe_install:install",
    "whet.model.kernels.install_lora:install",
    "whet.model.kernels.gated_mlp:install",
    "whet.model.kernels.layers:install",
    "whet.model.memory.tiled_mlp:install",
    "whet.model.loss_plan:install",
    "whet.model.memory.checkpointing:install",
    "whet.model.memory.offloading:install",
    "whet.model.memory.layer_offloading:install",
)
"""``"module:function"``, in order."""

FOR_ADAPTERS = frozenset({"whet.model.kernels.install_lora:install"})
"""Those that have nothing to do without an adapter, and import PEFT; a run without one does not."""


def install_levers(model: torch.nn.Module, config: Config, resolved: ResolvedRun) -> list[str]:
    """Every lever, one after the other; what each had to say.

    Raises:
        ModelError: the config asks for a lever that this model, machine or combination cannot have.
    """
    said = []
    for lever in LEVERS if config.adapter.adapter else (lever for lever in LEVERS if lever not in FOR_ADAPTERS):
        module, function = lever.split(":")
        sentence = getattr(importlib.import_module(module), function)(model, config, resolved)
        if sentence is not None:
            said.append(sentence)
    return said
