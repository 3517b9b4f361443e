"""What ``config.json`` tells of a model without its weights, and what the model can do, with the reason when not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True)
class Supported:
    """The model can do it. ``note`` says how that is known."""

    note: str = ""

    def __bool__(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Unsupported:
    """The model cannot do it, and why, in words for the user."""

    reason: str

    def __bool__(self) -> bool:
        return False


Capability = Supported | Unsupported


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a language model is made of.

    Attributes:
        model_type: transformers' name of the family ("llama").
        num_layers: decoder layers.
        hidden_size: width of the residual stream.
        num_heads: query heads; 0 in a model without attention (Mamba).
        num_kv_heads: key and value heads; fewer than ``num_heads`` in grouped-query attention.
        head_dim: width of one head.
        vocab_size: rows of the embedding.
        max_positions: the longest sequence the model was made for; None when the config does not say.
        sliding_window: tokens that a local layer sees back; None when every layer sees all.
        softcap: tanh cap on attention scores (Gemma 2); None in most families.
    """

    model_type: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int | None
    sliding_window: int | None
    softcap: float | None


def read_architecture(model_config: PretrainedConfig) -> Architecture:
    """The facts of ``model_config``; of its text part, when the model also reads images or sound."""
    text = model_config.get_text_config(decoder=True)
    num_heads = int(getattr(text, "num_attention_heads", None) or 0)
    return Architecture(
        model_type=str(text.model_type),
        num_layers=int(text.num_hidden_layers),
        hidden_size=int(text.hidden_size),
        num_heads=num_heads,
        num_kv_heads=int(getattr(text, "num_key_value_heads", None) or num_heads),
        head_dim=int(getattr(text, "head_dim", None) or text.hidden_size // max(num_heads, 1)),
        vocab_size=int(text.vocab_size),
        max_positions=getattr(text, "max_position_embeddings", None),
        sliding_window=_sliding_window(text),
        softcap=getattr(text, "attn_logit_softcapping", None),
    )


def isolating_attention(architecture: Architecture) -> Capability:
    """Whether attention can keep documents apart. Of models with recurrent layers beside it, only a trial can tell."""
    if not architecture.num_heads:
        return Unsupported(f"{architecture.model_type} has none: its state runs on from one document into the next")
    return Supported()


def _sliding_window(text: PretrainedConfig) -> int | None:
    # Qwen 2 and 3 carry a window that is switched off by a second field.
    if getattr(text, "use_sliding_window", True) is False:
        return None
    window: int | None = getattr(text, "sliding_window", None)
    return window
