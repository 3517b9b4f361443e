"""A whole model as one GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from whet.artefacts.gguf.architectures import (
    Architecture,
    architecture_of,
    context_length,
    rotary_tensors,
    write_hyperparameters,
)
from whet.artefacts.gguf.tensors import EMBEDDING, ModelFiles, plan
from whet.artefacts.gguf.vocabulary import Vocabulary, name_for, vocabulary_of, write_vocabulary
from whet.artefacts.gguf.writing import Tensor, write_file
from whet.core.errors import ArtefactError, Problem
from whet.core.log import say
from whet.model.saved import saved_config


@dataclass(frozen=True)
class Writable:
    """A model of which it is sure that it can be written: everything but its numbers was looked at.

    Attributes:
        name: for ``general.name``.
    """

    name: str
    config: PretrainedConfig
    row: Architecture
    vocabulary: Vocabulary
    tensors: tuple[Tensor, ...]

    @property
    def context_length(self) -> int:
        return context_length(self.config, self.row)


def look_at(
    folder: Path,
    files: ModelFiles,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    trust_remote_code: bool = False,
    config: PretrainedConfig | None = None,
) -> Writable:
    """Everything that can be refused, before anything is written.

    Args:
        config: the model's; that of its folder if not given.

    Raises:
        ArtefactError: the architecture, the tokenizer or a tensor has no place in GGUF.
    """
    config = config or saved_config(folder, trust_remote_code=trust_remote_code)
    if getattr(config, "quantization_config", None) is not None:
        raise ArtefactError(
            Problem("", f"the weights in '{folder}' are quantised already", "give the model before that: --model-dir")
        )
    row = architecture_of(config, str(folder))
    planned = plan(files, config, row)
    rows = files.shapes[EMBEDDING][0]
    vocabulary = vocabulary_of(tokenizer, rows)
    factors = rotary_tensors(config)
    tensors = [Tensor(key, numbers.shape, partial(np.asarray, numbers)) for key, numbers in factors.items()]
    tensors += [Tensor(each.name, each.shape, partial(each.numbers, files)) for each in planned]
    length = context_length(config, row)
    if length < config.max_position_embeddings:
        say(f"gguf: llama.cpp has no sliding window for {row.name}, so the file promises {length:,} tokens: up to its "
            "window the model is the same")  # fmt: skip
    return Writable(name_for(name, tokenizer), config, row, vocabulary, tuple(tensors))


def write_model(path: Path, model: Writable, outtype: str) -> None:
    """Write the file."""
    from gguf import GGML_QUANT_VERSION, GGUFWriter, LlamaFileType

    writer = GGUFWriter(path, model.row.name)
    writer.add_type("model")
    writer.add_name(model.name)
    writer.add_file_type(
        {
            "f32": LlamaFileType.ALL_F32,
            "f16": LlamaFileType.MOSTLY_F16,
            "bf16": LlamaFileType.MOSTLY_BF16,
            "q8_0": LlamaFileType.MOSTLY_Q8_0,
        }[outtype]
    )
    writer.add_quantization_version(GGML_QUANT_VERSION)
    write_hyperparameters(writer, model.config, model.row, len(model.vocabulary.tokens))
    write_vocabulary(writer, model.vocabulary)
    write_file(path, writer, model.tensors, outtype)
