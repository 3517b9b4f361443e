"""An adapter folded into its base model: a folder that transformers loads alone, proved before it is published."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from whet.artefacts.compare import divergences, logits_of, probe_tokens
from whet.artefacts.publish import check_replaceable, published
from whet.artefacts.save import generation_config
from whet.config import Config
from whet.config.resolve import ResolvedRun
from whet.core.errors import ArtefactError, Problem
from whet.core.log import say
from whet.model.adapters import load_adapter, tying_understood
from whet.model.load import load_model_config, refuse_random_weights
from whet.model.source import cannot_load, locate
from whet.model.tokenizer import highest_id, load_tokenizer
from whet.record import versions_of

MARKER = "whet_merge.json"
"""Written into each merged folder; only a folder that has it may be replaced."""

FLOAT32_LIMIT = 1e-4
"""Largest difference of a logit between base + adapter and the merged model, both in float32; relative to the largest
logit where that is above 1."""

ROUNDED_LIMIT = 0.01
"""Largest mean KL divergence (nats per token) when the merged weights are stored in 16 bits."""


@dataclass(frozen=True)
class Merged:
    """A merged model that was written, and how near it is to base + adapter.

    Attributes:
        folder: where it is.
        base, adapter: what it was made of.
        dtype: of the stored weights.
        largest_difference: of any logit, on random tokens, computed in float32.
        mean_kl: nats per token, from base + adapter to the merged model.
    """

    folder: str
    base: str
    adapter: str
    dtype: str
    largest_difference: float
    mean_kl: float


def merge_lora(config: Config, resolved: ResolvedRun, adapter_dir: str | Path, output_dir: str | Path) -> Merged:
    """Merge the adapter in ``adapter_dir`` into ``base_model`` and write the result to ``output_dir``.

    The sum is made in float32 from the unquantised base and stored in the run's weight type (``resolved.dtype``). The
    folder is written beside its place, reloaded, compared with base + adapter, and only then renamed.

    Raises:
        ArtefactError: no adapter there, it does not fit the base, the output folder holds something else, or the merged
            model differs from base + adapter by more than the limit.
        ModelError: the base model cannot be found.
    """
    adapter, output = Path(adapter_dir), Path(output_dir)
    _check_adapter(adapter, config)
    check_replaceable(output, MARKER, "merged model")
    base = _load_base(config)
    tokenizer, comes_with_adapter = _tokenizer_of(adapter, config)
    _fit_to_adapter(base, adapter, tokenizer, config)
    if resolved.quantization != "none":
        say(
            f"merge: the adapter was trained beside a base in {resolved.quantization}; it is merged into the base's "
            "full weights, so the merged model differs from the one trained by the error of the quantisation"
        )
    live = _with_adapter(base, adapter, config)
    tokens = probe_tokens(base)
    expected = logits_of(live, tokens)
    merged = _fold(live)
    merged.generation_config = _stops(adapter, merged, tokenizer, config)
    say(f"merge: {_describe_tokenizer(comes_with_adapter)}")
    return _publish(merged, tokenizer, expected, tokens, resolved.dtype, adapter, output, config)


def _check_adapter(adapter: Path, config: Config) -> None:
    if not (adapter / "adapter_config.json").is_file():
        holds = "there is no such folder" if not adapter.is_dir() else "it holds no adapter_config.json"
        raise ArtefactError(
            Problem(
                config.where("lora_model_dir") if config.adapter.lora_model_dir else "",
                f"'{adapter}' is no adapter: {holds}",
                "give the output_dir of a LoRA run, or one of its checkpoints",
            )
        )


def _load_base(config: Config) -> PreTrainedModel:
    """The base in float32, not quantised, as the adapter was made for it."""
    source = locate(config.model.base_model, config, "base_model")
    model_config = load_model_config(config)
    if getattr(model_config, "quantization_config", None) is not None:
        raise ArtefactError(
            Problem(
                config.where("base_model"),
                f"'{config.model.base_model}' is stored quantised, and an adapter cannot be merged into such weights",
                "write the unquantised model as base_model for the merge",
                "base_model",
            )
        )
    options = {"revision": config.model.revision_of_model} if config.model.revision_of_model else {}
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            source,
            output_loading_info=True,
            config=model_config,
            dtype=torch.float32,
            trust_remote_code=config.model.trust_remote_code,
            **options,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise cannot_load(config.model.base_model, source, "model", error, config, "base_model") from error
    refuse_random_weights(loading["missing_keys"], config)
    base: PreTrainedModel = model
    return base


def _tokenizer_of(adapter: Path, config: Config) -> tuple[PreTrainedTokenizerBase, bool]:
    """The tokenizer saved with the adapter (its tokens and template are those of training), else the config's."""
    if (adapter / "tokenizer_config.json").is_file():
        return AutoTokenizer.from_pretrained(adapter, trust_remote_code=config.model.trust_remote_code), True
    return load_tokenizer(config), False


def _describe_tokenizer(comes_with_adapter: bool) -> str:
    if comes_with_adapter:
        return "tokenizer and chat template are those saved with the adapter"
    return "the adapter's folder has no tokenizer; the one of the config is written beside the merged model"


