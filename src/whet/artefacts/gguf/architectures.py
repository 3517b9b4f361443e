"""The architectures that can be written: what llama.cpp calls their numbers, and what it does not compute.

To add one: a row of `ARCHITECTURES`, a tiny model in ``tests/promises/test_g6_gguf.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from transformers import PretrainedConfig

from whet.core.errors import ArtefactError, Problem
from whet.core.nearest import nearest

if TYPE_CHECKING:
    from gguf import GGUFWriter

Numbers = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Architecture:
    """How one model type of transformers is written.

    Attributes:
        name: what llama.cpp calls it (``general.architecture``).
        rotates_pairs: llama.cpp rotates neighbouring dimensions where transformers rotates halves, so the rows of
            query and key change places.
        norm_plus_one: transformers stores the norms' weights less one.
        ties_head: llama.cpp takes the embedding for the head, whatever the file has.
        experts: its feed-forward layers may be mixtures.
        refuses: what of a config llama.cpp does not compute, in words; None where it computes all.
        write: the numbers that only this architecture has.
    """

    name: str
    rotates_pairs: bool = False
    norm_plus_one: bool = False
    ties_head: bool = False
    experts: bool = False
    refuses: Callable[[PretrainedConfig], str | None] = lambda config: None
    write: Callable[[GGUFWriter, PretrainedConfig], None] = lambda writer, config: None


def _window(config: PretrainedConfig) -> int | None:
    """The sliding window that llama.cpp does not have for this architecture, where the model uses one."""
    window = getattr(config, "sliding_window", None)
    uses = getattr(config, "use_sliding_window", True)
    return window if uses and window and window < config.max_position_embeddings else None


def context_length(config: PretrainedConfig, architecture: Architecture) -> int:
    """Tokens up to which llama.cpp computes what transformers does: the window, where it is one llama.cpp lacks."""
    longest = int(config.max_position_embeddings)
    return longest if architecture.name in _HAS_WINDOWS else min(longest, _window(config) or longest)


_HAS_WINDOWS = ("gemma2", "gemma3", "phi3")


def _mixture(writer: GGUFWriter, config: PretrainedConfig) -> None:
    experts = getattr(config, "num_local_experts", None) or config.num_experts
    writer.add_expert_count(experts)
    writer.add_expert_used_count(config.num_experts_per_tok)


def _qwen3_moe(writer: GGUFWriter, config: PretrainedConfig) -> None:
    _mixture(writer, config)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _qwen3_moe_refuses(config: PretrainedConfig) -> str | None:
    if not config.norm_topk_prob:
        return "norm_topk_prob: false, and llama.cpp divides the experts' weights by their sum"
    if config.decoder_sparse_step != 1 or config.mlp_only_layers:
        return "some layers without experts, and llama.cpp expects them in every layer"
    return None


def _windows(writer: GGUFWriter, config: PretrainedConfig) -> None:
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])


def _gemma2(writer: GGUFWriter, config: PretrainedConfig) -> None:
    _windows(writer, config)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _gemma3(writer: GGUFWriter, config: PretrainedConfig) -> None:
    _windows(writer, config)
    writer.add_rope_freq_base_swa(rope(config, "sliding_attention")["rope_theta"])
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _scaling_refused(layers_of_the_largest: int) -> Callable[[PretrainedConfig], str | None]:
    """llama.cpp divides by the root of the head's size, in its largest model (known by its layers) by another."""

    def refuses(config: PretrainedConfig) -> str | None:
        is_largest = config.num_hidden_layers == layers_of_the_largest
        scalar = config.hidden_size // config.num_attention_heads if is_largest else config.head_dim
        if config.query_pre_attn_scalar != scalar:
            return f"query_pre_attn_scalar: {config.query_pre_attn_scalar}, and llama.cpp computes with {scalar}"
        return None

    return refuses


def _phi3(writer: GGUFWriter, config: PretrainedConfig) -> None:
    writer.add_sliding_window(_window(config) or 0)


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", rotates_pairs=True),
    "mistral": Architecture("llama", rotates_pairs=True),
    "mixtral": Architecture("llama", rotates_pairs=True, experts=True, write=_mixture),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "qwen3_moe": Architecture("qwen3moe", experts=True, refuses=_qwen3_moe_refuses, write=_qwen3_moe),
    "phi3": Architecture("phi3", write=_phi3),
    "gemma": Architecture("gemma", norm_plus_one=True, ties_head=True),
    "gemma2": Architecture("gemma2", norm_plus_one=True, ties_head=True, refuses=_scaling_refused(46), write=_gemma2),
    "gemma3_text": Architecture("gemma3", norm_plus_one=True, refuses=_scaling_refused(62), write=_gemma3),
}

_ACTIVATIONS = {"gemma": "gelu_pytorch_tanh", "gemma2": "gelu_pytorch_tanh", "gemma3": "gelu_pytorch_tanh"}


