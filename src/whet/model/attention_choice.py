"""Which attention a run uses, and why: whet's own where the model and the machine have it, else what was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from whet.core.errors import ModelError, Problem
from whet.model.architecture import Capability, Supported, Unsupported, read_architecture
from whet.model.attention import NAME, register
from whet.model.varlen import use_flash_attention_3

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """What transformers is given as ``attn_implementation`` (None: its own choice), and the sentence why."""

    name: str | None
    why: str


def choose_attention(requested: str | None, model_config: PretrainedConfig, device: str) -> AttentionChoice:
    """The attention implementation of a run.

    Args:
        requested: "auto" or None, or what the user wrote as ``attn_implementation``.
        model_config: of the base model.
        device: "cpu", "cuda" or "mps".

    Raises:
        ModelError: what was written cannot run here.
    """
    register()
    capable = _can_use_ours(model_config)
    if requested in (None, "auto"):
        if isinstance(capable, Unsupported):
            return AttentionChoice(None, f"transformers' own choice, because {capable.reason}")
        return _ours(model_config, device)
    assert requested is not None, "None is handled above"
    if requested == NAME and isinstance(capable, Unsupported):
        raise ModelError(_attention_problem(f"'{NAME}' cannot be used: {capable.reason}", "leave the key out"))
    if requested == "flex_attention" and device == "cpu":
        raise ModelError(
            _attention_problem(
                "PyTorch's flex_attention has no backward pass on CPU", f"write '{NAME}' or 'sdpa', or leave it out"
            )
        )
    package = FLASH_PACKAGES.get(requested)
    if package is not None and find_spec(package) is None and not isinstance(capable, Unsupported):
        return _ours(model_config, device, f"in place of {requested}: {package} is not installed; ")
    if requested == NAME:
        return _ours(model_config, device, "as written in the config: ")
    return AttentionChoice(requested, "as written in the config")


FLASH_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
"""What transformers imports for these names. PyTorch has the kernel of the first inside."""


def _ours(model_config: PretrainedConfig, device: str, why: str = "") -> AttentionChoice:
    """`whet_documents`; from here on the process has FlashAttention 3 where this GPU and this model have use for it."""
    kernel = _kernel(model_config, device)
    if kernel == _VARIABLE_LENGTH and torch.cuda.is_available() and use_flash_attention_3(torch.device("cuda")):
        kernel = "by FlashAttention 3, which was written for this GPU"
    return AttentionChoice(NAME, f"{why}each document attends to itself, {kernel}")


_VARIABLE_LENGTH = "by PyTorch's variable-length flash kernel"


def _kernel(model_config: PretrainedConfig, device: str) -> str:
    """By what `whet_documents` is computed, in words."""
    architecture = read_architecture(model_config)
    if device != "cuda":
        return "by PyTorch's flash kernel" if device == "cpu" and architecture.softcap is None else "one by one"
    if architecture.softcap is not None:
        return "by FlexAttention, for its scores are capped"
    if architecture.head_dim > 256:
        return "one by one, for no variable-length kernel takes heads wider than 256"
    return _VARIABLE_LENGTH


def _can_use_ours(model_config: PretrainedConfig) -> Capability:
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model_config), None)
    # No public way to ask: the attribute says that the family takes its attention from the AttentionInterface.
    if model_class is not None and not model_class._supports_attention_backend:
        return Unsupported(f"{model_config.model_type} does not take its attention from transformers' interface")
    return Supported()


def _attention_problem(found: str, fix: str) -> Problem:
    return Problem("attn_implementation", found, fix, "attn_implementation")
