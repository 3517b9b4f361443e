"""Which layers of an adapted model the LoRA kernels serve: q, k, v together, a gated MLP together, others one by one.

What belongs together is not guessed from names alone: three tokens go through the model once, and only what was seen to
be called on one tensor, or to be down(act(gate(x)) * up(x)), is computed so.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch.nn import Module

from whet.config import Config
from whet.config.resolve import ResolvedRun
from whet.core.errors import ModelError, Problem
from whet.model.kernels.instances import GATED, activation_of, replace_forward, why_no_gated_mlp
from whet.model.kernels.lora_layers import (
    OneInput,
    base_of,
    hide_from_compiler,
    mlp_forward,
    single_forward,
    why_not,
)

QKV = ("q_proj", "k_proj", "v_proj")


def install(model: Module, config: Config, resolved: ResolvedRun) -> str | None:
    """Let the adapted layers of ``model`` be computed by the LoRA kernels, as far as the config and the layers allow.

    Raises:
        ModelError: a kernel was asked for by name and no layer can have it.
    """
    section = config.adapter
    if section.adapter is None:
        return None
    default = resolved.method == "sft" and resolved.quantization != "int8"
    wanted = {
        "lora_qkv_kernel": section.lora_qkv_kernel,
        "lora_mlp_kernel": section.lora_mlp_kernel,
        "lora_o_kernel": section.lora_o_kernel,
    }
    on = {key for key, value in wanted.items() if (default if value is None else value)}
    if not on:
        return None
    found = find_groups(model)
    autocast = getattr(torch, resolved.autocast_dtype) if resolved.autocast_dtype else None
    seen = observe(model, found, autocast)
    report = _Report()
    taken = _install_groups(found, seen, on, report)
    if "lora_o_kernel" in on:
        _install_singles(model, taken, report)
    if resolved.torch_compile:
        hide_from_compiler(model)
    for key, value in wanted.items():
        if value and not report.installed[key] and report.reasons[key]:
            found_ = f"{key} is true, and no layer can have it: {'; '.join(report.reasons[key])}"
            raise ModelError(Problem(config.where(key), found_, "remove the line: whet then does what it can", key))
    return report.sentence()


@dataclass(eq=False)
class _Group:
    """Adapted layers with a common parent: q, k, v or gate, up, down."""

    key: str
    parent: Module
    layers: tuple[Module, ...]


@dataclass
class _Report:
    installed: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, Counter[str]] = field(
        default_factory=lambda: {key: Counter() for key in ("lora_qkv_kernel", "lora_mlp_kernel", "lora_o_kernel")}
    )

    def sentence(self) -> str:
        """What is computed how, and what stays with PEFT, because of what."""
        names = {"lora_qkv_kernel": "q+k+v", "lora_mlp_kernel": "gated MLP", "lora_o_kernel": "single projection"}
        parts = [f"{count} x {names[key]}" for key, count in self.installed.items()]
        said = f"LoRA kernels: {', '.join(parts)}" if parts else "LoRA kernels: none"
        kept = [f"{count} x {names[key]}: {why}" for key, whys in self.reasons.items() for why, count in whys.items()]
        return f"{said}; by PEFT: {'; '.join(kept)}" if kept else said


def find_groups(model: Module) -> list[_Group]:
    """Modules with all three children of a group, at least one of them adapted."""
    groups = []
    for parent in model.modules():
        for key, names in (("lora_qkv_kernel", QKV), ("lora_mlp_kernel", GATED)):
            layers = tuple(child for name in names if (child := getattr(parent, name, None)) is not None)
            if len(layers) == len(names) and any(isinstance(layer, LoraLayer) for layer in layers):
                groups.append(_Group(key, parent, layers))
    return groups


@torch.no_grad()
def observe(model: Module, groups: list[_Group], autocast_dtype: torch.dtype | None) -> dict[int, str | None]:
    """Send three tokens through the model; for each group (by id) why it is not what its names say, or None.

    A group that was not called is not in the result.
    """
    calls: dict[int, list[torch.Tensor]] = {}
    verdicts: dict[int, str | None] = {}
    handles = []
    for group in groups:
        if group.key == "lora_mlp_kernel":
            handles.append(group.parent.register_forward_hook(partial(_judge_mlp, group, verdicts), with_kwargs=True))
            continue
        handles += [layer.register_forward_pre_hook(partial(_note_call, calls)) for layer in group.layers]
        handles.append(group.parent.register_forward_hook(partial(_judge_qkv, group, calls, verdicts)))
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        device = model.get_input_embeddings().weight.device  # type: ignore[operator]
        with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
            model(input_ids=torch.tensor([[0, 1, 2]], device=device), use_cache=False)
    finally:
        for module, training in modes:
            module.training = training
        for handle in handles:
            handle.remove()
    return verdicts


def _note_call(calls: dict[int, list[torch.Tensor]], layer: Module, args: tuple[Any, ...]) -> None:
    calls.setdefault(id(layer), []).extend(args[:1])


def _judge_qkv(group: _Group, calls: dict[int, list[torch.Tensor]], verdicts: dict[int, str | None], *_: Any) -> None:
    inputs = [calls.get(id(layer), []) for layer in group.layers]
    same = all(len(each) == 1 and each[0] is inputs[0][0] for each in inputs)
    verdicts[id(group)] = None if same else "they are not called once each on one tensor"


def _judge_mlp(
    group: _Group, verdicts: dict[int, str | None], mlp: Any, args: tuple[Any, ...], kwargs: Any, y: Any
) -> None:
    verdicts[id(group)] = why_no_gated_mlp(mlp, args, kwargs, y)


def _install_groups(groups: list[_Group], verdicts: dict[int, str | None], on: set[str], report: _Report) -> set[int]:
    """Install what can be; the ids of all layers that are done with: served together, or switched off."""
    done: set[int] = set()
    for group in groups:
        if group.key not in on:
            done |= {id(layer) for layer in group.layers}
            continue
        reason = _refusal(group, verdicts)
        if reason is not None:
            report.reasons[group.key][reason] += 1
            continue
        report.installed[group.key] += 1
        done |= {id(layer) for layer in group.layers}
        if group.key == "lora_qkv_kernel":
            OneInput(group.parent, group.layers)
            continue
        activation = activation_of(group.parent)
        assert activation is not None
        replace_forward(group.parent, mlp_forward(group.parent, activation))
    return done


def _refusal(group: _Group, verdicts: dict[int, str | None]) -> str | None:
    for layer in group.layers:
        if (reason := why_not(layer)) is not None:
            return reason
    kinds = {
        (type(base_of(layer)), base_of(layer).weight.dtype, base_of(layer).weight.device) for layer in group.layers
    }
    if len(kinds) > 1:
        return "its layers are stored in different ways"
    return verdicts.get(id(group), "it was not called in the trial")


def _install_singles(model: Module, taken: set[int], report: _Report) -> None:
    for layer in model.modules():
        if isinstance(layer, ParamWrapper):  # a mixture's experts, see `whet.model.kernels.moe_install`
            continue
        if not isinstance(layer, LoraLayer) or id(layer) in taken or not layer.lora_A:
            continue
        if (reason := why_not(layer)) is not None:
            report.reasons["lora_o_kernel"][reason] += 1
            continue
        report.installed["lora_o_kernel"] += 1
        replace_forward(layer, single_forward(layer))
