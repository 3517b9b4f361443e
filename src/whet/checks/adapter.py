"""What is trained: each name of a target or an unfrozen parameter must be found, told from the model's shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from whet.checks.base import Subject
from whet.config import Config
from whet.core.errors import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check(subject: Subject) -> Iterator[str | Problem]:
    """Every pattern matches; nothing is loaded, the model is built without memory for its weights."""
    config = subject.config
    section = config.adapter
    if section.adapter is None:
        if config.model.unfrozen_parameters:
            yield _unfrozen(config, config.model.unfrozen_parameters)
        return
    if section.lora_model_dir:
        yield f"{section.adapter}: goes on with the adapter in {section.lora_model_dir}"
        return
    from whet.model.adapters import lora_config

    lora = lora_config(_shape(config), config)
    targets = lora.target_modules
    shown = targets if isinstance(targets, str) else ", ".join(sorted(targets or ()))
    yield f"{section.adapter}: rank {lora.r}, alpha {lora.lora_alpha} on {shown or 'the named parameters'}"


def _unfrozen(config: Config, patterns: Sequence[str]) -> str:
    from whet.model.load import freeze_all_but
    from whet.model.trainable import trainable_summary

    model = _shape(config)
    freeze_all_but(model, patterns, config)
    return str(trainable_summary(model))


def _shape(config: Config) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    from whet.model.load import load_model_config

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            load_model_config(config), trust_remote_code=config.model.trust_remote_code
        )
    return model
