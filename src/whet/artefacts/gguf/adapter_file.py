"""A LoRA adapter as GGUF: pairs of thin matrices by the names of the base's tensors, and one alpha for all of them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PretrainedConfig

from whet.artefacts.gguf.architectures import Architecture, Numbers, architecture_of
from whet.artefacts.gguf.tensors import name_map, paired, rotated_heads
from whet.artefacts.gguf.writing import Tensor, write_file
from whet.config import Config
from whet.core.errors import ArtefactError, ParityError, Problem
from whet.model.adapters import tying_understood
from whet.model.load import load_model_config
from whet.model.saved import saved_adapter_config

_PEFT = "base_model.model."

_NEAR = {"f32": 1e-5, "f16": 2e-3, "bf16": 2e-2, "q8_0": 5e-2}
"""How far a product read back may be from PEFT's, as a share of its largest number: what rounding both factors does."""


class AdapterFiles:
    """A folder that PEFT wrote: its config, and its tensors when asked for."""

    def __init__(self, folder: Path, peft_config: PeftConfig, tensors: Any) -> None:
        self.folder, self.config, self._tensors = folder, peft_config, tensors
        self.names: tuple[str, ...] = tuple(tensors.keys())

    @classmethod
    def open(cls, folder: Path, stack: ExitStack) -> AdapterFiles:
        """Raises an ArtefactError where there is no adapter in safetensors."""
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            if not (folder / name).is_file():
                holds = "there is no such folder" if not folder.is_dir() else f"it holds no {name}"
                raise ArtefactError(
                    Problem("", f"'{folder}' is no adapter: {holds}",
                            "give the output_dir of a LoRA run, or one of its checkpoints: --lora-model-dir")
                )  # fmt: skip
        try:
            tensors = stack.enter_context(safe_open(folder / "adapter_model.safetensors", framework="pt"))
        except (OSError, SafetensorError) as error:
            raise ArtefactError(
                Problem("", f"the adapter in '{folder}' cannot be read ({error})", "train again")
            ) from error
        return cls(folder, saved_adapter_config(folder), tensors)

    def read(self, name: str) -> torch.Tensor:
        """One tensor in float32."""
        tensor: torch.Tensor = self._tensors.get_tensor(name)
        return tensor.to(torch.float32)


@dataclass(frozen=True)
class Pair:
    """The adapter of one layer: names of its two tensors, its name in GGUF, PEFT's factor, and heads to rearrange."""

    module: str
    name: str
    scaling: float
    rank: int
    rows: int
    columns: int
    heads: int | None


@dataclass(frozen=True)
class WritableAdapter:
    """An adapter of which it is sure that llama.cpp can apply it."""

    files: AdapterFiles
    row: Architecture
    alpha: float
    pairs: tuple[Pair, ...]


def base_config(config: Config) -> PretrainedConfig:
    """The base model's, by which layers have their names."""
    return load_model_config(config)


def look_at_adapter(files: AdapterFiles, base: PretrainedConfig, config: Config) -> WritableAdapter:
    """Everything that can be refused, before anything is written.

    Raises:
        ArtefactError: llama.cpp cannot apply this adapter, or the base is none that can be written.
    """
    row = architecture_of(base, config.model.base_model)
    reason = _refusal(files)
    if reason is not None:
        raise ArtefactError(
            Problem("", f"the adapter in '{files.folder}' has {reason}, which llama.cpp cannot apply beside a model",
                    "write the merged model: whet export-gguf without --adapter")
        )  # fmt: skip
    scalings = _scalings(files, base, config)
    named = name_map(row, base.num_hidden_layers)
    pairs = []
    for module in sorted({name.removeprefix(_PEFT).rpartition(".lora_")[0] for name in files.names}):
        if module not in scalings:
            raise ArtefactError(
                Problem("", f"the adapter has a tensor for {module}, which '{config.model.base_model}' has not",
                        "give the base model that it was trained on")
            )  # fmt: skip
        if module == "lm_head" and (base.tie_word_embeddings or row.ties_head):
            raise ArtefactError(
                Problem("", "the adapter changes lm_head, which is the embedding of this model, and llama.cpp would "
                        "apply it to neither", "write the merged model: whet export-gguf without --adapter")
            )  # fmt: skip
        first, second = (tuple(files.read(f"{_PEFT}{module}.lora_{part}.weight").shape) for part in "AB")
        heads = rotated_heads(f"{module}.weight", base) if row.rotates_pairs else None
        pairs.append(Pair(module, named(f"{module}.weight"), scalings[module], first[0], second[0], first[1], heads))
    assert isinstance(files.config, LoraConfig)
    return WritableAdapter(files, row, float(files.config.lora_alpha), tuple(pairs))


