"""What a run has saved, reloaded in a fresh process and held against the model that still stands in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from whet.artefacts.fresh import FreshProcess, Source
from whet.artefacts.parity import (
    RECORD_NAME,
    UNPROVED,
    Limit,
    Parity,
    limit_for,
    live_reference,
    not_proved,
    prove,
    tell,
    workspace,
)
from whet.artefacts.prompts import Prompts, encode_prompts
from whet.artefacts.publish import kept_at, set_apart
from whet.config import Config
from whet.config.resolve import ResolvedRun
from whet.core.disk import refused_write
from whet.core.errors import ParityError
from whet.core.log import warn
from whet.model.load import load_model_config
from whet.model.loss import innermost
from whet.model.quantize import quantization_config
from whet.model.source import locate
from whet.model.stored import read_as_floats, stored_format


@contextmanager
def proving(config: Config) -> Iterator[FreshProcess | None]:
    """The process that will load what is saved, importing meanwhile; None where the config wants no proof."""
    if not config.output.parity:
        yield None
        return
    with FreshProcess(adapter=config.adapter.adapter is not None) as fresh:
        yield fresh


def prove_saved(
    fresh: FreshProcess,
    resolved: ResolvedRun,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    names: Sequence[str],
) -> Parity | None:
    """Compare the adapter or model in ``folder`` with ``model``, which it was saved from.

    Args:
        model: as it was trained.
        names: of the saved files.

    Returns:
        None where there is nothing to compare: the base of an adapter is random and stored nowhere. Where the system
        refuses what the comparison needs (room for the logits), it is not proved, and saved all the same.

    Raises:
        ParityError: it is another model; its files lie in ``adapter.FAILED-PARITY`` (or ``model...``) of the folder.
    """
    config = resolved.config
    is_adapter = model is not innermost(model)
    if is_adapter and config.model.reinit_weights:
        warn("parity: the adapter cannot be compared, because its random base is stored nowhere (reinit_weights)")
        return None
    kind, failed = ("adapter", "adapter") if is_adapter else ("full model", "model")
    try:
        parity = _compared(fresh, kind, resolved, model, tokenizer, folder, names)
    except ParityError as error:
        raise kept_at(set_apart(folder, [*names, RECORD_NAME], failed), error) from error
    except (OSError, SafetensorError) as error:
        reason = refused_write(error)
        if reason is None:
            raise
        parity = _unproved(kind, folder, names, reason)
    tell(kind, folder, parity)
    return parity


def _compared(
    fresh: FreshProcess,
    kind: str,
    resolved: ResolvedRun,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    names: Sequence[str],
) -> Parity:
    config = resolved.config
    with workspace(folder) as space:
        source = (
            adapter_source(config, resolved, folder, space, rows_of(model))
            if kind == "adapter"
            else full_source(config, folder)
        )
        reference = live_reference(model, prompts_of(config, tokenizer, model), space, **_facts(resolved))
        if resolved.device == "cuda":
            torch.cuda.empty_cache()  # room for the second copy
        return prove(fresh, kind, folder, source, reference, run_limit(resolved), device_of(resolved), files=names)


def _unproved(kind: str, folder: Path, names: Sequence[str], reason: str) -> Parity:
    """A record that says so, where there is room for one; never that of an earlier result."""
    try:
        return not_proved(kind, folder, reason, names)
    except OSError:
        (folder / RECORD_NAME).unlink(missing_ok=True)
        parity = Parity(f"{UNPROVED}: {reason}")
        warn(f"the {kind} is {parity.outcome}; there is no room for {RECORD_NAME} either")
        return parity


def prompts_of(config: Config, tokenizer: PreTrainedTokenizerBase, model: Any) -> Prompts:
    """The prompts as the model was trained to read them."""
    model_config: PretrainedConfig = innermost(model).config
    positions = getattr(model_config.get_text_config(decoder=True), "max_position_embeddings", None)
    return encode_prompts(tokenizer, config.template.chat_template_kwargs, positions, rows_of(model))


def rows_of(model: Any) -> int:
    """Rows of the input embedding."""
    return int(model.get_input_embeddings().weight.shape[0])


def full_source(config: Config, folder: Path) -> Source:
    """A folder that holds a model of the config's kind, alone."""
    return Source(
        folder=str(folder),
        model_class=config.model.model_type or "AutoModelForCausalLM",
        trust_remote_code=config.model.trust_remote_code,
    )


def adapter_source(
    config: Config, resolved: ResolvedRun, folder: Path, space: Path, rows: int, *, quantised: bool = True
) -> Source:
    """The config's base with the adapter in ``folder``.

    Args:
        space: a folder for the base's config, with what the YAML changes of it.
        quantised: as the run loads it; else with all its bits.
    """
    section = config.model
    (space / "config").mkdir(exist_ok=True)
    model_config = load_model_config(config)
    if not quantised:  # on a GPU too, where products with such weights would round what they are multiplied with
        model_config = read_as_floats(model_config) or model_config
    model_config.save_pretrained(space / "config")
    quantization = quantization_config(config, resolved) if quantised else None
    return Source(
        base=locate(section.base_model, config, "base_model"),
        adapter=str(folder),
        model_class=section.model_type or "AutoModelForCausalLM",
        config=str(space / "config"),
        rows=rows,
        dtype=resolved.dtype,
        revision=section.revision_of_model or "",
        trust_remote_code=section.trust_remote_code,
        quantization=None if quantization is None else quantization.to_dict(),
        options=section.overrides_of_model_kwargs or {},
    )


def run_limit(resolved: ResolvedRun) -> Limit | None:
    """The limit of what the run computes in; None where weights or products have few bits."""
    quant = resolved.config.quant
    few_bits = (
        resolved.quantization != "none"
        or quant.qat is not None
        or quant.model_quantization_config is not None
        or resolved.config.precision.fp8
        or stored_format(load_model_config(resolved.config)) is not None
    )
    if few_bits:
        return None
    # TensorFloat-32 keeps 11 bits of each factor.
    return limit_for(resolved.dtype, resolved.autocast_dtype or "float32", "float16" if resolved.tf32 else "float32")


def device_of(resolved: ResolvedRun) -> str:
    """Where the fresh process computes if there is room: this rank's own GPU, else the CPU."""
    return f"cuda:{resolved.hardware.local_rank}" if resolved.device == "cuda" else "cpu"


def _facts(resolved: ResolvedRun) -> Mapping[str, Any]:
    arithmetic = resolved.autocast_dtype or resolved.dtype
    return {
        "what": "the model in memory, as it was trained",
        "base": resolved.config.model.base_model,
        "arithmetic": f"{arithmetic}, TensorFloat-32 allowed" if resolved.tf32 else arithmetic,
        "quantization": resolved.quantization,
    }
