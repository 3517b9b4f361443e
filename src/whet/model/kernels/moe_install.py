"""Where a model's experts are taken over: transformers' experts interface, and the wrappers that PEFT puts around them.

Plain experts are reached by the public seam: `NAME` is registered with transformers' experts interface and chosen by
``set_experts_implementation``. Adapted experts sit inside PEFT's ``ParamWrapper`` (one for each adapted parameter, one
around the other), whose forward pass would write base + adapter into the module before that seam is reached. There is
no seam for this, so the ``forward`` of the outermost wrapper, an instance, is replaced here: it hands base and adapter
on apart. It falls back to PEFT's own wherever the state of the adapter is not the plain one (switched off, merged,
several at once). Keys of the state, saving, loading and merging stay PEFT's.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

from whet.config import Config
from whet.config.resolve import ResolvedRun, wanted_experts
from whet.core.errors import ModelError, Problem
from whet.model.kernels.moe import AnyGate, Form, Gate, LowRank, Projection, SiluGate
from whet.model.kernels.moe_function import run_experts
from whet.model.kernels.moe_grouped import choose_form

if TYPE_CHECKING:  # a run without an adapter does not load PEFT
    from peft.tuners.lora.layer import ParamWrapper

NAME = "whet_experts"
"""Of our implementation in transformers' experts interface."""

DOWN = "down_proj"
_FORM = "whet_form"


def install(model: torch.nn.Module, config: Config, resolved: ResolvedRun) -> str | None:
    """The lever: let the experts be computed as the config asks, by default here.

    Raises:
        ModelError: the config asks for it, and this model's experts are not reached, or a backend cannot run.
    """
    asked = wanted_experts(config)
    layers = [module for _, module in experts_of(model)]
    if not layers:
        if asked:
            key = next(iter(asked))
            found = f"{key}: transformers' experts interface reaches nothing in '{config.model.base_model}'"
            raise ModelError(Problem(config.where(key), found, "remove the line", key))
        return None
    if resolved.experts_implementation not in ("auto", NAME):
        _base_of(model).set_experts_implementation(resolved.experts_implementation)
        return f"experts: {len(layers)} layers by transformers' {resolved.experts_implementation}, as asked for"
    reasons = [reason for module in layers if (reason := why_not(module)) is not None]
    if reasons:
        if asked:
            key = next(iter(asked))
            found = f"{key}: whet cannot compute these experts, because {reasons[0]}"
            raise ModelError(Problem(config.where(key), found, "write experts_implementation: grouped_mm", key))
        return f"experts: {len(layers)} layers as transformers computes them, because {reasons[0]}"
    form, why = _form_for(layers, config, resolved)
    num_adapted = take_over(model, form)
    return f"experts: {len(layers)} layers by {why}{_served(config)}; {_said_of_adapters(config, num_adapted)}"


def _form_for(layers: list[Any], config: Config, resolved: ResolvedRun) -> tuple[Form, str]:
    dtype = getattr(torch, resolved.autocast_dtype or resolved.dtype)
    widths = tuple({width for module in layers for width in getattr(module, _up_name(module)).shape[1:]})
    widths += tuple({width for module in layers for width in getattr(module, DOWN).shape[1:]})
    try:
        return choose_form(config.experts.moe_grouped_backend, device=resolved.device, dtype=dtype, widths=widths)
    except ValueError as error:
        key = "moe_grouped_backend"
        found = f"{key}: {config.experts.moe_grouped_backend} cannot run, because {error}"
        raise ModelError(Problem(config.where(key), found, f"write {key}: auto", key)) from error


def _served(config: Config) -> str:
    section = config.experts
    names = {section.expert_backend, "scattermoe" * section.use_scattermoe, "sonicmoe" * section.use_sonicmoe}
    asked = sorted(names & {"scattermoe", "sonicmoe"})
    return f" ({asked[0]} asks for grouped experts, which these are)" if asked else ""


def _said_of_adapters(config: Config, num_adapted: int) -> str:
    if not config.adapter.adapter:
        return "their weights are trained in full, or frozen, as they are"
    if not num_adapted:
        return (
            "the adapter leaves them alone: add lora_target_parameters: [experts.gate_up_proj, experts.down_proj] "
            "to adapt them"
        )
    said = f"adapted in {num_adapted}, beside the weights, with nothing merged"
    if config.adapter.lora_target_parameters or config.adapter.lora_model_dir:
        return said
    return (
        f"{said} (PEFT reads gate_proj, up_proj and down_proj in the targets as the experts' names: dense layers and "
        "shared experts are not adapted)"
    )