def architecture_of(config: PretrainedConfig, what: str) -> Architecture:
    """The row of a model's config.

    Args:
        what: the model, to name in errors.

    Raises:
        ArtefactError: it is not in the table, or has something that llama.cpp does not compute.
    """
    model_type = config.model_type
    row = ARCHITECTURES.get(model_type)
    if row is None:
        near = nearest(model_type, ARCHITECTURES)
        raise ArtefactError(
            Problem("", f"'{what}' is a {model_type}, which is not among those that whet writes as GGUF"
                    f"{f' (nearest: {near})' if near else ''}",
                    f"these are: {', '.join(ARCHITECTURES)}; for others llama.cpp has convert_hf_to_gguf.py, which "
                    "reads the merged folder")
        )  # fmt: skip
    reason = _common_refusal(config, row) or row.refuses(config)
    if reason is not None:
        raise ArtefactError(
            Problem("", f"'{what}' has {reason}", "it would be another model there, so no GGUF is written of it")
        )
    return row


def _common_refusal(config: PretrainedConfig, row: Architecture) -> str | None:
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    expected = _ACTIVATIONS.get(row.name, "silu")
    if activation != expected:
        return f"the activation {activation}, and llama.cpp computes {row.name} with {expected}"
    kind = rope(config).get("rope_type", "default")
    if kind not in _ROPE or (kind == "llama3" and row.name != "llama") or (kind == "longrope" and row.name != "phi3"):
        return f"positions of the kind '{kind}', which llama.cpp does not know for {row.name}"
    if kind == "yarn" and not _is_plain_yarn(rope(config)):
        return "YaRN positions with a scale of their own for attention, and llama.cpp computes 1 + ln(factor) / 10"
    return None


def _is_plain_yarn(said: Mapping[str, Any]) -> bool:
    given = said.get("attention_factor")
    own = 0.1 * math.log(said["factor"]) + 1.0
    return not (said.get("mscale") or said.get("mscale_all_dim")) and (given is None or math.isclose(given, own))


def rope(config: PretrainedConfig, layers: str = "full_attention") -> dict[str, Any]:
    """What is said of the rotary positions of one kind of layer."""
    parameters = dict(config.rope_parameters or {})
    return dict(parameters.get(layers, parameters))


_ROPE = ("default", "linear", "yarn", "llama3", "longrope")


def write_hyperparameters(writer: GGUFWriter, config: PretrainedConfig, row: Architecture, vocab_rows: int) -> None:
    """All numbers of a model. Rotary factors that are tensors are `rotary_tensors`."""
    head = head_dim(config)
    writer.add_context_length(context_length(config, row))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(vocab_rows)
    writer.add_rope_dimension_count(rotary_dim(config))
    writer.add_rope_freq_base(rope(config)["rope_theta"])
    _write_rope_scaling(writer, config)
    row.write(writer, config)


def head_dim(config: PretrainedConfig) -> int:
    """Size of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def rotary_dim(config: PretrainedConfig) -> int:
    """How many of a head's dimensions are rotated."""
    return int(head_dim(config) * (rope(config).get("partial_rotary_factor") or 1.0))


def _write_rope_scaling(writer: GGUFWriter, config: PretrainedConfig) -> None:
    from gguf import RopeScalingType

    said = rope(config)
    kind = said.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(said["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(said["factor"])
        writer.add_rope_scaling_orig_ctx_len(_trained_length(config, said))
        for name, add in (("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
                          ("beta_slow", writer.add_rope_scaling_yarn_beta_slow)):  # fmt: skip
            if said.get(name) is not None:
                add(said[name])
    elif kind == "longrope":
        writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(_trained_length(config, said))
        writer.add_rope_scaling_attn_factors(_longrope_attention(config, said))


def _trained_length(config: PretrainedConfig, said: Mapping[str, Any]) -> int:
    found = said.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return int(found or config.max_position_embeddings)


def _longrope_attention(config: PretrainedConfig, said: Mapping[str, Any]) -> float:
    """LongRoPE's scale of the attention (arXiv 2402.13753): sqrt(1 + ln(longer / trained) / ln(trained))."""
    if said.get("attention_factor") is not None:
        return float(said["attention_factor"])
    trained = _trained_length(config, said)
    factor = config.max_position_embeddings / trained
    return math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0


def rotary_tensors(config: PretrainedConfig) -> dict[str, Numbers]:
    """Factors by which llama.cpp divides each rotary frequency, where the config scales them one by one."""
    said = rope(config)
    kind = said.get("rope_type", "default")
    if kind == "longrope":
        return {
            "rope_factors_long.weight": np.array(said["long_factor"], dtype=np.float32),
            "rope_factors_short.weight": np.array(said["short_factor"], dtype=np.float32),
        }
    return {"rope_freqs.weight": _llama3_factors(config, said)} if kind == "llama3" else {}


def _llama3_factors(config: PretrainedConfig, said: Mapping[str, Any]) -> Numbers:
    """Llama 3.1's scaling: long waves divided by the factor, short ones kept, those between in between."""
    dim = rotary_dim(config)
    trained, factor = _trained_length(config, said), said["factor"]
    low, high = said["low_freq_factor"], said["high_freq_factor"]
    waves = 2 * math.pi * said["rope_theta"] ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    smooth = (trained / waves - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    found = np.where(waves > trained / low, factor, np.where(waves < trained / high, 1.0, between))
    return found.astype(np.float32)
