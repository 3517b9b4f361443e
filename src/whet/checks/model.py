"""Facts of the base model, from its ``config.json`` alone: no weights are read."""

from __future__ import annotations

from collections.abc import Iterator

from whet.checks.base import Subject
from whet.core.errors import Problem
from whet.model.architecture import Architecture, Unsupported, isolating_attention
from whet.model.attention_choice import choose_attention
from whet.model.load import checked_architecture, load_model_config
from whet.model.pickled import refuse_code_in_weights
from whet.model.sizes import refuse_damaged_weights
from whet.model.source import locate
from whet.model.stored import refuse_untrainable_storage


def check(subject: Subject) -> Iterator[str | Problem]:
    """The model is there, of a known architecture, and can do what the config asks of it."""
    config, resolved = subject.config, subject.resolved
    refuse_code_in_weights(
        locate(config.model.base_model, config, "base_model"), config.where("base_model"), "base_model"
    )
    if not config.model.reinit_weights:
        refuse_damaged_weights(config)
    model_config = load_model_config(config)
    refuse_untrainable_storage(config, model_config)
    architecture = checked_architecture(config, model_config)
    yield describe(architecture)
    attention = choose_attention(resolved.attn_implementation, model_config, resolved.device)
    yield f"attention: {attention.name or 'default'}: {attention.why}"
    limit = architecture.max_positions
    if limit is not None and resolved.sequence_len > limit:
        found = (
            f"sequence_len is {resolved.sequence_len}, and '{config.model.base_model}' was made for {limit} positions"
        )
        fix = f"write sequence_len: {limit}, or less; or lengthen the model by model_config (rope_scaling)"
        yield Problem(config.where("sequence_len"), found, fix, "sequence_len")
    packing = isolating_attention(architecture)
    if resolved.sample_packing and isinstance(packing, Unsupported):
        found = f"sample_packing needs attention that stays within a document, and {packing.reason}"
        yield Problem(config.where("sample_packing"), found, "write sample_packing: false", "sample_packing")


def describe(architecture: Architecture) -> str:
    """The architecture in a line."""
    heads = f"{architecture.num_heads} heads"
    if architecture.num_kv_heads != architecture.num_heads:
        heads += f" ({architecture.num_kv_heads} of keys and values)"
    facts = [
        architecture.model_type,
        f"{architecture.num_layers} layers",
        f"hidden size {architecture.hidden_size}",
        heads if architecture.num_heads else "no attention heads",
        f"vocabulary {architecture.vocab_size:,}",
    ]
    if architecture.max_positions:
        facts.append(f"{architecture.max_positions:,} positions")
    if architecture.sliding_window:
        facts.append(f"sliding window {architecture.sliding_window:,}")
    return ", ".join(facts)
