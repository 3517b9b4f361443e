"""Gradient checkpointing: a layer's activations are computed again in the backward pass instead of kept.

Of each checkpointed layer its input stays (B * T * hidden numbers), and what `selective_checkpointing` names
(Chen et al., arXiv:1604.06174; selective: Korthikanti et al., arXiv:2205.05198). Gradients are those of the run without
it, bit for bit where the kernels are deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from whet.config import Config
from whet.config.resolve import ResolvedRun
from whet.config.schema import SelectiveCheckpointing
from whet.core.errors import ModelError, Problem
from whet.model.loss import innermost
from whet.model.memory.layers import attention_types, repeated_layers

_ATTENTION = ("scaled_dot_product", "flash_attn", "flash_attention", "varlen_attn", "efficient_attention", "flex_att")
"""Parts of the names of operators that compute attention, whoever registered them."""

_MATMUL = frozenset({"mm", "addmm", "bmm", "baddbmm", "matmul", "linear"})


def install(model: torch.nn.Module, config: Config, resolved: ResolvedRun) -> str | None:
    """Checkpoint the model's layers as the config asks.

    Raises:
        ModelError: this model cannot be checkpointed, or not layer by layer where that is asked for.
    """
    if not resolved.gradient_checkpointing:
        return None
    base = innermost(model)
    assert isinstance(base, PreTrainedModel)
    reentrant = bool(resolved.gradient_checkpointing_kwargs.get("use_reentrant"))
    _switch_on(base, dict(resolved.gradient_checkpointing_kwargs), config)
    # A reentrant checkpoint has no gradient where none of its inputs has one. The other kind needs no such help, and
    # would then compute gradients of frozen embeddings that nobody reads.
    base.enable_input_require_grads() if reentrant else base.disable_input_require_grads()
    said = [] if not (every := _every(base, config)) else [every]
    if selection := _selection(config):
        said.append(_select(base, selection, dict(resolved.gradient_checkpointing_kwargs), config))
    return f"gradient_checkpointing: {'; '.join(said)}" if said else None


def _switch_on(base: PreTrainedModel, arguments: dict[str, Any], config: Config) -> None:
    # Renamed in transformers 5.20; the old name warns there and is the only one in 5.17.
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    try:
        enable(arguments)
    except ValueError as error:
        found = f"gradient_checkpointing: {type(base).__name__} cannot do it"
        raise ModelError(_problem(config, "gradient_checkpointing", found, "remove the line")) from error


def _every(base: PreTrainedModel, config: Config) -> str | None:
    """Leave all but every n-th layer out."""
    every = config.memory.gradient_checkpointing_every
    if every == 1:
        return None
    layers = repeated_layers(base)
    if not layers:
        found = f"gradient_checkpointing_every: the layers of {type(base).__name__} cannot be told apart"
        raise ModelError(_problem(config, "gradient_checkpointing_every", found, "remove the line"))
    for index, layer in enumerate(layers):
        layer.gradient_checkpointing = index % every == 0  # type: ignore[assignment]  # of transformers
    return f"{-(-len(layers) // every)} of {len(layers)} layers are computed again, the others keep their activations"


# --- selective: some results are kept inside a checkpointed layer ----------------------------------------------------


def _selection(config: Config) -> SelectiveCheckpointing | None:
    written = config.memory.selective_checkpointing
    if written is True:
        return SelectiveCheckpointing()
    return written or None


def _select(base: PreTrainedModel, selection: SelectiveCheckpointing, arguments: dict[str, Any], config: Config) -> str:
    assert not selection.offload, "refused by a rule"
    layers = repeated_layers(base)
    recomputed = set(selection.recompute_layer_types) - (
        {"sliding_attention"} if selection.save_sliding_window else set()
    )
    chosen = [
        layer
        for layer, kind in zip(layers, attention_types(base, len(layers)), strict=True)
        if kind not in recomputed and layer.gradient_checkpointing
    ]
    if not chosen:
        found = f"selective_checkpointing: no layer of {type(base).__name__} is left to keep anything of"
        fix = "change recompute_layer_types, or remove selective_checkpointing"
        raise ModelError(_problem(config, "selective_checkpointing", found, fix))
    contexts = partial(create_selective_checkpoint_contexts, keep_policy(_operators(selection.save, config)))
    for layer in chosen:
        layer._gradient_checkpointing_func = partial(checkpoint, context_fn=contexts, **arguments)  # type: ignore[assignment]
    return f"results of {', '.join(selection.save)} are kept in {len(chosen)} of {len(layers)} layers"


def keep_policy(keeps: Callable[[Any], bool]) -> Callable[..., CheckpointPolicy]:
    """A policy of torch.utils.checkpoint that keeps the results of the operators for which ``keeps`` is true."""
    known: dict[Any, CheckpointPolicy] = {}

    def policy(_: Any, operator: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
        found = known.get(operator)
        if found is None:
            found = CheckpointPolicy.MUST_SAVE if keeps(operator) else CheckpointPolicy.PREFER_RECOMPUTE
            known[operator] = found
        return found

    return policy


def computes_attention(operator: Any) -> bool:
    """Whether an operator of the dispatcher is an attention kernel's forward pass.

    >>> computes_attention(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default)
    True
    >>> computes_attention(torch.ops.aten.mm.default)
    False
    """
    name = str(operator)
    return "backward" not in name and any(part in name for part in _ATTENTION)


def _operators(names: Collection[str], config: Config) -> Callable[[Any], bool]:
    """Whether an operator's result is kept, by the names of `selective_checkpointing.save`."""
    packets = {packet for name in names if name not in ("attention", "matmul") for packet in [_packet(name, config)]}
    attention, matmul = "attention" in names, "matmul" in names

    def keeps(operator: Any) -> bool:
        if attention and computes_attention(operator):
            return True
        packet = getattr(operator, "overloadpacket", operator)
        if matmul and str(packet).removeprefix("aten.") in _MATMUL:
            return True
        return packet in packets

    return keeps


def _packet(name: str, config: Config) -> Any:
    """``aten.mm`` -> torch.ops.aten.mm."""
    namespace, _, rest = name.removeprefix("torch.ops.").partition(".")
    found = getattr(getattr(torch.ops, namespace), rest.removesuffix(".default"), None) if rest else None
    if found is None:
        message = f"selective_checkpointing.save: '{name}' is no operator of torch"
        fix = "write attention, matmul, or an operator such as aten.silu"
        raise ModelError(_problem(config, "selective_checkpointing", message, fix))
    return found


def _problem(config: Config, key: str, found: str, fix: str) -> Problem:
    return Problem(config.where(key), found, fix, key)
