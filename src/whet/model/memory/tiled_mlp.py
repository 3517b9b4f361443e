"""An MLP in shards of the row: its wide activations exist for one shard at a time, forward and backward.

A long row's MLP holds several tensors of tokens x intermediate size. Tokens do not meet in an MLP, so it can be
computed a part of the row at a time, and each part again in the backward pass (Arctic Long Sequence Training,
arXiv:2506.13996, section 3.1). What stays is the input. The MLP is the model's own, whatever its forward is by now.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from whet.config import Config
from whet.config.resolve import ResolvedRun
from whet.core.errors import ModelError, Problem
from whet.model.loss import innermost
from whet.model.memory.layers import repeated_layers

NAMES = ("mlp", "feed_forward", "ffn")
"""What families call the MLP of a layer."""


def install(model: torch.nn.Module, config: Config, resolved: ResolvedRun) -> str | None:
    """Compute the MLP of every layer in shards.

    Raises:
        ModelError: no layer has an MLP, or one of them does not work token by token.
    """
    if not config.memory.tiled_mlp:
        return None
    hidden_size = innermost(model).config.get_text_config(decoder=True).hidden_size  # type: ignore[union-attr,operator]
    mlps = [mlp for layer in repeated_layers(model) if (mlp := _mlp_of(layer)) is not None]
    mixing = next((type(mlp).__name__ for mlp in mlps if not works_token_by_token(mlp, hidden_size)), None)
    if not mlps or mixing:
        family = type(innermost(model)).__name__
        found = f"tiled_mlp: no layer of {family} has an MLP that works token by token"
        if mixing:
            found = f"tiled_mlp: {mixing} of {family} does not work token by token"
        raise ModelError(Problem(config.where("tiled_mlp"), found, "remove the line", "tiled_mlp"))
    for mlp in mlps:
        shard(mlp, config.memory.tiled_mlp_num_shards, hidden_size)
    shards = config.memory.tiled_mlp_num_shards or f"tokens / {hidden_size}"
    return f"tiled_mlp: {len(mlps)} MLPs are computed in {shards} shards of the row, and again in the backward pass"


def shard(mlp: torch.nn.Module, num_shards: int | None, hidden_size: int) -> None:
    """Replace the forward of this module by one in shards.

    Args:
        num_shards: None for tokens / hidden size, rounded up.

    Methods, not closures: a copy of the model computes with its own weights.
    """
    mlp.whet_whole = mlp.forward  # type: ignore[assignment]
    mlp.whet_shards = (num_shards, hidden_size)  # type: ignore[assignment]
    mlp.forward = MethodType(_in_shards, mlp)


def _in_shards(self: Any, hidden_BTH: torch.Tensor, *arguments: Any, **keywords: Any) -> torch.Tensor:
    num_shards, hidden_size = self.whet_shards
    number = num_shards or -(-hidden_BTH.shape[-2] // hidden_size)
    if number == 1 or not torch.is_grad_enabled():
        whole: torch.Tensor = self.whet_whole(hidden_BTH, *arguments, **keywords)
        return whole
    return torch.cat(
        [
            checkpoint(self.whet_whole, part, *arguments, use_reentrant=False, **keywords)
            for part in hidden_BTH.chunk(number, dim=-2)
        ],
        dim=-2,
    )


@torch.no_grad()
def works_token_by_token(mlp: torch.nn.Module, hidden_size: int) -> bool:
    """Whether four random tokens give the same together and two by two."""
    like = next((parameter for parameter in mlp.parameters() if parameter.is_floating_point()), None)
    floating = torch.empty(0, device=next(mlp.parameters()).device) if like is None else like  # all in few bits
    tokens = torch.randn(1, 4, hidden_size, generator=torch.Generator().manual_seed(0)).to(floating)
    was_training = mlp.training
    mlp.eval()
    try:
        together = mlp(tokens)
        apart = torch.cat([mlp(part) for part in tokens.chunk(2, dim=1)], dim=1)
    except TypeError:  # it takes more than tokens
        return False
    finally:
        mlp.train(was_training)
    return bool((together - apart).abs().max() <= 0.01 * together.abs().max())


def _mlp_of(layer: torch.nn.Module) -> torch.nn.Module | None:
    """The layer's MLP, unless tokens meet in it, as they do in a mixture of experts with its limits and its losses."""
    mlp = next((getattr(layer, name) for name in NAMES if hasattr(layer, name)), None)
    if not isinstance(mlp, torch.nn.Module):
        return None
    linears = [module for module in mlp.modules() if hasattr(module, "in_features") or hasattr(module, "nf")]
    has_experts = any(name in ("experts", "router", "gate") for name, _ in mlp.named_children())
    return mlp if len(linears) >= 2 and not has_experts else None
