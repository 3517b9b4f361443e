"""A merge with the whole model in memory, for bases that cannot be merged tensor by tensor."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import PretrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer

from whet.config import Config
from whet.config.resolve import ResolvedRun
from whet.core.errors import ArtefactError, Problem
from whet.core.log import say
from whet.model.load import refuse_random_weights, transformers_class
from whet.model.pickled import AS_SAFETENSORS, pickles_refused
from whet.model.quantize import quantization_config
from whet.model.source import cannot_load
from whet.model.stored import read_as_floats, refuse_missing_packages, stored_format


def refuse_unreadable(config: Config, model_config: PretrainedConfig) -> None:
    """Before the base is read: one that is stored in few bits, of which transformers makes no floats.

    Raises:
        ArtefactError: there is no way to merge into it.
        ModelError: a package of its format is missing.
    """
    stored = stored_format(model_config)
    if stored is None:
        return
    refuse_missing_packages(config, model_config)
    asks_for_floats = (config.quant.model_quantization_config_kwargs or {}).get("dequantize")
    if asks_for_floats or read_as_floats(model_config) is not None:
        return
    quantizer = AUTO_QUANTIZER_MAPPING.get("bitsandbytes_4bit" if stored == "bitsandbytes" else stored)
    if quantizer is None or quantizer._dequantize is HfQuantizer._dequantize:
        raise _no_floats(stored, config)


def _no_floats(stored: str, config: Config) -> ArtefactError:
    found = f"'{config.model.base_model}' is stored in {stored}, and transformers cannot make floats of that"
    fix = "write the unquantised model as base_model for the merge"
    return ArtefactError(Problem(config.where("base_model"), found, fix, "base_model"))


def load_whole(config: Config, resolved: ResolvedRun, source: str, model_config: PretrainedConfig) -> PreTrainedModel:
    """The base in float32; what is stored quantised is made floats.

    Raises:
        ArtefactError: transformers cannot make floats of the way it is stored.
        ModelError: it cannot be loaded.
    """
    section = config.model
    stored = stored_format(model_config)
    options: dict[str, Any] = dict(section.overrides_of_model_kwargs or {})
    if section.revision_of_model:
        options["revision"] = section.revision_of_model
    if (config.quant.model_quantization_config_kwargs or {}).get("dequantize"):
        options["quantization_config"] = quantization_config(config, resolved)
    model_class = transformers_class(section.model_type or "AutoModelForCausalLM", "model_type", config)
    try:
        with pickles_refused(source, config.where("base_model"), AS_SAFETENSORS, key="base_model"):
            model, loading = model_class.from_pretrained(
                source,
                output_loading_info=True,
                config=read_as_floats(model_config) or model_config,
                dtype=torch.float32,
                trust_remote_code=section.trust_remote_code,
                **options,
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise cannot_load(section.base_model, source, "model", error, config, "base_model") from error
    refuse_random_weights(loading["missing_keys"], config)
    base: PreTrainedModel = model
    if stored is not None:
        base = _as_floats(base, stored, config)
    return base.float()


def _as_floats(base: PreTrainedModel, stored: str, config: Config) -> PreTrainedModel:
    floats = base
    if getattr(base, "hf_quantizer", None) is not None:  # else it was done while reading
        try:
            floats = base.dequantize()
        except (NotImplementedError, AttributeError, ValueError) as error:
            raise _no_floats(stored, config) from error
    # The map by which it was read ends in few bits, and transformers would write by it.
    floats._weight_conversions = None
    say(f"merge: the base is stored in {stored}; its weights are made floats, and the merged model has these")
    return floats


def fold(live: PeftModel) -> tuple[PreTrainedModel, bool]:
    """The base with the adapter in its weights, and whether embedding and head were one tensor and are two now.

    Raises:
        ValueError: the adapter makes a weight infinite, or no number.
    """
    tied = bool(live.config.get_text_config(decoder=True).tie_word_embeddings)
    with warnings.catch_warnings():
        # PEFT unties them too, in the versions that do it, and warns; the caller says it.
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        merged: PreTrainedModel = live.merge_and_unload(safe_merge=True)
    head = merged.get_output_embeddings()
    unties = tied and head is not None and not torch.equal(head.weight, merged.get_input_embeddings().weight)
    return merged, unties
