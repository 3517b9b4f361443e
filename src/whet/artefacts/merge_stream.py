"""An adapter merged into the files of its base, tensor by tensor: the model is never in memory.

    base's shards ──> a tensor ──> its name in the model ──> untouched: copied
                                   (transformers' own map)   touched:   merged in float32 (`AdapterLayers`)
                                                             in parts:  the update is divided as the base is stored

The output has the base's shards and names. Each tensor is rounded once, to the output's dtype.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)

from whet.artefacts.base_files import Shard, Stored
from whet.artefacts.merge_layers import AdapterLayers, BaseParameters, CannotStream
from whet.artefacts.tensor_file import DTYPES, TensorFile, size_of
from whet.model.weight_files import INDEX

_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class _Ends:
    """Embedding and head that are one tensor in the base's files.

    Attributes:
        embedding, head: their names in the model.
        part: whether the adapter makes two of them.
    """

    embedding: str
    head: str
    part: bool


class StreamMerge:
    """One merge, from the base's files to files of the same names.

    Args:
        base: without numbers (`empty_model`).
        parameters: of it, from before the adapter was put on it.
        live: with the adapter.
        shards: the base's files.
        dtype: of the output's weights.

    Raises:
        CannotStream: the adapter cannot be merged tensor by tensor.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        parameters: BaseParameters,
        live: PeftModel,
        shards: Sequence[Shard],
        dtype: torch.dtype,
    ) -> None:
        self._base, self._shards = base, shards
        names = parameters.names
        self._layers = AdapterLayers(live, parameters)
        self._shapes = {
            names[id(module), own]: tuple(parameter.shape)
            for module in live.modules()
            for own, parameter in module._parameters.items()
            if parameter is not None and (id(module), own) in names
        }
        self._target = _names_in_model(base, shards, self._shapes)
        self._dtype = DTYPES[dtype]
        self._main = _main_dtype(shards)
        self._keys: dict[str, list[str]] = {}  # name in the model -> the files' keys that it is made of
        for key, (name, _) in self._target.items():
            self._keys.setdefault(name, []).append(key)
        self._parts: dict[str, torch.Tensor] = {}
        for name in self._layers.touched():
            if any(self._target[key][1] for key in self._keys.get(name, ())):
                self._layers.check_sum(name)
        self._ends = self._find_ends(parameters.ends)

    @property
    def unties(self) -> bool:
        """Whether embedding and head were one tensor, and are two in the output."""
        return self._ends is not None and self._ends.part

    def missing(self) -> list[str]:
        """Parameters of the model that neither the files nor the adapter hold."""
        known = set(self._keys) | {name for name in self._layers.touched() if not self._layers.needs_base(name)}
        if self._ends is not None:
            known.add(self._ends.head)
        return [name for name in self._shapes if name not in known]

    def write(self, folder: Path) -> None:
        """Write every shard, and the index where there are several.

        Raises:
            CannotStream: a weight that is stored in parts cannot be divided; nothing is complete then.
            ValueError: the adapter makes a weight infinite, or no number.
        """
        weight_map: dict[str, str] = {}
        num_bytes = 0
        for shard in self._shards:
            promised = self._promised(shard)
            keys = list(promised)
            with shard.opened() as source, TensorFile(folder / shard.path.name, promised) as output:
                for key in keys:
                    output.write(key, self._tensor(key, source, promised[key][0]))
                num_bytes += output.num_bytes
            weight_map |= dict.fromkeys(keys, shard.path.name)
        if len(self._shards) > 1:
            index = {"metadata": {"total_size": num_bytes}, "weight_map": dict(sorted(weight_map.items()))}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    @property
    def num_bytes(self) -> int:
        """Of the tensors that `write` writes."""
        return sum(size_of(*form) for shard in self._shards for form in self._promised(shard).values())

    def _promised(self, shard: Shard) -> dict[str, tuple[str, tuple[int, ...]]]:
        """dtype and shape of each tensor of the shard's output, in its order."""
        return {key: self._form(key, shard.tensors.get(key)) for key in (*shard.tensors, *self._added_to(shard))}

    def _added_to(self, shard: Shard) -> list[str]:
        """The head, where it has become a tensor of its own: it follows the embedding."""
        ends = self._ends
        if ends is None or not ends.part or ends.head in self._keys:
            return []
        return [ends.head] if self._keys[ends.embedding][0] in shard.tensors else []

    def _form(self, key: str, stored: Stored | None) -> tuple[str, tuple[int, ...]]:
        """dtype and shape of a tensor of the output."""
        if stored is None:
            return self._dtype, self._shapes[key]
        name, in_parts = self._target[key]
        touched = self._is_changed(name)
        shape = self._shapes[name] if touched and not in_parts else stored.shape
        if stored.dtype in _FLOATS and (touched or stored.dtype == self._main):
            return self._dtype, shape
        return stored.dtype, shape  # indices, and the few tensors that the base keeps in another type

    def _is_changed(self, name: str) -> bool:
        ends = self._ends
        if ends is not None and name == ends.head:
            return self._layers.touches(name) or self._layers.touches(ends.embedding)
        return self._layers.touches(name)

    def _tensor(self, key: str, source: Any, dtype: str) -> torch.Tensor:
        kind = next(each for each, name in DTYPES.items() if name == dtype)
        ends = self._ends
        if ends is not None and self._target.get(key, (key, False))[0] == ends.head and self._is_changed(ends.head):
            return self._head(ends).to(kind)
        name, in_parts = self._target[key]
        if not self._layers.touches(name):
            return self._read(source, key).to(kind)
        if in_parts:
            return self._part(key, name, source).to(kind)
        base = self._read(source, key).float().clone() if self._layers.needs_base(name) else None
        return self._layers.merge(name, base).to(kind)

    def _read(self, source: Any, key: str) -> torch.Tensor:
        tensor: torch.Tensor = source.get_tensor(key)
        return tensor

    def _part(self, key: str, name: str, source: Any) -> torch.Tensor:
        """The share of one of the tensors that a weight of the model is made of."""
        if key not in self._parts:
            update = self._layers.update(name)
            whole = self._layers.merge(name, None) if update is None else update
            divided = revert_weight_conversion(self._base, {name: whole})
            if set(divided) != set(self._keys[name]):
                raise CannotStream(f"transformers does not say how {name} is stored in parts")
            self._parts |= divided
        part = self._parts.pop(key)
        if not self._layers.needs_base(name):
            return part
        merged = self._read(source, key).float() + part
        if not merged.isfinite().all():
            raise ValueError(f"it makes {key} infinite or no number")
        return merged

    def _find_ends(self, ends: tuple[str, str] | None) -> _Ends | None:
        if ends is None or not self._base.config.get_text_config(decoder=True).tie_word_embeddings:
            return None
        tied = _Ends(*ends, part=False)
        if not any(self._layers.touches(name) for name in ends):
            return tied
        return _Ends(*ends, part=not torch.equal(self._end(tied.embedding, tied), self._end(tied.head, tied)))

    def _head(self, ends: _Ends) -> torch.Tensor:
        return self._end(ends.head if ends.part else ends.embedding, ends)

    def _end(self, name: str, ends: _Ends) -> torch.Tensor:
        """Embedding or head, merged; both begin as the base's embedding."""
        base = None
        if not self._layers.touches(name) or self._layers.needs_base(name):
            base = self._stored_embedding(ends).float().clone()
        if not self._layers.touches(name):
            assert base is not None
            return base
        return self._layers.merge(name, base)

    def _stored_embedding(self, ends: _Ends) -> torch.Tensor:
        (key,) = self._keys[ends.embedding]
        shard = next(each for each in self._shards if key in each.tensors)
        with shard.opened() as source:
            return self._read(source, key)


def _names_in_model(
    base: PreTrainedModel, shards: Sequence[Shard], shapes: dict[str, tuple[int, ...]]
) -> dict[str, tuple[str, bool]]:
    """For each key of the files its name in the model, and whether it is one of several parts of that weight.

    By transformers' own map, which is left with the model for the way back.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    mapping = get_model_conversion_mapping(base)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    present = dict.fromkeys([*shapes, *(name for name, _ in base.named_buffers())], True)
    found: dict[str, tuple[str, bool]] = {}
    for shard in shards:
        for key in shard.tensors:
            name, pattern = rename_source_key(key, renamings, converters, base.base_model_prefix, present)
            found[key] = (name, pattern is not None)
    base._weight_conversions = [each for each in mapping if each.was_used()]
    return found


def _main_dtype(shards: Sequence[Shard]) -> str:
    """The dtype of most of the base's numbers; the others are kept in theirs for a reason."""
    sizes: Counter[str] = Counter()
    for shard in shards:
        for stored in shard.tensors.values():
            if stored.dtype in _FLOATS:
                sizes[stored.dtype] += torch.Size(stored.shape).numel()
    return sizes.most_common(1)[0][0] if sizes else "F32"
