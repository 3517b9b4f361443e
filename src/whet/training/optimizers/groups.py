"""Which trainable parameter gets which learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from whet.config import Config
from whet.core.errors import ConfigError, Problem

LORA_PLUS_EMBEDDING_LR = 1e-6
"""Learning rate of LoRA's embedding factors under LoRA+ (Hayou et al., 2024, arXiv:2402.12354; as in their code)."""


def parameter_groups(model: torch.nn.Module, config: Config) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, one for each pair of learning rate and weight decay that occurs.

    The first rule that fits decides a learning rate: `lr_groups`, `embedding_lr`, LoRA+, `learning_rate`. Vectors
    (biases, norms) are not decayed.

    Returns:
        ``{"params": [...], "lr": ..., "weight_decay": ...}`` in the order of the model's parameters.

    Raises:
        ConfigError: nothing is trainable, or one of `lr_groups` matches no trainable parameter.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise ConfigError(
            Problem(config.where("unfrozen_parameters"), "no parameter is trainable", "look at unfrozen_parameters")
        )
    rates = learning_rates(model, trainable, config)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in trainable.items():
        decay = config.optimizer.weight_decay if is_decayed(name, parameter) else 0.0
        group = groups.setdefault((rates[name], decay), {"params": [], "lr": rates[name], "weight_decay": decay})
        group["params"].append(parameter)
    return list(groups.values())


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """Weight decay is for matrices; stacked biases (of experts) are told by their name.

    >>> is_decayed("mlp.up_proj.weight", torch.ones(2, 2)), is_decayed("norm.weight", torch.ones(2))
    (True, False)
    """
    return parameter.ndim >= 2 and not name.endswith("bias")


def partition(groups: list[dict[str, Any]], chosen: set[int]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The groups with the chosen parameters alone, and those with all others; no group is empty.

    Args:
        chosen: ``id`` of each chosen parameter.
    """
    parts: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for group in groups:
        for part, is_wanted in zip(parts, (True, False), strict=True):
            members = [parameter for parameter in group["params"] if (id(parameter) in chosen) is is_wanted]
            if members:
                part.append({**group, "params": members})
    return parts


def learning_rates(model: torch.nn.Module, trainable: Mapping[str, torch.Tensor], config: Config) -> dict[str, float]:
    """Name of each trainable parameter -> its learning rate."""
    settings, adapter = config.optimizer, config.adapter
    rates = dict.fromkeys(trainable, settings.learning_rate)
    if adapter.loraplus_lr_ratio is not None:
        factor_rate = adapter.loraplus_lr_embedding or LORA_PLUS_EMBEDDING_LR
        for name, parameter in trainable.items():
            if "lora_embedding" in name:
                rates[name] = factor_rate
            elif "lora_B" in name or (parameter.ndim == 1 and "lora_" in name):
                rates[name] = settings.learning_rate * adapter.loraplus_lr_ratio
    embedding_rate = _embedding_rate(config)
    if embedding_rate is not None:
        rates |= dict.fromkeys(rates.keys() & embedding_parameters(model), embedding_rate)
    problems = []
    for index, group in enumerate(settings.lr_groups or ()):
        members = [name for name in trainable if any(part in name for part in group.modules)]
        if not members:
            found = f"the modules {', '.join(group.modules)} of group '{group.name}' match no trainable parameter"
            where = config.where(("lr_groups", index, "modules"))
            problems.append(Problem(where, found, "write parts of parameter names"))
        rates |= dict.fromkeys(members, group.lr)
    if problems:
        raise ConfigError(problems)
    return rates


def _embedding_rate(config: Config) -> float | None:
    settings = config.optimizer
    if settings.embedding_lr is not None:
        return settings.embedding_lr
    if settings.embedding_lr_scale is not None:
        return settings.learning_rate * settings.embedding_lr_scale
    return None


def embedding_parameters(model: torch.nn.Module) -> set[str]:
    """Names of the parameters of embeddings and of the output head."""
    get_output = getattr(model, "get_output_embeddings", None)
    output = get_output() if get_output is not None else None
    modules = {
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding) or module is output
    }
    return {name for name, _ in model.named_parameters() if any(name.startswith(f"{module}.") for module in modules)}
