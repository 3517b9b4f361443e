"""The adapter's targets: each name must be found in the model, told from its shape alone."""

from __future__ import annotations

from collections.abc import Iterator

from whet.checks.base import Subject
from whet.core.errors import Problem


def check(subject: Subject) -> Iterator[str | Problem]:
    """Every pattern of the adapter matches; nothing is loaded, the model is built without memory for its weights."""
    config = subject.config
    section = config.adapter
    if section.adapter is None:
        return
    if section.lora_model_dir:
        yield f"{section.adapter}: goes on with the adapter in {section.lora_model_dir}"
        return
    import torch
    from transformers import AutoModelForCausalLM

    from whet.model.adapters import lora_config
    from whet.model.load import load_model_config

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            load_model_config(config), trust_remote_code=config.model.trust_remote_code
        )
    lora = lora_config(model, config)
    targets = lora.target_modules
    shown = targets if isinstance(targets, str) else ", ".join(sorted(targets or ()))
    yield f"{section.adapter}: rank {lora.r}, alpha {lora.lora_alpha} on {shown or 'the named parameters'}"
