"""Tiny language models and a tiny tokenizer, built in the test: random weights, no network, milliseconds."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    DeepseekV3Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OlmoeConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3MoeConfig,
)

from whet.config import Config

ARCHITECTURES = ("llama", "mistral", "qwen3", "gemma3", "phi3", "gpt2")

MIXTURES = ("mixtral", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3")
"""Architectures with experts."""

VOCAB_SIZE = 300

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_SPECIAL = ("<|bos|>", "<|eos|>", "<|pad|>", "<|im_start|>", "<|im_end|>")


def tiny_config(architecture: str, **size: Any) -> PretrainedConfig:
    """The config of a tiny model: 2 layers, hidden 32, 4 heads (2 of keys), vocabulary 300. ``size`` overrides."""
    if architecture == "gpt2":
        return GPT2Config(
            **{
                "vocab_size": VOCAB_SIZE,
                "n_embd": 32,
                "n_layer": 2,
                "n_head": 4,
                "n_positions": 512,
                "bos_token_id": 0,
                "eos_token_id": 1,
                "attn_pdrop": 0.0,
                "resid_pdrop": 0.0,
                "embd_pdrop": 0.0,
                **size,
            }
        )
    shared = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    own: dict[str, dict[str, Any]] = {
        "llama": {},
        "mistral": {"sliding_window": 16},
        "qwen3": {"head_dim": 8},
        "gemma3": {"head_dim": 8, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
        "phi3": {"original_max_position_embeddings": 512, "sliding_window": None},
        "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 24},
        "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16, "head_dim": 8},
        "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 24},
        "gpt_oss": {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 24,
            "head_dim": 8,
            "sliding_window": 16,
        },
        "deepseek_v3": {
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 16,
            "num_key_value_heads": 4,
            "q_lora_rank": None,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
        },
    }
    classes: dict[str, type[PretrainedConfig]] = {
        "llama": LlamaConfig,
        "mistral": MistralConfig,
        "qwen3": Qwen3Config,
        "gemma3": Gemma3TextConfig,
        "phi3": Phi3Config,
        "mixtral": MixtralConfig,
        "qwen3_moe": Qwen3MoeConfig,
        "olmoe": OlmoeConfig,
        "gpt_oss": GptOssConfig,
        "deepseek_v3": DeepseekV3Config,
    }
    return classes[architecture](**{**shared, **own[architecture], **size})


def tiny_model(architecture: str = "llama", *, attention: str = "sdpa", seed: int = 0, **size: Any) -> PreTrainedModel:
    """A tiny model with random weights in float32 (initialised ten times wider than usual, so that tokens matter)."""
    from whet.model.attention import register

    register()
    config = tiny_config(architecture, **{"initializer_range": 0.2, **size})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if architecture == "gpt_oss" and attention == "sdpa":
            attention = "eager"  # its attention has sinks, which PyTorch's knows nothing of
        return Auto.from_config(config, attn_implementation=attention).eval()


@cache
def _byte_level_tokenizer() -> str:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*_SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer.to_str()


def tiny_tokenizer(**special: Any) -> PreTrainedTokenizerFast:
    """Bytes as tokens: 5 special ones (bos 0, eos 1, pad 2, im_start 3, im_end 4), then 256; with a ChatML template.

    ``special`` overrides the special tokens; ``pad_token=None`` leaves it out.
    """
    names: dict[str, Any] = {
        "bos_token": "<|bos|>",
        "eos_token": "<|eos|>",
        "pad_token": "<|pad|>",
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        **special,
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_byte_level_tokenizer()),
        **{name: value for name, value in names.items() if value is not None},
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_tiny_model(
    folder: str | Path,
    architecture: str = "llama",
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    seed: int = 0,
    **size: Any,
) -> Path:
    """Write a tiny model and its tokenizer as transformers would; returns the folder."""
    folder = Path(folder)
    tiny_model(architecture, seed=seed, **size).save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


def packed_batch(lengths: tuple[int, ...], *, seed: int = 0, supervised_share: float = 0.5) -> dict[str, Any]:
    """A flattened row of random documents, as ``whet.data.batch.flatten`` lays it out."""
    random = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(VOCAB_SIZE, (1, sum(lengths)), generator=random)
    labels = input_ids.where(torch.rand(input_ids.shape, generator=random) < supervised_share, torch.tensor(-100))
    edges = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    labels[0, edges[:-1].long()] = -100
    return {
        "input_ids": input_ids,
        "labels": labels,
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens_q": edges,
        "cu_seq_lens_k": edges,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def make_config(base_model: str | Path, **sections: dict[str, Any]) -> Config:
    """A config by sections (``adapter={"lora_r": 4}``), without a file; lists may be written for tuples."""
    given: dict[str, Any] = {
        "optimizer": {"learning_rate": 1e-3},
        **sections,
        "model": {"base_model": str(base_model), **sections.get("model", {})},
        "data": {"sequence_len": 64, "datasets": [{"path": "x", "type": "completion"}], **sections.get("data", {})},
        "file": "my.yaml",
    }
    return Config.model_validate(_with_tuples(given))


def _with_tuples(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_with_tuples(each) for each in value)
    return {key: _with_tuples(each) for key, each in value.items()} if isinstance(value, dict) else value