def _fit_to_adapter(base: PreTrainedModel, adapter: Path, tokenizer: PreTrainedTokenizerBase, config: Config) -> None:
    """Give the embedding the rows it had in training; the adapter holds it where they were changed."""
    rows = base.get_input_embeddings().weight.shape[0]
    trained_rows = _embedding_rows(base, adapter) or rows
    if trained_rows != rows:
        base.resize_token_embeddings(trained_rows, mean_resizing=False)
    if highest_id(tokenizer) >= trained_rows:
        raise ArtefactError(
            Problem(
                config.where("base_model"),
                f"the tokenizer has ids up to {highest_id(tokenizer)}, the base has {rows} embedding rows, and the "
                f"adapter in '{adapter}' holds no larger embedding",
                "give the base model and the adapter of the same run",
                "base_model",
            )
        )


def _embedding_rows(base: PreTrainedModel, adapter: Path) -> int | None:
    """Rows of the input embedding that the adapter's file holds, if it does."""
    embedding = base.get_input_embeddings()
    (name,) = [name for name, module in base.named_modules() if module is embedding]
    file = adapter / "adapter_model.safetensors"
    if not file.is_file():
        return None
    width = embedding.weight.shape[1]
    with safe_open(file, framework="pt") as tensors:
        shapes = [
            tensors.get_slice(key).get_shape()
            for key in tensors.keys()  # noqa: SIM118  # a safetensors file is no mapping
            if key.startswith(f"base_model.model.{name}.") and key.endswith("weight")
        ]
    return next((int(shape[0]) for shape in shapes if len(shape) == 2 and shape[1] == width), None)


def _with_adapter(base: PreTrainedModel, adapter: Path, config: Config) -> PeftModel:
    try:
        peft_config = PeftConfig.from_pretrained(adapter)
        with tying_understood():
            return load_adapter(base, adapter, config=peft_config).eval()
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ArtefactError(
            Problem(
                config.where("base_model"),
                f"the adapter in '{adapter}' does not fit '{config.model.base_model}' "
                f"({lines[min(1, len(lines) - 1)].strip()})",
                "give the base model that it was trained on",
                "base_model",
            )
        ) from error


def _fold(live: PeftModel) -> PreTrainedModel:
    """The base with the adapter in its weights.

    An embedding and a head that were one tensor and were trained apart must not be tied again at the next load.
    """
    text_config = live.config.get_text_config(decoder=True)
    tied = bool(text_config.tie_word_embeddings)
    with warnings.catch_warnings():
        # PEFT unties them too, in the versions that do it, and warns; it is said below.
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        try:
            merged: PreTrainedModel = live.merge_and_unload(safe_merge=True)
        except ValueError as error:
            found = f"the adapter cannot be merged ({error})"
            raise ArtefactError(Problem("", found, "merge an earlier checkpoint: --lora-model-dir")) from error
    head = merged.get_output_embeddings()
    if tied and head is not None and not torch.equal(head.weight, merged.get_input_embeddings().weight):
        merged.config.tie_word_embeddings = text_config.tie_word_embeddings = False
        say("merge: embedding and head were trained apart, so the merged model no longer ties them")
    return merged


def _stops(
    adapter: Path, merged: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: Config
) -> GenerationConfig:
    if (adapter / "generation_config.json").is_file():
        merged.generation_config = GenerationConfig.from_pretrained(adapter)
    return generation_config(merged, tokenizer, config.template.eot_tokens or ())


def _publish(
    merged: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    expected: torch.Tensor,
    tokens: torch.Tensor,
    dtype: str,
    adapter: Path,
    output: Path,
    config: Config,
) -> Merged:
    """Write beside ``output``, compare, rename."""
    with published(output, "merged model") as partial:
        merged.to(getattr(torch, dtype)).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        result = _compare(partial, expected, tokens, dtype, adapter, output, config)
        (partial / MARKER).write_text(json.dumps(asdict(result) | _versions(), indent=2) + "\n", encoding="utf-8")
    say(f"merge: '{output}', {dtype}; largest difference of a logit {result.largest_difference:.1g}")
    return result


def _compare(
    folder: Path,
    expected: torch.Tensor,
    tokens: torch.Tensor,
    dtype: str,
    adapter: Path,
    output: Path,
    config: Config,
) -> Merged:
    """Reload what was written and hold it against base + adapter.

    Raises:
        ArtefactError: they differ by more than the limit.
    """
    reloaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=config.model.trust_remote_code
    ).eval()
    logits = logits_of(reloaded, tokens)
    difference = float((logits - expected).abs().max())
    divergence = float(divergences(expected, logits).mean())
    largest = max(1.0, float(expected.abs().max()))  # the rounding of a sum grows with what is summed
    within = difference <= FLOAT32_LIMIT * largest if dtype == "float32" else divergence <= ROUNDED_LIMIT
    if not within:
        raise ArtefactError(
            Problem(
                "",
                f"the merged model is not base + adapter: logits differ by {difference:.2g}, "
                f"KL {divergence:.2g} nats per token ({dtype})",
                "nothing was written; write float32: true to merge without rounding, or report this",
            )
        )
    return Merged(str(output), config.model.base_model, str(adapter), dtype, difference, divergence)


def _versions() -> dict[str, str]:
    return versions_of(("whet", "torch", "transformers", "peft"))