def _refusal(files: AdapterFiles) -> str | None:
    found = files.config
    if not isinstance(found, LoraConfig):
        return f"the form {found.peft_type}"
    if found.use_dora:
        return "magnitudes beside its products (DoRA)"
    if found.target_parameters:
        return "products on stacked experts (lora_target_parameters)"
    if found.bias != "none" or found.lora_bias:
        return "biases"
    others = [name for name in files.names if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
    if others:
        return f"a tensor that is no pair of thin matrices ({others[0].removeprefix(_PEFT)})"
    return None


def _scalings(files: AdapterFiles, base: PretrainedConfig, config: Config) -> dict[str, float]:
    """What PEFT multiplies each layer's product by (rank and alpha by pattern, rsLoRA), asked of PEFT itself."""
    layers = _layers(files, base, config)
    return {name: float(layer.scaling["default"]) for name, layer in layers.items()}


def _layers(files: AdapterFiles, base: PretrainedConfig, config: Config) -> dict[str, LoraLayer]:
    with torch.device("meta"), tying_understood():
        model = AutoModelForCausalLM.from_config(base, trust_remote_code=config.model.trust_remote_code)
        adapted = get_peft_model(model, files.config)
    named = adapted.base_model.model.named_modules()
    return {name: module for name, module in named if isinstance(module, LoraLayer)}


def write_adapter(path: Path, adapter: WritableAdapter, base_name: str, outtype: str) -> None:
    """Write the file.

    llama.cpp multiplies each product by alpha / rank, with one alpha: where PEFT's factor is another, the difference
    goes into the second matrix.
    """
    from gguf import GGUFWriter, Keys

    writer = GGUFWriter(path, adapter.row.name)
    writer.add_type("adapter")
    writer.add_name(f"adapter of {base_name}")
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, adapter.alpha)
    tensors = []
    for pair in adapter.pairs:
        tensors.append(Tensor(f"{pair.name}.lora_a", (pair.rank, pair.columns), partial(_first, adapter, pair)))
        tensors.append(Tensor(f"{pair.name}.lora_b", (pair.rows, pair.rank), partial(_second, adapter, pair)))
    write_file(path, writer, tensors, outtype)


def _first(adapter: WritableAdapter, pair: Pair) -> Numbers:
    numbers: Numbers = adapter.files.read(f"{_PEFT}{pair.module}.lora_A.weight").numpy()
    return np.ascontiguousarray(numbers)


def _second(adapter: WritableAdapter, pair: Pair) -> Numbers:
    numbers: Numbers = adapter.files.read(f"{_PEFT}{pair.module}.lora_B.weight").numpy()
    factor = pair.scaling * pair.rank / adapter.alpha
    if factor != 1.0:
        numbers = numbers * np.float32(factor)
    return np.ascontiguousarray(paired(numbers, pair.heads) if pair.heads else numbers)


def prove_deltas(path: Path, adapter: WritableAdapter, base: PretrainedConfig, outtype: str, config: Config) -> float:
    """Read the file back, multiply, and hold each layer's product against the one PEFT makes of the adapter.

    Returns:
        the largest difference, as a share of the largest number of the same product.

    Raises:
        ParityError: it is more than rounding to ``outtype`` can do.
    """
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(path)
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    read = {each.name: dequantize(each.data, each.tensor_type) for each in reader.tensors}
    layers = _layers(adapter.files, base, config)
    furthest = 0.0
    for pair in adapter.pairs:
        first, second = read[f"{pair.name}.lora_a"], read[f"{pair.name}.lora_b"]
        second = second if pair.heads is None else _halved(second, pair.heads)
        found = torch.from_numpy((second @ first) * np.float32(alpha / first.shape[0]))
        expected = _delta(layers[pair.module], adapter.files, pair.module)
        largest = float(expected.abs().max())
        difference = float((found - expected).abs().max())
        furthest = max(furthest, difference / largest if largest else float(difference > 0))
    if furthest > _NEAR[outtype]:
        found_words = f"the adapter read back from {path.name} is another: a product is {furthest:.2g} away from PEFT's"
        raise ParityError(Problem("", found_words, "do not use it; please report this"))
    return furthest


def _delta(layer: LoraLayer, files: AdapterFiles, module: str) -> torch.Tensor:
    """PEFT's own product of one layer, with the adapter's weights in the place of those it was built with."""
    for part, matrices in (("A", layer.lora_A), ("B", layer.lora_B)):
        matrices["default"].weight = torch.nn.Parameter(files.read(f"{_PEFT}{module}.lora_{part}.weight"))
    delta: torch.Tensor = layer.get_delta_weight("default").detach()
    return delta


def _halved(numbers: Numbers, heads: int) -> Numbers:
    """The reverse of `paired`.

    >>> _halved(paired(np.arange(8), 2), 2).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    pairs = numbers.reshape(heads, -1, 2, *numbers.shape[1:])
    return pairs.swapaxes(1, 2).reshape(numbers.shape)
