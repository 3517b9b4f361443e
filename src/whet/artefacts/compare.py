"""How far one form of a model is from another, by what both say to the same tokens."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PretrainedConfig

PROBE_TOKENS = 64


def probe_tokens(model: Any) -> torch.Tensor:
    """int64[2, 64]: random, the same for the same vocabulary."""
    rows = model.get_input_embeddings().weight.shape[0]
    return torch.randint(rows, (2, PROBE_TOKENS), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """float32[B, T, V] on the CPU; of longer rows than the model has positions for, as many as it has."""
    config: PretrainedConfig = model.config
    limit = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None) or tokens.shape[1]
    logits: torch.Tensor = model(tokens[:, :limit].to(model.device), use_cache=False).logits
    return logits.float().cpu()


def divergences(expected_BTV: torch.Tensor, found_BTV: torch.Tensor) -> torch.Tensor:
    """KL divergence from the expected distribution to the one found, in nats, for each position: float32[B, T]."""
    return torch.nn.functional.kl_div(
        found_BTV.log_softmax(-1), expected_BTV.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
