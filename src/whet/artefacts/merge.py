"""An adapter folded into its base model: a folder that transformers loads alone, proved before it is published."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from whet.artefacts.base_files import find_shards
from whet.artefacts.fresh import CannotLoad, CannotTell, FreshProcess
from whet.artefacts.merge_layers import BaseParameters, CannotStream
from whet.artefacts.merge_memory import fold, load_whole, refuse_unreadable
from whet.artefacts.merge_stream import StreamMerge
from whet.artefacts.parity import Parity, fresh_reference, limit_for, not_proved, prove, tell, workspace
from whet.artefacts.prompts import encode_prompts
from whet.artefacts.prove_saved import adapter_source, device_of, full_source
from whet.artefacts.publish import check_replaceable, published
from whet.artefacts.save import generation_config
from whet.config import Config
from whet.config.resolve import ResolvedRun
from whet.core.errors import ArtefactError, Problem
from whet.core.log import say
from whet.model.adapters import load_adapter, trained_rows, tying_understood
from whet.model.base_check import check_base
from whet.model.load import empty_model, load_model_config, refuse_random_weights
from whet.model.saved import NOT_READ, saved_adapter_config, saved_generation_config, saved_tokenizer
from whet.model.source import cannot_load, locate
from whet.model.stored import stored_format
from whet.model.tokenizer import highest_id, load_tokenizer
from whet.record import versions_of

MARKER = "whet_merge.json"
"""Written into each merged folder; only a folder that has it may be replaced."""


@dataclass(frozen=True)
class Merged:
    """A merged model that was written.

    Attributes:
        folder: where it is.
        base, adapter: what it was made of.
        dtype: of the stored weights.
        in_memory: why the whole model was held in memory; "" where it was merged tensor by tensor.
        parity: how near it is to base + adapter; None where `parity` is off.
    """

    folder: str
    base: str
    adapter: str
    dtype: str
    in_memory: str
    parity: Parity | None


@dataclass(frozen=True)
class _Merge:
    """What a merge works with."""

    config: Config
    resolved: ResolvedRun
    adapter: Path
    output: Path
    source: str
    model_config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase


def merge_lora(config: Config, resolved: ResolvedRun, adapter_dir: str | Path, output_dir: str | Path) -> Merged:
    """Merge the adapter in ``adapter_dir`` into ``base_model`` and write the result to ``output_dir``.

    The sum is made in float32 from the unquantised base, tensor by tensor, and stored in the run's weight type
    (``resolved.dtype``), in files divided as the base's are. The folder is written beside its place, reloaded by a
    fresh process and compared with base + adapter there, and only then renamed.

    Raises:
        ArtefactError: no adapter there, it does not fit the base, or the output folder holds something else.
        ParityError: the merged model differs from base + adapter by more than the limit.
        ModelError: the base model cannot be found, or is another one than the adapter was trained on.
    """
    adapter, output = Path(adapter_dir), Path(output_dir)
    _check_adapter(adapter, config)
    check_replaceable(output, MARKER, "merged model")
    source = locate(config.model.base_model, config, "base_model")
    _check_apart(output, {"base model": source, "adapter": str(adapter)}, config)
    if Path(source).is_dir():
        check_base(adapter, config)
    tokenizer, comes_with_adapter = _tokenizer_of(adapter, config)
    merge = _Merge(config, resolved, adapter, output, source, load_model_config(config), tokenizer)
    refuse_unreadable(config, merge.model_config)
    if resolved.quantization != "none":
        say(
            f"merge: the adapter was trained beside a base in {resolved.quantization}; it is merged into the base's "
            "full weights, so the merged model differs from the one trained by the error of the quantisation"
        )
    say(f"merge: {_describe_tokenizer(comes_with_adapter)}")
    return _publish(merge)


def _check_adapter(adapter: Path, config: Config) -> None:
    if not (adapter / "adapter_config.json").is_file():
        if adapter == Path(config.output.output_dir):
            raise ArtefactError(_nothing_trained(adapter, config))
        holds = "there is no such folder" if not adapter.is_dir() else "it holds no adapter_config.json"
        raise ArtefactError(
            Problem(
                config.where("lora_model_dir") if config.adapter.lora_model_dir else "",
                f"'{adapter}' is no adapter: {holds}",
                "give the output_dir of a LoRA run, or one of its checkpoints",
            )
        )


def _nothing_trained(output_dir: Path, config: Config) -> Problem:
    """For a run that has left no adapter: not yet, or because it trains every weight."""
    from whet.training.checkpoint import newest_complete

    where, found = config.where("output_dir"), f"there is no trained adapter in '{output_dir}' yet"
    fix = f"train it: whet train {config.file}; or name another folder: --lora-model-dir"
    newest = newest_complete(output_dir).path if output_dir.is_dir() else None
    if config.adapter.adapter is None:
        found = "adapter is not set, so every weight is trained, and there is nothing to merge"
        fix = f"the model in '{output_dir}' is whole as it is; for an adapter elsewhere: --lora-model-dir"
    elif newest is not None:
        found = f"the run in '{output_dir}' has not ended"
        fix = f"whet train {config.file} --resume-from-checkpoint; or merge what it has: --lora-model-dir {newest}"
    return Problem(where, found, fix, "output_dir")


def _elsewhere(config: Config) -> str:
    """A merge may be part of `whet train` or `whet export-gguf`, which have no such option."""
    return f"whet merge-lora {config.file} --merged-dir"


def _check_apart(output: Path, sources: Mapping[str, str], config: Config) -> None:
    """An earlier merged model is replaced as a whole: what this one is made of must not be it, or lie in it."""
    for what, place in sources.items():
        if Path(place).is_dir() and Path(place).resolve().is_relative_to(output.resolve()):
            found = f"'{output}' is where the {what} of this merge lies, and it would be replaced"
            raise ArtefactError(Problem("", found, f"give another folder: {_elsewhere(config)}"))


def _tokenizer_of(adapter: Path, config: Config) -> tuple[PreTrainedTokenizerBase, bool]:
    """The tokenizer saved with the adapter (its tokens and template are those of training), else the config's."""
    if (adapter / "tokenizer_config.json").is_file():
        return saved_tokenizer(adapter, trust_remote_code=config.model.trust_remote_code), True
    return load_tokenizer(config), False


