"""What becomes of each tensor of a model: its name in GGUF, its form, and the type it is stored in.

A plan is made of names and shapes alone, so that everything is known before anything is written; the numbers are read,
changed and written tensor by tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig

from whet.artefacts.gguf.architectures import Architecture, Numbers
from whet.core.errors import ArtefactError, Problem
from whet.model.weight_files import weight_files

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

_EXPERT = re.compile(r"model\.layers\.(\d+)\.(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)\.weight")
_STACKED = re.compile(r"model\.layers\.(\d+)\.(?:mlp|block_sparse_moe)\.experts\.(gate_up_proj|down_proj)")
_ROUTER = re.compile(r"model\.layers\.(\d+)\.(?:mlp|block_sparse_moe)\.gate\.weight")
_EXPERT_NAMES = {
    "w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps",
    "gate_proj": "ffn_gate_exps", "down_proj": "ffn_down_exps", "up_proj": "ffn_up_exps",
}  # fmt: skip


class ModelFiles:
    """The safetensors of a folder: shapes at once, numbers when asked for."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._files: dict[str, Any] = {}
        for file in _files(folder):
            try:
                opened = stack.enter_context(safe_open(file, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise ArtefactError(
                    Problem("", f"'{file}' cannot be read ({error})", "it is broken; write the model again")
                ) from error
            self._files |= dict.fromkeys(opened.keys(), opened)
        self.shapes = {n: tuple(file.get_slice(n).get_shape()) for n, file in self._files.items()}

    @property
    def outtype(self) -> str:
        """The 16 bits that hold the stored weights best."""
        return "bf16" if self.lossless == "bf16" else "f16"

    @property
    def lossless(self) -> str:
        """The type that holds the stored weights as they are."""
        stored = self._files[EMBEDDING].get_slice(EMBEDDING).get_dtype()
        return {"BF16": "bf16", "F16": "f16"}.get(stored, "f32")

    def read(self, name: str) -> Numbers:
        """One tensor as float32, which holds every value of float16 and bfloat16."""
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        numbers: Numbers = tensor.to(torch.float32).numpy()
        return numbers


@contextmanager
def opened(folder: Path) -> Iterator[ModelFiles]:
    """The weights of a model's folder.

    Raises:
        ArtefactError: it has none in safetensors, or they are broken.
    """
    with ExitStack() as stack:
        yield ModelFiles(folder, stack)


def _files(folder: Path) -> list[Path]:
    files = weight_files(folder)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ArtefactError(Problem("", f"'{folder}' lacks {missing[0]}", "write the model again"))
    if files:
        return files
    holds = "there is no such folder" if not folder.is_dir() else "it holds no model.safetensors"
    raise ArtefactError(
        Problem("", f"'{folder}' is no model in safetensors: {holds}",
                "give the output_dir of a full run, or a merged model (whet merge-lora): --model-dir")
    )  # fmt: skip


@dataclass(frozen=True)
class Planned:
    """One tensor of the file.

    Attributes:
        name: in GGUF.
        shape: as torch has it; GGUF stores the same order of bytes and says it backwards.
        sources: names in safetensors.
        make: the numbers from those of the sources.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    make: Callable[[Sequence[Numbers]], Numbers]

    def numbers(self, files: ModelFiles) -> Numbers:
        """Read and change."""
        return np.ascontiguousarray(self.make([files.read(source) for source in self.sources]))


def plan(files: ModelFiles, config: PretrainedConfig, row: Architecture) -> list[Planned]:
    """Every tensor of the file, in the order they are written.

    Raises:
        ArtefactError: a tensor of the model has no place in GGUF, or one that is needed is missing.
    """
    names = name_map(row, config.num_hidden_layers)
    planned: list[Planned] = []
    experts: dict[tuple[str, str], dict[int, str]] = {}
    for source in sorted(files.shapes, key=_natural):
        if match := _EXPERT.fullmatch(source):
            experts.setdefault((match[1], _EXPERT_NAMES[match[3]]), {})[int(match[2])] = source
        elif match := _STACKED.fullmatch(source):
            planned += _stacked(files, source, match[1], match[2])
        elif source == HEAD and (row.ties_head or _is_tied(files, config)):
            continue
        elif source.endswith("rotary_emb.inv_freq"):
            continue  # a buffer of older checkpoints
        else:
            planned.append(_planned(files, source, names(source), config, row))
    planned += [_gathered(files, layer, name, by_number) for (layer, name), by_number in experts.items()]
    _refuse_gaps(planned, config)
    return planned


def _is_tied(files: ModelFiles, config: PretrainedConfig) -> bool:
    return bool(config.tie_word_embeddings) and EMBEDDING in files.shapes


def name_map(row: Architecture, num_layers: int) -> Callable[[str], str]:
    """From a tensor's name in transformers to its name in GGUF."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = next(key for key, name in MODEL_ARCH_NAMES.items() if name == row.name)
    table = get_tensor_name_map(architecture, num_layers)

    def named(source: str) -> str:
        if match := _ROUTER.fullmatch(source):
            return f"blk.{match[1]}.ffn_gate_inp.weight"
        found = table.get_name(source, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ArtefactError(
                Problem("", f"the model has a tensor {source}, for which GGUF's {row.name} has no place",
                        "no GGUF can be written of this model")
            )  # fmt: skip
        return str(found)

    return named


def _planned(files: ModelFiles, source: str, name: str, config: PretrainedConfig, row: Architecture) -> Planned:
    heads = rotated_heads(source, config) if row.rotates_pairs else None
    plus_one = row.norm_plus_one and name.endswith("norm.weight")

    def made(numbers: Sequence[Numbers]) -> Numbers:
        if plus_one:
            return numbers[0] + np.float32(1)
        return paired(numbers[0], heads) if heads else numbers[0]

    return Planned(name, files.shapes[source], (source,), made)


def rotated_heads(source: str, config: PretrainedConfig) -> int | None:
    """The number of heads in the rows of a query or key projection; None for other tensors."""
    if ".self_attn.q_proj." in source:
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if ".self_attn.k_proj." in source else None


def paired(numbers: Numbers, heads: int) -> Numbers:
    """Rows in the order in which neighbours are rotated together, from the one in which halves are.

    transformers turns dimension i with i + d/2 of a head, llama.cpp 2i with 2i + 1.

    >>> paired(np.arange(8), 2).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    halves = numbers.reshape(heads, 2, -1, *numbers.shape[1:])
    return halves.swapaxes(1, 2).reshape(numbers.shape)


def _stacked(files: ModelFiles, source: str, layer: str, which: str) -> list[Planned]:
    """Experts as transformers 5 stacks them: gate and up are the halves of one tensor."""
    count, rows, width = files.shapes[source]
    if which == "down_proj":
        return [Planned(f"blk.{layer}.ffn_down_exps.weight", (count, rows, width), (source,), lambda n: n[0])]
    half = rows // 2
    return [
        Planned(f"blk.{layer}.ffn_gate_exps.weight", (count, half, width), (source,), lambda n: n[0][:, :half]),
        Planned(f"blk.{layer}.ffn_up_exps.weight", (count, half, width), (source,), lambda n: n[0][:, half:]),
    ]


def _gathered(files: ModelFiles, layer: str, name: str, by_number: Mapping[int, str]) -> Planned:
    sources = tuple(by_number[number] for number in sorted(by_number))
    shape = (len(sources), *files.shapes[sources[0]])
    return Planned(f"blk.{layer}.{name}.weight", shape, sources, lambda numbers: np.stack(numbers))


def _refuse_gaps(planned: Sequence[Planned], config: PretrainedConfig) -> None:
    layers = {each.name.split(".")[1] for each in planned if each.name.startswith("blk.")}
    names = {each.name for each in planned}
    missing = [str(n) for n in range(config.num_hidden_layers) if str(n) not in layers]
    if missing or not {"token_embd.weight", "output_norm.weight"} <= names:
        what = f"layer {missing[0]}" if missing else "its embedding or last norm"
        raise ArtefactError(Problem("", f"the model's files lack {what}", "write the model again"))


def _natural(name: str) -> list[tuple[int, str]]:
    """Numbers in names by their value: layer 10 behind layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
