"""Rules about adapters and quantised base models."""

from __future__ import annotations

import re

from whet.config.config import Config
from whet.config.rules.base import Rule, at, first_set
from whet.core.errors import Problem


def four_bits_or_eight(config: Config) -> Problem | None:
    if not (config.quant.load_in_4bit and config.quant.load_in_8bit):
        return None
    return at(config, "load_in_8bit", "load_in_4bit and load_in_8bit are both true", "keep one of them")


def qlora_has_a_4bit_base(config: Config) -> Problem | None:
    if config.adapter.adapter != "qlora" or config.quant.load_in_4bit:
        return None
    fix = "write load_in_4bit: true instead" if config.quant.load_in_8bit else "add `load_in_4bit: true`"
    return at(config, "adapter", "adapter is qlora, and the base model is not loaded in 4 bits", fix)


def few_bits_need_an_adapter(config: Config) -> Problem | None:
    if config.adapter.adapter:
        return None
    for key in ("load_in_4bit", "load_in_8bit"):
        if config.value(key):
            return at(
                config,
                key,
                f"{key} is true, and quantised weights cannot be trained",
                "add `adapter: qlora`" if key == "load_in_4bit" else "add `adapter: lora`",
            )
    return None


def four_bit_options_need_4bit(config: Config) -> Problem | None:
    keys = (
        "bnb_4bit_quant_type",
        "bnb_4bit_compute_dtype",
        "bnb_4bit_use_double_quant",
        "bnb_4bit_quant_storage",
    )
    key = first_set(config, keys)
    if key is None or config.quant.load_in_4bit:
        return None
    return at(config, key, f"{key} is written, and load_in_4bit is not", "add `load_in_4bit: true`, or remove the line")


def eight_bit_options_need_8bit(config: Config) -> Problem | None:
    if config.quant.llm_int8_threshold is None or config.quant.load_in_8bit:
        return None
    found = "llm_int8_threshold is written, and load_in_8bit is not"
    return at(config, "llm_int8_threshold", found, "add `load_in_8bit: true`, or remove the line")


def embeddings_are_upcast_beside_few_bits(config: Config) -> Problem | None:
    if not config.quant.embeddings_skip_upcast or config.quant.load_in_4bit or config.quant.load_in_8bit:
        return None
    found = "embeddings_skip_upcast changes nothing: only a model loaded in few bits has its embedding in float32"
    return at(config, "embeddings_skip_upcast", found, "remove the line")


def a_base_is_quantised_once(config: Config) -> Problem | None:
    quant = config.quant
    if quant.model_quantization_config is None:
        if quant.model_quantization_config_kwargs is None:
            return None
        found = "model_quantization_config_kwargs is written, and model_quantization_config is not"
        return at(config, "model_quantization_config_kwargs", found, "add `model_quantization_config: Mxfp4Config`")
    for key in ("load_in_4bit", "load_in_8bit"):
        if config.value(key):
            found = f"model_quantization_config is written, and {key} is true"
            return at(config, "model_quantization_config", found, "keep one of them")
    is_dequantised = (quant.model_quantization_config_kwargs or {}).get("dequantize")
    if not config.adapter.adapter and not is_dequantised:
        found = "model_quantization_config is written, and quantised weights cannot be trained"
        fix = "add `model_quantization_config_kwargs: {dequantize: true}`, or `adapter: lora`"
        return at(config, "model_quantization_config", found, fix)
    return None


def adapter_options_need_an_adapter(config: Config) -> Problem | None:
    if config.adapter.adapter:
        return None
    for key in type(config.adapter).model_fields:
        value = config.value(key)
        if config.is_set(key) and value not in (False, type(config.adapter).model_fields[key].default):
            return at(
                config, key, f"{key} is written, and there is no adapter", "add `adapter: lora`, or remove the line"
            )
    return None


def the_adapter_has_targets(config: Config) -> Problem | None:
    adapter = config.adapter
    if not adapter.adapter or adapter.lora_model_dir:
        return None
    if adapter.lora_target_modules or adapter.lora_target_linear or adapter.lora_target_parameters:
        return None
    return at(
        config,
        "adapter",
        "the adapter has nothing to adapt",
        "add `lora_target_linear: true`, or name layers in lora_target_modules",
    )


def patterns_compile(config: Config) -> Problem | None:
    adapter = config.adapter
    patterns = {
        "lora_target_modules": adapter.lora_target_modules,
        "lora_exclude_modules": adapter.lora_exclude_modules,
        "lora_rank_pattern": tuple(adapter.lora_rank_pattern or ()),
        "lora_alpha_pattern": tuple(adapter.lora_alpha_pattern or ()),
        "unfrozen_parameters": config.model.unfrozen_parameters,
    }
    for key, written in patterns.items():
        for pattern in (written,) if isinstance(written, str) else written or ():
            try:
                re.compile(pattern)
            except re.error as error:
                found = f"{key}: '{pattern}' is no regular expression: {error}"
                return at(config, key, found, "write a name, or put a backslash before the character")
    return None


def adapted_parameters_have_no_dropout(config: Config) -> Problem | None:
    if not config.adapter.lora_target_parameters or config.adapter.lora_dropout == 0:
        return None
    return at(
        config,
        "lora_dropout",
        f"lora_dropout is {config.adapter.lora_dropout:g}, which lora_target_parameters rules out",
        "write lora_dropout: 0",
    )


def layers_pattern_counts_layers(config: Config) -> Problem | None:
    if not config.adapter.peft_layers_pattern or config.adapter.peft_layers_to_transform:
        return None
    return at(
        config, "peft_layers_pattern", "peft_layers_pattern names no layers by itself", "add peft_layers_to_transform"
    )


def unfrozen_parameters_are_full_weights(config: Config) -> Problem | None:
    if not config.adapter.adapter or not config.model.unfrozen_parameters:
        return None
    found = "unfrozen_parameters has no meaning with an adapter, which freezes the whole model"
    return at(config, "unfrozen_parameters", found, "name the modules to train in lora_modules_to_save")


def lora_kernels_read_their_base(config: Config) -> Problem | None:
    if not config.quant.load_in_8bit:
        return None
    for key in ("lora_qkv_kernel", "lora_mlp_kernel", "lora_o_kernel"):
        if config.value(key):
            found = f"{key} is true, and the kernels do not read 8-bit weights"
            return at(config, key, found, "remove the line, or write load_in_4bit: true")
    return None


ADAPTER_RULES: tuple[Rule, ...] = (
    four_bits_or_eight,
    qlora_has_a_4bit_base,
    few_bits_need_an_adapter,
    four_bit_options_need_4bit,
    eight_bit_options_need_8bit,
    embeddings_are_upcast_beside_few_bits,
    a_base_is_quantised_once,
    adapter_options_need_an_adapter,
    the_adapter_has_targets,
    patterns_compile,
    adapted_parameters_have_no_dropout,
    layers_pattern_counts_layers,
    unfrozen_parameters_are_full_weights,
    lora_kernels_read_their_base,
)
