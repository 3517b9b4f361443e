"""Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon): momentum, orthogonalised.

PyTorch's own, for the matrices between embeddings and head. The update has the size of AdamW's by default
(``match_rms_adamw``, Liu et al., 2025, arXiv:2502.16982), so that one learning rate serves both.
"""

from __future__ import annotations

import torch
from transformers import TrainingArguments

from whet.config import Config
from whet.training.optimizers.combined import Combined, matrices_and_adamw
from whet.training.optimizers.construct import Groups, construct


def build(model: torch.nn.Module, groups: Groups, config: Config, args: TrainingArguments) -> Combined:
    """See `whet.training.optimizers.OPTIMIZERS`. `optim_args` are Muon's; adam_beta1 and the like are AdamW's."""
    arguments = {"lr": config.optimizer.learning_rate, "weight_decay": config.optimizer.weight_decay}
    if "adjust_lr_fn" not in (config.optimizer.optim_args or {}):
        arguments["adjust_lr_fn"] = "match_rms_adamw"  # type: ignore[assignment]  # one argument that is no number
    return matrices_and_adamw(
        model, groups, config, lambda hidden: construct(torch.optim.Muon, hidden, arguments, config)
    )
