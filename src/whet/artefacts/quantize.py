"""A trained model written in few bits, as transformers loads it, with how far that is from the model."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from whet.artefacts.compare import divergences, logits_of
from whet.artefacts.parity import live_reference, prove, tell, workspace
from whet.artefacts.prove_saved import device_of, full_source, prompts_of, proving
from whet.artefacts.publish import check_replaceable, published
from whet.config import Config
from whet.config.resolve import ResolvedRun
from whet.core.errors import ArtefactError, ConfigError, Problem
from whet.core.log import say
from whet.model.pickled import AS_SAFETENSORS, pickles_refused
from whet.model.saved import saved_tokenizer
from whet.model.schemes import (
    Scheme,
    embedding_config,
    refusal,
    require_torchao,
    scheme_to_write,
    torchao_config,
    undivided_layer,
)
from whet.model.source import cannot_load
from whet.record import versions_of

MARKER = "whet_quantize.json"
"""Written into each quantised folder; only a folder that has it may be replaced."""

PROMPTS = (
    "The capital of France is Paris. The capital of Italy is",
    "To make bread you need flour, water, salt and yeast. First,",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Q: If a train travels 60 miles in 90 minutes, how fast does it go?\nA: Let us think step by step.",
)
"""What the model and its quantised form are compared on."""


@dataclass(frozen=True)
class Quantized:
    """A quantised model that was written, and how near it is to what it was made of.

    Attributes:
        folder: where it is.
        model: what it was made of.
        scheme: the numbers of weights and inputs.
        dtype: of everything that is not quantised.
        model_bytes, quantized_bytes: of the weights' files before and after.
        mean_kl, largest_kl: nats per token, from the model to the quantised one, over the tokens of `PROMPTS`.
        same_first_choice: share of these tokens after which both find the same next token likeliest.
    """

    folder: str
    model: str
    scheme: str
    dtype: str
    model_bytes: int
    quantized_bytes: int
    mean_kl: float
    largest_kl: float
    same_first_choice: float


def quantize_model(config: Config, resolved: ResolvedRun, model_dir: Path, output: Path) -> Quantized:
    """Write the model in ``model_dir`` to ``output``, in the numbers of the block `quantization` (or `qat`).

    It is written beside its place, reloaded, compared with what was written, and only then renamed.

    Raises:
        ConfigError: this machine cannot make such numbers.
        ModelError: torchao is not installed, or the model cannot be loaded.
        ArtefactError: there is no full model, its layers do not fit the groups, the output folder holds something else,
            or what is read back is not what was written.
    """
    scheme = _scheme(config, resolved)
    _check_model(model_dir, config)
    check_replaceable(output, MARKER, "quantised model")
    tokenizer = saved_tokenizer(model_dir, trust_remote_code=config.model.trust_remote_code)
    model = _load(model_dir, config, resolved, dtype="auto")
    _check_layers(model, scheme, config)
    prompts = [torch.tensor([tokenizer(text, add_special_tokens=True).input_ids]) for text in PROMPTS]
    expected = [logits_of(model, tokens) for tokens in prompts]
    output.parent.mkdir(parents=True, exist_ok=True)
    with proving(config) as fresh, workspace(output.parent) as space, published(output, "quantised model") as partial:
        reference = live_reference(model, prompts_of(config, tokenizer, model), space, what="the model before that")
        dtype = model.dtype
        layout = _layout(model, scheme)
        with _with_its_own_head(model, scheme, model_dir) as source:
            del model
            quantized = _load(source, config, resolved, dtype=dtype, quantization_config=layout)
        found = [logits_of(quantized, tokens) for tokens in prompts]
        _write(quantized, tokenizer, partial)
        del quantized
        _check_read_back(partial, config, resolved, prompts, found)
        result = _result(scheme, model_dir, output, partial, dtype, expected, found)
        record = asdict(result) | versions_of(("whet", "torch", "transformers", "torchao"))
        (partial / MARKER).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if fresh is not None:
            kind, loaded = "quantised model", full_source(config, partial)
            parity = prove(fresh, kind, partial, loaded, reference, None, device_of(resolved))
    if fresh is not None:
        tell(kind, output, parity)
    _tell(result, sum(tokens.numel() for tokens in prompts))
    return result


def _tell(result: Quantized, num_tokens: int) -> None:
    sizes = f"{_mebibytes(result.model_bytes)} -> {_mebibytes(result.quantized_bytes)}"
    say(f"quantize: '{result.folder}', {result.scheme}; {sizes}")
    say(
        f"quantize: against the model, on {num_tokens} tokens: KL {result.mean_kl:.2g} nats per token on average, "
        f"{result.largest_kl:.2g} at most; the same first choice after {result.same_first_choice:.1%} of them"
    )


def _scheme(config: Config, resolved: ResolvedRun) -> Scheme:
    scheme = scheme_to_write(config)
    assert scheme is not None, "the stage refuses a config without one"
    require_torchao(config, scheme.key)
    if refused := refusal(scheme, resolved.hardware):
        raise ConfigError(Problem(config.where(scheme.key), f"{scheme.key}: {refused[0]}", refused[1], scheme.key))
    return scheme


def _check_model(folder: Path, config: Config) -> None:
    if not (folder / "config.json").is_file():
        holds = "there is no such folder" if not folder.is_dir() else "it holds no config.json"
        if (folder / "adapter_config.json").is_file():
            holds = "it holds an adapter alone"
        raise ArtefactError(
            Problem(config.where("output_dir"), f"'{folder}' is no full model: {holds}",
                    "give the output_dir of a full run, or a merged model (whet merge-lora)", "output_dir")
        )  # fmt: skip
    stored = _stored_quantization(folder)
    if stored is not None:
        raise ArtefactError(
            Problem(config.where("output_dir"), f"the model in '{folder}' is quantised already "
                    f"({stored.get('quant_method', 'in its own way')})", "give the model before that", "output_dir")
        )  # fmt: skip


def _stored_quantization(folder: Path) -> dict[str, Any] | None:
    """What config.json says; transformers' own reader would run a model's code for it."""
    stored: dict[str, Any] | None = json.loads((folder / "config.json").read_text("utf-8")).get("quantization_config")
    return stored


def _load(folder: Path, config: Config, resolved: ResolvedRun, **options: Any) -> PreTrainedModel:
    place = {"device_map": {"": resolved.device}} if resolved.device != "cpu" else {}
    try:
        with pickles_refused(folder, config.where("output_dir"), AS_SAFETENSORS, kind=ArtefactError):
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                folder, trust_remote_code=config.model.trust_remote_code, **place, **options
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise cannot_load(str(folder), str(folder), "model", error, config, "output_dir") from error
    return model.eval()


def _check_layers(model: PreTrainedModel, scheme: Scheme, config: Config) -> None:
    if wrong := undivided_layer(model, scheme):
        where, fix = config.where(scheme.key), "write a group_size that does"
        raise ArtefactError(Problem(where, f"{scheme.key}: {wrong}", fix, scheme.key))


def _layout(model: PreTrainedModel, scheme: Scheme) -> Any:
    """transformers' config of the quantisation: every linear layer but the head, and the embedding where asked for."""
    from torchao.quantization import FqnToConfig
    from transformers import TorchAoConfig

    if not scheme.embedding:
        return TorchAoConfig(torchao_config(scheme))
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    by_name = {}
    for name, module in model.named_modules():
        if module is embedding:
            by_name[name] = embedding_config(scheme)
        elif isinstance(module, torch.nn.Linear) and module is not head:
            # One expression for the layer of this name in every block.
            by_name["re:" + re.sub(r"\d+", r"\\d+", re.escape(name))] = torchao_config(scheme)
    return TorchAoConfig(FqnToConfig(by_name), include_input_output_embeddings=True)