def _describe_tokenizer(comes_with_adapter: bool) -> str:
    if comes_with_adapter:
        return "tokenizer and chat template are those saved with the adapter"
    return "the adapter's folder has no tokenizer; the one of the config is written beside the merged model"


def _publish(merge: _Merge) -> Merged:
    """Write beside the output, prove, rename."""
    config, output, dtype = merge.config, merge.output, merge.resolved.dtype
    output.parent.mkdir(parents=True, exist_ok=True)
    # What the proof needs is imported while the merging goes on.
    with (
        FreshProcess() if config.output.parity else nullcontext() as fresh,
        published(output, "merged model") as partial,
    ):
        merged, in_memory = _write(merge, partial)
        merge.tokenizer.save_pretrained(partial)
        _stops(merge, merged).save_pretrained(partial)
        result = Merged(str(output), config.model.base_model, str(merge.adapter), dtype, in_memory, None)
        (partial / MARKER).write_text(json.dumps(_facts(result), indent=2) + "\n", encoding="utf-8")
        if fresh is not None:
            result = replace(result, parity=_prove(merge, fresh, partial, merged))
    if result.parity is not None:
        tell("merged model", output, result.parity)
    say(f"merge: '{output}', {dtype}")
    return result


def _write(merge: _Merge, folder: Path) -> tuple[PreTrainedModel, str]:
    """Weights and config of the merged model; the model, which has its weights only where there is a reason for that.

    Returns:
        the model and the reason, "" for none.
    """
    dtype = getattr(torch, merge.resolved.dtype)
    try:
        base = _empty_base(merge)
        stream = _stream(merge, base)
        if missing := stream.missing():
            refuse_random_weights(missing, merge.config)
        _check_room(folder, stream.num_bytes, merge.config)
        stream.write(folder)
    except CannotStream as error:
        say(f"merge: the whole model is held in memory, because {error}")
        return _in_memory(merge, folder), str(error)
    except ValueError as error:
        raise _does_not_fit(merge, error) from error
    if stream.unties:
        _untie(base.config)
    base.config.dtype = dtype
    base.config.use_cache = True
    base.config.save_pretrained(folder)
    return base, ""


def _check_room(folder: Path, needed: int, config: Config) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        place = folder.parent
        found = f"the merged model needs {needed / 2**20:,.1f} MiB, and '{place}' has {free / 2**20:,.1f} free"
        raise ArtefactError(Problem("", found, f"make room, or choose another place: {_elsewhere(config)}"))


def _empty_base(merge: _Merge) -> PreTrainedModel:
    """The base without numbers, its embedding with the rows it had in training."""
    if (stored := stored_format(merge.model_config)) is not None:
        raise CannotStream(f"the base is stored in {stored}, and has to be made floats first")
    model_config = copy.deepcopy(merge.model_config)
    base = empty_model(merge.config, model_config)
    rows = base.get_input_embeddings().weight.shape[0]
    if (wanted := _fitting_rows(merge, base)) != rows:
        model_config.get_text_config(decoder=True).vocab_size = wanted
        base = empty_model(merge.config, model_config)
    return base


