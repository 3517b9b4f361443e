"""An adapter on a base that has no weights: any one of them is merged when it is read, by PEFT's own layers.

The base is `empty_model`: its modules are there, its numbers are not. For each weight that the adapter
touches, the base's tensor is put into its module, PEFT merges that one layer, and the result is taken out again. So
every kind of adapter that PEFT can merge (DoRA, ranks by pattern, trained tokens ...) is merged as PEFT does it, and at
no time is more of the model in memory than one tensor, in float32, and its update.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from peft.utils.other import ModulesToSaveWrapper
from transformers import PreTrainedModel

ADAPTER = "default"
"""What PEFT calls the one adapter."""


class CannotStream(Exception):
    """This adapter is not merged weight by weight; the sentence says why."""


@dataclass(frozen=True)
class BaseParameters:
    """Where the parameters of an empty base stand, before an adapter moves its modules.

    Attributes:
        names: (id of a module, name of its parameter) -> the parameter's full name; a tied weight has several.
        empty: the parameters without numbers.
        ends: full names of embedding and head, where there is a head.
    """

    names: Mapping[tuple[int, str], str]
    empty: tuple[torch.nn.Parameter, ...]
    ends: tuple[str, str] | None

    @classmethod
    def of(cls, base: PreTrainedModel) -> BaseParameters:
        """Those of a base without an adapter."""
        names = {
            (id(module), own): f"{name}.{own}" if name else own
            for name, module in base.named_modules()
            for own, parameter in module._parameters.items()
            if parameter is not None
        }
        embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
        ends = None if head is None else (names[id(embedding), "weight"], names[id(head), "weight"])
        return cls(names, tuple(base.parameters()), ends)


@dataclass
class _Place:
    """A parameter of the base that the adapter touches."""

    module: torch.nn.Module
    own: str
    loras: list[LoraLayer] = field(default_factory=list)
    tokens: TrainableTokensLayer | None = None
    replaced: torch.Tensor | None = None


class AdapterLayers:
    """What an adapter does to each parameter of its base.

    Args:
        live: the empty base with the adapter, whose own tensors are loaded.
        base: of the same base.
    """

    def __init__(self, live: PeftModel, base: BaseParameters) -> None:
        self._names = base.names
        empty = {id(parameter): parameter for parameter in base.empty}
        self._places: dict[str, _Place] = {}
        modules = {id(module): module for module in live.modules()}
        for module in live.modules():
            if isinstance(module, LoraLayer):
                self._add_lora(module)
            elif isinstance(module, TrainableTokensLayer):
                self._place(module.get_base_layer(), "weight").tokens = module
            elif isinstance(module, ModulesToSaveWrapper):
                for own, saved in module.modules_to_save[ADAPTER].named_parameters():
                    self._saved(module.original_module, own, saved)
        for module_id, own in self._names:
            parameter = modules[module_id]._parameters.get(own) if module_id in modules else None
            if parameter is not None and id(parameter) not in empty:  # saved whole: biases, a resized embedding
                place = self._place(modules[module_id], own)
                if place.replaced is None:  # else it was trained in full beside it
                    place.replaced = parameter.detach()

    def touches(self, name: str) -> bool:
        """Whether the adapter changes this parameter."""
        return name in self._places

    def touched(self) -> list[str]:
        """Full names of the parameters that it changes."""
        return list(self._places)

    def needs_base(self, name: str) -> bool:
        """Whether the base's own tensor is part of the result."""
        place = self._places[name]
        return place.replaced is None or bool(place.loras) or place.tokens is not None

    @torch.no_grad()
    def merge(self, name: str, base: torch.Tensor | None) -> torch.Tensor:
        """The merged parameter, in float32.

        Args:
            base: the base's tensor in float32, which may be written over; None where `needs_base` is False.

        Raises:
            ValueError: the adapter holds numbers that are none.
        """
        place = self._places[name]
        value = base if place.replaced is None else place.replaced.float()
        assert value is not None
        if place.own == "bias" and place.loras:
            for layer in place.loras:
                value += layer.lora_B[ADAPTER].bias * layer.scaling[ADAPTER]
        elif place.loras or place.tokens is not None:
            value = self._by_peft(place, value)
        if not value.isfinite().all():
            raise ValueError(f"it makes {name} infinite or no number")
        return value

    def check_sum(self, name: str) -> None:
        """That the adapter adds to this parameter, or replaces it.

        Raises:
            CannotStream: it does more.
        """
        place = self._places[name]
        if place.tokens is not None or any(layer.lora_variant for layer in place.loras) or place.own == "bias":
            raise CannotStream(f"{name} is stored in parts, and the adapter does more than add to it")

    @torch.no_grad()
    def update(self, name: str) -> torch.Tensor | None:
        """What is added to the parameter, in float32; None where it is replaced instead (`merge`)."""
        place = self._places[name]
        if not place.loras:
            return None
        updates = [layer.get_delta_weight(ADAPTER).float() for layer in place.loras]
        return updates[0] if len(updates) == 1 else torch.stack(updates).sum(0)

    def _by_peft(self, place: _Place, value: torch.Tensor) -> torch.Tensor:
        empty = place.module._parameters[place.own]
        place.module._parameters[place.own] = torch.nn.Parameter(value, requires_grad=False)
        layers: list[Any] = [*place.loras, *([place.tokens] if place.tokens is not None else [])]
        try:
            for layer in layers:
                if isinstance(layer, LoraLayer):
                    layer.lora_bias[ADAPTER] = False  # merged when the bias comes
                layer.merge(safe_merge=False, adapter_names=[ADAPTER])
                layer.merged_adapters.clear()
                getattr(layer, "_caches", {}).clear()
            merged = place.module._parameters[place.own]
            assert merged is not None
            return merged.data
        finally:
            place.module._parameters[place.own] = empty

    def _add_lora(self, layer: LoraLayer) -> None:
        if ADAPTER not in layer.lora_A and ADAPTER not in layer.lora_embedding_A:
            return
        base = layer.get_base_layer()
        own = layer.parameter_name if isinstance(layer, ParamWrapper) else "weight"
        self._place(base, own).loras.append(layer)
        if layer.lora_bias.get(ADAPTER):
            self._place(base, "bias").loras.append(layer)

    def _saved(self, original: torch.nn.Module, own: str, saved: torch.Tensor) -> None:
        path, _, last = own.rpartition(".")
        self._place(original.get_submodule(path), last).replaced = saved.detach()

    def _place(self, module: torch.nn.Module, own: str) -> _Place:
        name = self._names.get((id(module), own))
        if name is None:
            raise CannotStream(f"the adapter changes a part of {type(module).__name__} that the base does not store")
        return self._places.setdefault(name, _Place(module, own))
