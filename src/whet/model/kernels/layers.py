"""Normalisation and rotary embedding of a model, put on their fast forms where these are seen to be the same.

Nothing is known of families by name: each layer's own result on random input is compared with the fast form's. What
differs, or is none of ours, stays as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch

from whet.model.kernels import norms, rotary
from whet.model.kernels.base import Kernel, select
from whet.model.loss import innermost
from whet.model.patches import original_rotary, replace_rotary, restore_rotary, rotary_homes

if TYPE_CHECKING:
    from whet.config import Config
    from whet.config.resolve import ResolvedRun

_EPSILONS = ("variance_epsilon", "eps", "epsilon")
_PROBE_SEED = 0
_HALVES = (torch.bfloat16, torch.float16)


def install(model: torch.nn.Module, config: Config, resolved: ResolvedRun) -> str | None:
    """See `whet.model.levers`."""
    said = []
    if config.kernels.liger_rms_norm is not False:
        said.append(install_norms(model, resolved.device))
    if config.kernels.liger_rope is not False:
        said.append(install_rotary(model, resolved.device))
    else:
        for home in rotary_homes(model):  # an earlier run of this process may have changed them
            restore_rotary(home)
    found = [sentence for sentence in said if sentence is not None]
    return f"kernels: {'; '.join(found)}" if found else None


# --- Normalisation ---------------------------------------------------------------------------------------------------


def install_norms(model: torch.nn.Module, device: str) -> str | None:
    """Give every root-mean-square norm of the model its fast form; how many were given it."""
    replaced = 0
    for module in model.modules():
        if not type(module).__name__.endswith("RMSNorm") or isinstance(module, torch.nn.RMSNorm):
            continue
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.nn.Parameter) or weight.ndim != 1:
            continue
        if not select(norms.RMS_NORM, device=device, dtype=weight.dtype).is_fused:
            continue
        offset = _offset_of_weight(module, weight)
        if offset is not None:
            module.whet_weight_offset = offset  # type: ignore[assignment]
            narrows = _narrows_halves(module, weight, offset) if device == "cuda" else None
            module.whet_narrows_halves = narrows  # type: ignore[assignment]
            module.forward = MethodType(_norm_forward, module)
            replaced += 1
    return f"rms_norm: fused in {replaced} layers" if replaced else None


def _norm_forward(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """A norm's forward; a call in a dtype that was not tried, or that is compiled, is the family's."""
    weight, dtype = self.weight, hidden_states.dtype
    widened = dtype != weight.dtype and dtype in _HALVES and self.whet_narrows_halves is not None
    elsewhere = (dtype != weight.dtype and not widened) or hidden_states.device != weight.device
    if args or kwargs or elsewhere or torch.compiler.is_compiling():
        theirs: torch.Tensor = type(self).forward(self, hidden_states, *args, **kwargs)
        return theirs
    if self.whet_weight_offset:
        weight = weight + self.whet_weight_offset
    if widened:
        normed = norms.fast(hidden_states.float(), weight, _epsilon(self))
        return normed.to(dtype) if self.whet_narrows_halves else normed
    return norms.fast(hidden_states, weight, _epsilon(self))


def _epsilon(module: Any) -> float:
    return float(next(getattr(module, name) for name in _EPSILONS if hasattr(module, name)))


@torch.no_grad()
def _offset_of_weight(module: torch.nn.Module, weight: torch.Tensor) -> float | None:
    """What the family adds to the weight (1 in Gemma's, else 0); None where the layer computes something else."""
    if not any(hasattr(module, name) for name in _EPSILONS):
        return None
    x = _random(3, weight.shape[0], like=weight)
    try:
        theirs = type(module).forward(module, x)
    except (TypeError, RuntimeError):  # another signature or shape: not a norm of this kind
        return None
    for offset in (0.0, 1.0):
        ours = norms.fast(x, weight + offset, _epsilon(module))
        if theirs.dtype == ours.dtype and _agree(norms.RMS_NORM, ours, theirs):
            return offset
    return None


@torch.no_grad()
def _narrows_halves(module: torch.nn.Module, weight: torch.Tensor, offset: float) -> bool | None:
    """Whether a norm with a float32 weight gives back 16 bits for 16 bits, or float32.

    Mixed precision gives the norms of queries and keys such inputs. None where the result is not the fast form's within
    two roundings.
    """
    if weight.dtype != torch.float32:
        return None
    x = _random(3, weight.shape[0], like=weight).bfloat16()
    theirs = type(module).forward(module, x)
    ours = norms.fast(x.float(), weight + offset, _epsilon(module))
    is_same = (ours - theirs.float()).abs().max() <= 2 * torch.finfo(x.dtype).eps * theirs.float().abs().max()
    return theirs.dtype == x.dtype if bool(is_same) else None


# --- Rotary embedding ------------------------------------------------------------------------------------------------


def install_rotary(model: torch.nn.Module, device: str) -> str | None:
    """Give the attention of the model's family its fast rotary embedding; whether that was done."""
    if not select(rotary.ROTARY, device=device, dtype=torch.float32).is_fused:
        return None
    embedding = next((m for m in innermost(model).modules() if type(m).__name__.endswith("RotaryEmbedding")), None)
    replaced = 0
    for home in rotary_homes(model):
        if embedding is not None and _rotates_halves(home, embedding):
            replace_rotary(home, rotary.fast, rotary.can_turn)
            replaced += 1
        else:  # an earlier model of the family may have been of another kind
            restore_rotary(home)
    return "rotary: fused" if replaced else None


@torch.no_grad()
def _rotates_halves(home: Any, embedding: torch.nn.Module) -> bool:
    """Whether the family's function, with the angles of the model itself, is the plain one of `rotary`."""
    like = next(embedding.buffers(), torch.zeros(1)).new_zeros(1, dtype=torch.float32)
    try:
        cos, sin = _angles(embedding, like)
        q, k = _random(1, 4, 5, cos.shape[-1], like=like), _random(1, 2, 5, cos.shape[-1], like=like)
        theirs = original_rotary(home)(q, k, cos, sin)
        ours = rotary.fast(q, k, cos, sin)
    except (TypeError, ValueError, RuntimeError, IndexError):  # another signature: several kinds of angles, say
        return False
    return all(_agree(rotary.ROTARY, one, other) for one, other in zip(ours, theirs, strict=True))


def _angles(embedding: torch.nn.Module, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of five positions; families with several kinds of layers (Gemma 3) ask for one."""
    kinds: Sequence[str] = getattr(getattr(embedding, "config", None), "layer_types", None) or ("",)
    several = "layer_type" in inspect.signature(embedding.forward).parameters
    cos, sin = embedding(
        like, torch.arange(5, device=like.device)[None], **({"layer_type": kinds[0]} if several else {})
    )
    return cos, sin


def _random(*shape: int, like: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(_PROBE_SEED)
    return torch.randn(shape, generator=generator).to(device=like.device, dtype=like.dtype)


def _agree(kernel: Kernel, ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Within the kernel's tolerance in float32; within two roundings of the dtype in 16 bits."""
    if ours.shape != theirs.shape:
        return False
    tolerance = max(kernel.tolerance, 2 * torch.finfo(ours.dtype).eps)
    difference = (ours.float() - theirs.float()).abs().max()
    return bool(difference <= tolerance * theirs.float().abs().max())