@contextmanager
def _with_its_own_head(model: PreTrainedModel, scheme: Scheme, model_dir: Path) -> Iterator[Path]:
    """The model's folder; a copy with its own head where that shares the weights of an embedding to be quantised.

    transformers 5.23 has `untie_embedding_weights` for that, and fails when it compares the two afterwards.
    """
    text_config = model.config.get_text_config(decoder=True)
    if not (scheme.embedding and text_config.tie_word_embeddings):
        yield model_dir
        return
    say("quantize: the head shared its weights with the embedding, and keeps them unquantised in its own copy")
    model.config.tie_word_embeddings = text_config.tie_word_embeddings = False
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    with tempfile.TemporaryDirectory(prefix="whet-quantize-") as folder:
        model.save_pretrained(folder)
        yield Path(folder)


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    model.config.use_cache = True
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _check_read_back(
    folder: Path, config: Config, resolved: ResolvedRun, prompts: list[torch.Tensor], written: list[torch.Tensor]
) -> None:
    assert _stored_quantization(folder) is not None
    reloaded = _load(folder, config, resolved)
    for tokens, logits in zip(prompts, written, strict=True):
        difference = float((logits_of(reloaded, tokens) - logits).abs().max())
        if difference > 1e-3 * max(1.0, float(logits.abs().max())):
            found = f"the quantised model is another one after it is read back: logits differ by {difference:.2g}"
            raise ArtefactError(Problem("", found, "nothing was written; please report this"))


def _result(
    scheme: Scheme,
    model_dir: Path,
    output: Path,
    partial: Path,
    dtype: torch.dtype,
    expected: list[torch.Tensor],
    found: list[torch.Tensor],
) -> Quantized:
    kl = torch.cat([divergences(*pair).flatten() for pair in zip(expected, found, strict=True)])
    same = [(one.argmax(-1) == other.argmax(-1)).flatten() for one, other in zip(expected, found, strict=True)]
    return Quantized(
        folder=str(output),
        model=str(model_dir),
        scheme=str(scheme),
        dtype=str(dtype).removeprefix("torch."),
        model_bytes=_weight_bytes(model_dir),
        quantized_bytes=_weight_bytes(partial),
        mean_kl=max(0.0, float(kl.mean())),
        largest_kl=float(kl.max()),
        same_first_choice=float(torch.cat(same).float().mean()),
    )


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
