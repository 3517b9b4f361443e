"""Files of a model that lie about their sizes, refused before memory is taken for what they say."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig

from whet.config import Config
from whet.core.errors import ModelError, Problem
from whet.model.source import locate

MOST_NUMBERS = 2**40
"""Of one matrix. The largest of published models, vocabulary times hidden size, have some 2^32."""

MOST_LAYERS = 100_000

_FIELDS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")


def refuse_impossible_sizes(model_config: PretrainedConfig, config: Config, key: str) -> None:
    """A vocabulary, width or number of layers that no model has: building it, even without its numbers, would not end.

    Args:
        key: that named the config.json.

    Raises:
        ModelError: names the fields.
    """
    text = model_config.get_text_config(decoder=True)
    sizes = {name: size for name in _FIELDS if isinstance(size := getattr(text, name, None), int)}
    width = sizes.get("hidden_size", 1)
    for name, size in sizes.items():
        most = MOST_LAYERS if name == "num_hidden_layers" else MOST_NUMBERS // max(width, 1)
        if 0 <= size <= most:
            continue
        found = f"{key}: its config.json says {name}: {_short(size)}"
        if name != "num_hidden_layers" and size >= 0:
            found += f" beside hidden_size: {_short(width)}"
        fix = f"give the config.json that its weights were saved with; at most {most:,} is taken here for {name}"
        raise ModelError(Problem(config.where(key), found + ", which no model has", fix, key))


def refuse_damaged_weights(config: Config) -> None:
    """Read the headers of a local base model's safetensors: each must fit its file. No weights are read.

    Raises:
        ModelError: names the file.
    """
    key, folder = "base_model", Path(locate(config.model.base_model, config, "base_model"))
    single = folder / "model.safetensors"
    for file in [single] if single.is_file() else sorted(folder.glob("model-*-of-*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            found = f"{key}: '{file}' is damaged, or cut short ({error})"
            raise ModelError(Problem(config.where(key), found, "copy it again from where it came", key)) from error


def _short(number: int) -> str:
    return f"{number:,}" if abs(number) < 10**15 else f"about 10^{len(str(abs(number))) - 1}"
