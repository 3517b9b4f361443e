"""The engine of ``whet chat``: the model a run has made, with the template it was trained with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from whet.config import Config, ResolvedRun, resolve
from whet.core.errors import ArtefactError, Problem
from whet.distributed.hardware import probe
from whet.model.base_check import check_base
from whet.model.load import load_model
from whet.model.stops import stop_ids
from whet.serving.generation import GenerationEngine
from whet.serving.sampling import Sampling
from whet.serving.trained import Trained, as_trained, find_trained
from whet.training.tokenizer import run_tokenizer

# Generation reads one token at a time from a cache; a kernel for packed documents gains nothing there.
_ATTENTION = "sdpa"


def load_engine(config: Config, *, lora_model_dir: Path | None = None, untrained: bool = False) -> GenerationEngine:
    """Load the model of a config's run, ready to answer.

    Args:
        lora_model_dir: an adapter to use instead of the one in `output_dir`.
        untrained: the base model as it is, without what the run has trained.

    Raises:
        WhetError: the model is not there, or cannot be loaded.
    """
    trained = Trained("base") if untrained else find_trained(config, lora_model_dir)
    tokenizer = run_tokenizer(config)
    resolved = _for_inference(resolve(config, probe()))
    model = _load(config, resolved, tokenizer, trained)
    generation = model.generation_config
    return GenerationEngine(
        model,
        tokenizer,
        stop_ids(tokenizer, generation.eos_token_id, config.template.eot_tokens or ()),
        _describe(config, trained)
        + ("" if tokenizer.chat_template else ", which has no chat template: it continues text"),
        config.template.chat_template_kwargs,
        default_sampling(generation),
    )


def default_sampling(generation_config: Any) -> Sampling:
    """What a model's ``generation_config.json`` asks for; greedy where it does not ask to sample."""
    if not generation_config.do_sample:
        return Sampling()
    wanted = {name: getattr(generation_config, name, None) for name in ("temperature", "top_p", "top_k", "min_p")}
    return Sampling(temperature=1.0).with_values(**wanted)


def _for_inference(resolved: ResolvedRun) -> ResolvedRun:
    return replace(resolved, attn_implementation=_ATTENTION, gradient_checkpointing=False, sample_packing=False)


def _load(config: Config, resolved: ResolvedRun, tokenizer: Any, trained: Trained) -> Any:
    if trained.kind == "full":
        config = as_trained(config, trained)
    model: Any = load_model(config, resolved, tokenizer).model
    if trained.kind == "adapter":
        model = _with_adapter(model, trained.folder, config)
    return model.eval()


def _with_adapter(model: Any, folder: Path | None, config: Config) -> Any:
    from whet.model.adapters import load_adapter

    check_base(Path(str(folder)), config)
    try:
        return load_adapter(model, Path(str(folder)))
    except (RuntimeError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        found = f"the adapter does not fit '{config.model.base_model}' ({reason})"
        raise ArtefactError(Problem(str(folder), found, "use the base model that it was trained on")) from error


def _describe(config: Config, trained: Trained) -> str:
    base = config.model.base_model
    if trained.kind == "full":
        return f"{trained.folder} (trained from {base})"
    return f"{base} + {trained.folder}" if trained.kind == "adapter" else base