def _fitting_rows(merge: _Merge, base: PreTrainedModel) -> int:
    """Rows of the embedding in training; the adapter holds the embedding where they are others than the base's."""
    rows: int = base.get_input_embeddings().weight.shape[0]
    try:
        wanted = trained_rows(base, merge.adapter) or rows
    except SafetensorError as error:
        raise _does_not_fit(merge, ValueError(f"its file is damaged: {error}")) from error
    if highest_id(merge.tokenizer) >= wanted:
        raise ArtefactError(
            Problem(
                merge.config.where("base_model"),
                f"the tokenizer has ids up to {highest_id(merge.tokenizer)}, the base has {rows} embedding rows, and "
                f"the adapter in '{merge.adapter}' holds no larger embedding",
                "give the base model and the adapter of the same run",
                "base_model",
            )
        )
    return wanted


def _stream(merge: _Merge, base: PreTrainedModel) -> StreamMerge:
    kwargs = merge.config.model.overrides_of_model_kwargs or {}
    try:
        shards = find_shards(merge.source, merge.config.model.revision_of_model, str(kwargs.get("subfolder") or ""))
    except (OSError, SafetensorError) as error:
        raise cannot_load(
            merge.config.model.base_model, merge.source, "model", error, merge.config, "base_model"
        ) from error
    if shards is None:
        raise CannotStream("the base has no safetensors files")
    parameters = BaseParameters.of(base)
    live = _with_adapter(merge, base, low_cpu_mem_usage=True, torch_device="cpu")
    return StreamMerge(base, parameters, live, shards, getattr(torch, merge.resolved.dtype))


def _with_adapter(merge: _Merge, base: PreTrainedModel, **options: Any) -> PeftModel:
    if not Path(merge.source).is_dir():  # of the hub: its weights are on this machine by now, and not before
        check_base(merge.adapter, merge.config)
    try:
        with tying_understood():
            return load_adapter(base, merge.adapter, config=saved_adapter_config(merge.adapter), **options).eval()
    except (RuntimeError, *NOT_READ) as error:
        raise _does_not_fit(merge, error) from error


def _does_not_fit(merge: _Merge, error: Exception) -> ArtefactError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ArtefactError(
        Problem(
            merge.config.where("base_model"),
            f"the adapter in '{merge.adapter}' does not fit '{merge.config.model.base_model}' "
            f"({lines[min(1, len(lines) - 1)].strip()})",
            "give the base model that it was trained on, or an earlier checkpoint: --lora-model-dir",
            "base_model",
        )
    )


def _in_memory(merge: _Merge, folder: Path) -> PreTrainedModel:
    base = load_whole(merge.config, merge.resolved, merge.source, merge.model_config)
    rows = base.get_input_embeddings().weight.shape[0]
    if (wanted := _fitting_rows(merge, base)) != rows:
        base.resize_token_embeddings(wanted, mean_resizing=False)
    try:
        merged, unties = fold(_with_adapter(merge, base))
    except ValueError as error:
        raise _does_not_fit(merge, error) from error
    if unties:
        _untie(merged.config)
    merged.config.use_cache = True
    merged.to(getattr(torch, merge.resolved.dtype)).save_pretrained(folder)
    return merged


def _untie(model_config: PretrainedConfig) -> None:
    model_config.tie_word_embeddings = model_config.get_text_config(decoder=True).tie_word_embeddings = False
    say("merge: embedding and head were trained apart, so the merged model no longer ties them")


def _stops(merge: _Merge, merged: PreTrainedModel) -> GenerationConfig:
    """The adapter's, else the base's, with the stop tokens of this tokenizer."""
    saved = saved_generation_config(merge.adapter) or saved_generation_config(Path(merge.source))
    if saved is not None:
        merged.generation_config = saved
    return generation_config(merged, merge.tokenizer, merge.config.template.eot_tokens or ())


def _prove(merge: _Merge, fresh: FreshProcess, folder: Path, merged: PreTrainedModel) -> Parity:
    """Both are loaded by a fresh process, one after the other, in the dtype that was written."""
    config, resolved, device = merge.config, merge.resolved, device_of(merge.resolved)
    rows = int(merged.get_input_embeddings().weight.shape[0])
    positions = getattr(merge.model_config.get_text_config(decoder=True), "max_position_embeddings", None)
    prompts = encode_prompts(merge.tokenizer, config.template.chat_template_kwargs, positions, rows)
    with workspace(merge.output.parent) as space:
        source = adapter_source(config, resolved, merge.adapter, space, rows, quantised=False)
        try:
            reference = fresh_reference(fresh, source, prompts, space, device, what="base + adapter, in full weights")
        except (CannotTell, CannotLoad) as error:
            return not_proved("merged model", folder, f"base + adapter cannot be loaded: {error}")
        return prove(
            fresh, "merged model", folder, full_source(config, folder), reference, limit_for(resolved.dtype), device
        )


def _facts(result: Merged) -> dict[str, Any]:
    made_of = {name: value for name, value in asdict(result).items() if name != "parity"}
    return made_of | versions_of(("whet", "torch", "transformers", "peft"))
