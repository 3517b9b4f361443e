"""Writing a trained model: weights or adapter, tokenizer with its template, and where an answer ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from whet.artefacts.publish import published_into
from whet.model.loss import innermost
from whet.model.resized import is_resized
from whet.model.stops import stop_ids
from whet.model.weight_files import INDEX, SINGLE
from whet.training.fit import without_bars

if TYPE_CHECKING:
    from peft import PeftModel


def save_model(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    eot_tokens: Iterable[str] = (),
) -> Path:
    """Write what was trained so that transformers (or PEFT, for an adapter) loads it without more.

    The folder gets safetensors, the tokenizer with its chat template, and a generation config that stops at the end
    of sequence, at the token the template closes an answer with, and at ``eot_tokens``.

    Raises:
        ArtefactError: the folder cannot be written.
    """
    save_files(model, tokenizer, output_dir, eot_tokens)
    return Path(output_dir)


def save_files(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    eot_tokens: Iterable[str] = (),
) -> tuple[str, ...]:
    """`save_model`, giving the names of the files; other things may lie in the folder.

    Raises:
        ArtefactError: the folder cannot be written.
    """
    folder = Path(output_dir)
    base = innermost(model)
    assert isinstance(base, PreTrainedModel), "only transformers' models are trained"
    with published_into(folder, "trained model", last=KNOWN_BY, replaced=_WEIGHTS) as partial:
        with _ready_to_generate(base), without_bars():
            if model is not base:  # an adapter around it
                model.save_pretrained(partial, save_embedding_layers=is_resized(base))
            else:
                base.save_pretrained(partial)
        generation_config(base, tokenizer, eot_tokens).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        # PEFT's form of a card would take the place of the user's own; ours is written from the run's record.
        (partial / "README.md").unlink(missing_ok=True)
        return tuple(sorted(path.name for path in partial.iterdir()))


KNOWN_BY = ("config.json", "adapter_config.json")
"""A folder with one of these is taken for a model, or for an adapter."""

_WEIGHTS = (SINGLE, "model-*-of-*.safetensors", INDEX, "adapter_model.safetensors", "adapter_model.bin")
"""Of an earlier model in the same folder, in another number of files: whoever looks there could take them for this."""


def generation_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, eot_tokens: Iterable[str] = ()
) -> GenerationConfig:
    """The model's own generation config, with this tokenizer's stop and pad tokens."""
    own: dict[str, Any] = model.generation_config.to_dict()
    if not own.get("do_sample") and _has_sampling_settings(own):
        # Some published models have a temperature and do not sample, which transformers refuses to write.
        own["do_sample"] = True
    stops = stop_ids(tokenizer, own.get("eos_token_id"), eot_tokens)
    own |= {
        "eos_token_id": stops[0] if len(stops) == 1 else stops or None,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "use_cache": True,
    }
    return GenerationConfig.from_dict(own)


def _has_sampling_settings(settings: dict[str, Any]) -> bool:
    """Whether settings that only sampling reads were changed from transformers' defaults."""
    return (
        settings.get("temperature") not in (None, 1.0)
        or settings.get("top_p") not in (None, 1.0)
        or settings.get("top_k") not in (None, 50)
    )


@contextmanager
def _ready_to_generate(model: PreTrainedModel) -> Iterator[None]:
    """The config as it should be saved: training switches the key-value cache off, the artefact wants it on."""
    before = model.config.use_cache
    model.config.use_cache = True
    try:
        yield
    finally:
        model.config.use_cache = before