def experts_forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Experts without an adapter, as transformers' interface calls them: (T, H), (T, K), (T, K) -> (T, H)."""
    if why_not(self) is not None:
        output: torch.Tensor = grouped_mm_experts_forward(self, hidden_states, top_k_index, top_k_weights)
        return output
    return _run(self, {}, hidden_states, top_k_index, top_k_weights)


def adapted_forward(self: ParamWrapper, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """`forward` of the outermost wrapper around a layer's experts: base and adapters apart, nothing merged."""
    low_rank = _low_rank(self)
    if low_rank is None:
        output: torch.Tensor = type(self).forward(self, hidden_states, *args, **kwargs)
        return output
    return _run(self.get_base_layer(), low_rank, hidden_states, *args, **kwargs)


def why_not(module: torch.nn.Module) -> str | None:
    """Why these experts cannot be computed here; None where they can."""
    up = getattr(module, _up_name(module), None)
    if not isinstance(up, torch.Tensor) or up.dim() != 3:
        return "their weights are not two stacks of matrices"
    if not up.dtype.is_floating_point or up.element_size() < 2:
        return f"their weights are stored as {up.dtype}"
    if getattr(module, "has_post_expert_norm", False):  # not before transformers 5.23
        return "they norm each expert's output"
    if getattr(module, "_is_expert_parallel", False):  # likewise
        return "they are spread over devices"
    return None


def experts_of(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Modules whose forward pass goes through transformers' experts interface (its decorator marks them), by name."""
    for name, module in model.named_modules():
        if hasattr(module, "is_transposed") and hasattr(module, "_apply_gate") and hasattr(module, "has_gate"):
            yield name, module


def wrappers_of(model: torch.nn.Module) -> Iterator[ParamWrapper]:
    """The outermost wrapper of each layer's experts that we can compute."""
    if "peft" not in sys.modules:
        return
    from peft.tuners.lora.layer import ParamWrapper

    inner = {id(module.base_layer) for module in model.modules() if isinstance(module, ParamWrapper)}
    for module in model.modules():
        if isinstance(module, ParamWrapper) and id(module) not in inner:
            experts = module.get_base_layer()
            if any(experts is each for _, each in experts_of(experts)) and why_not(experts) is None:
                yield module


def take_over(model: torch.nn.Module, form: Form) -> int:
    """Let the experts of ``model`` be computed by ``form``; in how many layers they are adapted."""
    if NAME not in ALL_EXPERTS_FUNCTIONS:
        ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
    for _, module in experts_of(model):
        setattr(module, _FORM, form)
    _base_of(model).set_experts_implementation(NAME)
    wrappers = list(wrappers_of(model))
    for wrapper in wrappers:
        wrapper.forward = types.MethodType(adapted_forward, wrapper)
    return len(wrappers)


def _base_of(model: Any) -> Any:
    """transformers' model inside PEFT's."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _run(
    experts: Any,
    low_rank: dict[str, LowRank],
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    up, down = (_projection(experts, name, low_rank) for name in (_up_name(experts), DOWN))
    return run_experts(getattr(experts, _FORM), hidden_states, top_k_index, top_k_weights, up, down, gate_of(experts))


def _projection(experts: Any, name: str, low_rank: dict[str, LowRank]) -> Projection:
    bias = getattr(experts, f"{name}_bias") if experts.has_bias else None
    return Projection(getattr(experts, name), bias, low_rank.get(name), experts.is_transposed)


def gate_of(experts: Any) -> Gate:
    """The function between a layer's projections."""
    if not experts.has_gate:
        return AnyGate(experts.act_fn)
    is_plain = type(experts)._apply_gate.__module__ == "transformers.integrations.moe"
    if is_plain and type(experts.act_fn).__name__ in ("SiLU", "SiLUActivation"):
        return SiluGate()
    return AnyGate(experts._apply_gate)


def _up_name(experts: Any) -> str:
    return "gate_up_proj" if experts.has_gate else "up_proj"


def _low_rank(outermost: ParamWrapper) -> dict[str, LowRank] | None:
    """Adapters by the name of their parameter; None where only PEFT's own way does what its state asks for."""
    from peft.tuners.lora.layer import ParamWrapper

    found: dict[str, LowRank] = {}
    wrapper = outermost
    while isinstance(wrapper, ParamWrapper):
        active = [name for name in wrapper.active_adapters if name in wrapper.lora_A]
        if wrapper.disable_adapters or wrapper.merged or len(active) != 1 or wrapper.num_experts < 2:
            return None
        a, b = wrapper.lora_A[active[0]].weight, wrapper.lora_B[active[0]].weight
        found[wrapper.parameter_name] = LowRank(a, b, float(wrapper.scaling[active[0]]))
        wrapper = wrapper.base_layer
    return found
