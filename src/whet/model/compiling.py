"""torch.compile of the layers that repeat, one by one, in place.

All layers of a model share one graph, so it is compiled once, in a fraction of the time that the whole model takes, and
names of weights, hooks and checkpoints stay as they are. Attention over documents is called from the graph as it is: it
reads lengths on the host, which no graph can hold.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface

from whet.config import Config
from whet.config.resolve import ResolvedRun
from whet.model.attention import NAME, document_attention
from whet.model.memory.layers import repeated_layers


def compile_layers(model: torch.nn.Module, config: Config, resolved: ResolvedRun) -> int:
    """Compile each repeated layer at its next call; how many there are."""
    memory = config.memory
    AttentionInterface.register(NAME, torch.compiler.disable(document_attention))  # type: ignore[no-untyped-call]
    how: dict[str, Any] = {"backend": memory.torch_compile_backend or "inductor"}
    if memory.torch_compile_mode is not None:
        how["mode"] = memory.torch_compile_mode
    if memory.torch_compile_options:
        how["options"] = dict(memory.torch_compile_options)
    if not (resolved.pad_to_sequence_len or resolved.pad_to_multiple_of):
        how["dynamic"] = True  # one graph with the length as an argument, instead of one for each length
    layers = repeated_layers(model)
    for layer in layers:
        layer.compile(**how)
    return len(layers)


def leave_layers(model: torch.nn.Module) -> None:
    """Call the layers as they were written again."""
    for layer in repeated_layers(model):
        layer._compiled_call_impl = None
    AttentionInterface.register(NAME, document_attention)


def compiled_graphs() -> int:
    """Graphs that were compiled in this process until now; a growing number means that shapes or values change."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
