"""The base model of a run: loaded, quantised, its embedding fitted to the tokenizer, made ready to train."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from whet.config import Config
from whet.config.resolve import ResolvedRun
from whet.core.errors import ModelError, Problem
from whet.core.log import say, warn
from whet.core.nearest import nearest
from whet.model.architecture import Architecture, read_architecture
from whet.model.attention_choice import AttentionChoice, choose_attention
from whet.model.pickled import AS_SAFETENSORS, pickles_refused, warn_of_pickled_weights
from whet.model.quantize import keep_layout, prepare_quantized, quantization_config
from whet.model.saved import NOT_READ, files_read
from whet.model.sizes import refuse_damaged_weights, refuse_impossible_sizes
from whet.model.source import cannot_load, locate
from whet.model.stored import stored_format
from whet.model.tokenizer import highest_id


@dataclass(frozen=True)
class LoadedModel:
    """A base model and what is known of it.

    Attributes:
        model: in training shape and on the device it computes on, so that what is tried on it (whether packed documents
            stay apart) is tried with the kernels of training.
        architecture: facts of its config.
        attention: the implementation it runs, and why.
        source: the folder or hub id it came from.
    """

    model: PreTrainedModel
    architecture: Architecture
    attention: AttentionChoice
    source: str


def load_model(config: Config, resolved: ResolvedRun, tokenizer: PreTrainedTokenizerBase) -> LoadedModel:
    """Load ``base_model`` as the config asks.

    Raises:
        ModelError: it cannot be found, loaded or used with these settings.
    """
    source = locate(config.model.base_model, config, "base_model")
    model_config = load_model_config(config)
    architecture = checked_architecture(config, model_config)
    _check_sequence_len(resolved, architecture)
    attention = choose_attention(resolved.attn_implementation, model_config, resolved.device)
    warn_of_pickled_weights(source, config.where("base_model"), "base_model")
    if not config.model.reinit_weights:
        refuse_damaged_weights(config)
    model = _load(source, config, resolved, model_config, attention)
    fit_embeddings(model, tokenizer, config)
    if resolved.quantization != "none":
        prepare_quantized(model, embedding_stays=config.quant.embeddings_skip_upcast)
    elif stored_format(model_config) == "bitsandbytes":
        keep_layout(model)
    if config.model.unfrozen_parameters:
        freeze_all_but(model, config.model.unfrozen_parameters, config)
    _prepare_for_training(model, tokenizer)
    if not _placement(config, resolved, stored_format(model_config) is not None):
        model.to(_device(resolved))
    return LoadedModel(model, architecture, attention, source)


def empty_model(config: Config, model_config: PretrainedConfig) -> PreTrainedModel:
    """The modules of the config's model in float32 on the CPU, without numbers: a weight is one zero, seen many times.

    Not on the `meta` device, where PEFT would move an adapter's own tensors too.
    """
    model = _without_numbers(config, model_config)
    seen: dict[int, torch.nn.Parameter] = {}  # a tied weight stays one
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                zeros = torch.nn.Parameter(torch.zeros(()).expand(parameter.shape), requires_grad=False)
                module._parameters[name] = seen.setdefault(id(parameter), zeros)
    return model.eval()


def _without_numbers(config: Config, model_config: PretrainedConfig) -> PreTrainedModel:
    """The modules on the `meta` device. Raises ModelError where the config describes none that can be made."""
    model_class = transformers_class(config.model.model_type or "AutoModelForCausalLM", "model_type", config)
    name = config.model.base_model

    def fault(error: Exception) -> ModelError:
        return cannot_load(name, locate(name, config, "base_model"), "model", error, config, "base_model")

    with torch.device("meta"), files_read(fault):
        try:
            if hasattr(model_class, "from_config"):
                trust = config.model.trust_remote_code
                model: PreTrainedModel = model_class.from_config(model_config, trust_remote_code=trust)
            else:
                model = model_class._from_config(model_config)
        except RuntimeError as error:  # torch's, of negative sizes and the like: nothing is computed here
            raise fault(error) from error
    return model


def load_model_config(config: Config) -> PretrainedConfig:
    """The model's ``config.json`` with the user's overrides; no weights are read.

    Raises:
        ModelError: there is none, or an override is no field of it.
    """
    key = "base_model_config" if config.model.base_model_config else "base_model"
    name = config.model.base_model_config or config.model.base_model
    source = locate(name, config, key)
    loader = transformers_class(config.model.cls_model_config or "AutoConfig", "cls_model_config", config)
    with files_read(lambda error: cannot_load(name, source, "model config", error, config, key)):
        model_config: PretrainedConfig = loader.from_pretrained(source, **_hub_options(config))
    _refuse_kernels(model_config, config, key)
    refuse_impossible_sizes(model_config, config, key)
    overrides = config.model.overrides_of_model_config or {}
    if overrides:
        model_config = _with_overrides(model_config, overrides, config)
        refuse_impossible_sizes(model_config, config, "overrides_of_model_config")
    return model_config


def checked_architecture(config: Config, model_config: PretrainedConfig) -> Architecture:
    """As `read_architecture`. A merge needs none of it: models with code of their own may have other names for it.

    Raises:
        ModelError: a number that training asks for is not there, or is none.
    """
    key = "base_model_config" if config.model.base_model_config else "base_model"
    name = config.model.base_model_config or config.model.base_model

    def fault(error: Exception) -> ModelError:
        return cannot_load(name, locate(name, config, key), "model config", error, config, key)

    with files_read(fault):
        return read_architecture(model_config)


def _refuse_kernels(model_config: PretrainedConfig, config: Config, key: str) -> None:
    """A config.json may name code of the hub as its attention; only the user's YAML may ask for code.

    Raises:
        ModelError: it does.
    """
    name = str(getattr(model_config, "_attn_implementation", None) or "")
    if "/" not in name or config.model.trust_remote_code:
        return
    found = f"{key}: its config.json asks for the attention '{name}', which is code that is fetched from the hub"
    fix = "take that line out of its config.json, or write trust_remote_code: true if you have read that code"
    raise ModelError(Problem(config.where(key), found, fix, key))


def fit_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: Config) -> None:
    """Give the embedding a row for every token id; more than needed are kept unless the config says to shrink."""
    section = config.tokenizer
    rows = model.get_input_embeddings().weight.shape[0]
    needed = highest_id(tokenizer) + 1
    if section.resize_token_embeddings_to_32x:
        needed = -(-needed // 32) * 32
    if needed == rows or (needed < rows and not section.shrink_embeddings):
        return
    model.resize_token_embeddings(needed, mean_resizing=section.mean_resizing_embeddings)
    say(f"embedding: {rows:,} rows -> {needed:,}")
    if needed > rows and config.adapter.adapter and not _trains_embeddings(config):
        warn(
            Problem(
                config.where("lora_modules_to_save"),
                f"the {needed - rows} new embedding rows are random and nothing trains them",
                "write lora_modules_to_save: [embed_tokens, lm_head] or peft_trainable_token_indices",
                "lora_modules_to_save",
            )
        )


def freeze_all_but(model: PreTrainedModel, patterns: Sequence[str], config: Config) -> None:
    """Train only the parameters whose whole or beginning of name a pattern matches.

    Raises:
        ModelError: a pattern is no regular expression, asks for a slice of a parameter, or matches none.
    """
    names = [name for name, _ in model.named_parameters()]
    problems: list[Problem] = []
    for pattern in patterns:
        found, fix = _pattern_fault(pattern, names)
        if found:
            problems.append(
                Problem(
                    config.where("unfrozen_parameters"), f"unfrozen_parameters: {found}", fix, "unfrozen_parameters"
                )
            )
    if problems:
        raise ModelError(problems)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(re.match(pattern, name) for pattern in patterns))


def _pattern_fault(pattern: str, names: Sequence[str]) -> tuple[str, str]:
    if re.search(r"\[\d*:\d*\]$", pattern):
        return f"'{pattern}' asks for a part of a parameter, which is not supported yet", "leave out the [a:b]"
    try:
        matches = [name for name in names if re.match(pattern, name)]
    except re.error as error:
        return f"'{pattern}' is no regular expression ({error})", "correct it"
    if matches:
        return "", ""
    close = nearest(pattern, names)
    return f"'{pattern}' matches no parameter", f"did you mean '{close}'?" if close else f"they look like '{names[0]}'"


def _load(
    source: str, config: Config, resolved: ResolvedRun, model_config: PretrainedConfig, attention: AttentionChoice
) -> PreTrainedModel:
    model_class = transformers_class(config.model.model_type or "AutoModelForCausalLM", "model_type", config)
    dtype = getattr(torch, resolved.dtype)
    chosen = {} if attention.name is None else {"attn_implementation": attention.name}
    try:
        if config.model.reinit_weights:
            return _random(model_class, model_config, dtype, chosen, config, resolved)
        with pickles_refused(source, config.where("base_model"), AS_SAFETENSORS, key="base_model"):
            model, loading = model_class.from_pretrained(
                source,
                output_loading_info=True,
                config=model_config,
                dtype=dtype,
                quantization_config=quantization_config(config, resolved),
                **chosen,
                **_placement(config, resolved, stored_format(model_config) is not None),
                **_hub_options(config),
                **(config.model.overrides_of_model_kwargs or {}),
            )
    except RuntimeError as error:
        if "mismatched_sizes" not in str(error):
            _without_numbers(config, model_config)  # which says so where the config is at fault
            raise
        found = f"base_model: the weights of '{config.model.base_model}' have other sizes than its config says"
        cure = "give the config.json that they were saved with"
        if config.model.overrides_of_model_config:
            cure = "take back what overrides_of_model_config changes"
        fix = f"{cure}, or write reinit_weights: true"
        raise ModelError(Problem(config.where("base_model"), found, fix, "base_model")) from error
    except (*NOT_READ, SafetensorError) as error:
        raise cannot_load(config.model.base_model, source, "model", error, config, "base_model") from error
    refuse_random_weights(loading["missing_keys"], config)
    loaded: PreTrainedModel = model
    return loaded


def refuse_random_weights(missing: Iterable[str], config: Config) -> None:
    """A checkpoint must hold every weight: transformers fills those that are missing with random numbers, and logs it.

    Raises:
        ModelError: names the weights.
    """
    names = sorted(missing)
    if not names:
        return
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    found = f"base_model: '{config.model.base_model}' has no weights for {shown}; they would be random numbers"
    fix = "give a complete model, or write reinit_weights: true to train from random weights"
    raise ModelError(Problem(config.where("base_model"), found, fix, "base_model"))


def _random(
    model_class: Any,
    model_config: PretrainedConfig,
    dtype: torch.dtype,
    chosen: dict[str, str],
    config: Config,
    resolved: ResolvedRun,
) -> PreTrainedModel:
    """The architecture with random weights, the same for the same seed."""
    if resolved.quantization != "none":
        raise ModelError(
            Problem(
                config.where("reinit_weights"),
                "reinit_weights gives random weights, and quantised ones cannot be trained",
                "leave out load_in_4bit and load_in_8bit",
                "reinit_weights",
            )
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(resolved.seed)
        build = model_class.from_config if hasattr(model_class, "from_config") else model_class._from_config
        model: PreTrainedModel = build(model_config, dtype=dtype, **chosen)
    model.name_or_path = config.model.base_model
    say(f"reinit_weights: random weights in the shape of '{config.model.base_model}'")
    return model


def _placement(config: Config, resolved: ResolvedRun, is_stored: bool) -> dict[str, Any]:
    """Where the weights go while loading; nothing to say for those that are loaded on the CPU and moved as a whole.

    Quantised ones go to their device at once: they are packed for it.
    """
    section = config.model
    if section.device_map is not None:
        memory = {} if section.max_memory is None else {"max_memory": section.max_memory}
        return {"device_map": section.device_map, **memory}
    if section.max_memory is not None:
        return {"device_map": "auto", "max_memory": section.max_memory}
    if resolved.quantization == "none" and not is_stored:
        return {}
    return {"device_map": {"": _device(resolved)}}


def _device(resolved: ResolvedRun) -> str:
    """This process's own."""
    return f"cuda:{resolved.hardware.local_rank}" if resolved.device == "cuda" else resolved.device


def _prepare_for_training(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    model.config.use_cache = False
    text_config = model.config.get_text_config(decoder=True)
    if getattr(text_config, "pad_token_id", None) is None:
        text_config.pad_token_id = tokenizer.pad_token_id


def _check_sequence_len(resolved: ResolvedRun, architecture: Architecture) -> None:
    limit = architecture.max_positions
    config = resolved.config
    for key, length in (("sequence_len", resolved.sequence_len), ("eval_sequence_len", resolved.eval_sequence_len)):
        if limit is not None and length > limit:
            raise ModelError(
                Problem(
                    config.where(key if config.is_set(key) else "sequence_len"),
                    f"{key} is {length}, and '{config.model.base_model}' was made for {limit} positions",
                    f"write {key}: {limit}, or less; or lengthen the model by model_config (rope_scaling)",
                    key,
                )
            )


def _with_overrides(model_config: PretrainedConfig, overrides: dict[str, Any], config: Config) -> PretrainedConfig:
    fields = model_config.to_dict()
    # Accepted by every rotary family although transformers 5 stores them as rope_parameters.
    known = {*fields, "rope_scaling", "rope_theta"}
    unknown = [name for name in overrides if name not in known and not hasattr(model_config, name)]
    if unknown:
        where = config.where("overrides_of_model_config")
        raise ModelError(
            Problem(
                where,
                f"model_config: {model_config.model_type} has no '{name}'",
                f"did you mean '{close}'?" if (close := nearest(name, known)) else "see the model's config.json",
                "model_config",
            )
            for name in unknown
        )
    changed: PretrainedConfig = type(model_config).from_dict({**fields, **overrides})
    changed.name_or_path = model_config.name_or_path
    return changed


def transformers_class(name: str, key: str, config: Config) -> Any:
    """The class of that name, which the key asks for.

    Raises:
        ModelError: transformers has none.
    """
    auto = {"AutoConfig": AutoConfig, "AutoModelForCausalLM": AutoModelForCausalLM}
    found = auto.get(name) or getattr(transformers, name, None)
    if found is None or not hasattr(found, "from_pretrained"):
        ending = "Config" if key == "cls_model_config" else "ForCausalLM"
        close = nearest(name, [each for each in dir(transformers) if each.endswith(ending)])
        advice = f"did you mean '{close}'?" if close else f"leave {key} out"
        raise ModelError(
            Problem(config.where(key), f"{key}: transformers {transformers.__version__} has no '{name}'", advice, key)
        )
    return found


def _hub_options(config: Config) -> dict[str, Any]:
    options: dict[str, Any] = {"trust_remote_code": config.model.trust_remote_code}
    if config.model.revision_of_model:
        options["revision"] = config.model.revision_of_model
    return options


def _trains_embeddings(config: Config) -> bool:
    return bool(config.adapter.lora_modules_to_save or config.adapter.peft_trainable_token_indices)
