"""What a run's loss is and who computes it, decided once before the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from whet.core.errors import ModelError, Problem
from whet.model.head_loss import CHUNK_BYTES
from whet.model.head_packages import differs, refuses
from whet.model.head_seam import HeadParts, HeadSeam, read_head, seam_of
from whet.model.loss import innermost
from whet.model.loss_terms import LossPlan, LossTerms
from whet.model.router_loss import router_coefficient

if TYPE_CHECKING:
    from whet.config import Config
    from whet.config.resolve import ResolvedRun


def plan_loss(config: Config, resolved: ResolvedRun, model: torch.nn.Module) -> LossPlan:
    """The loss of training, as the config and the model have it."""
    section = config.loss
    weighting: Literal["none", "dft", "eaft"] = "eaft" if section.use_eaft else "none"
    if section.use_dft or section.liger_use_token_scaling:
        weighting = "dft"
    terms = LossTerms(
        label_smoothing=section.label_smoothing,
        z_loss=section.z_loss_coefficient,
        weighting=weighting,
        eaft_alpha=section.eaft_alpha,
        eaft_k=section.eaft_k,
    )
    num_chunks = section.chunked_cross_entropy_num_chunks if section.chunked_cross_entropy else None
    seam, head = seam_of(innermost(model)), resolved.head
    if head != "whet" and (not isinstance(seam, HeadSeam) or _why_not(head, seam, terms) is not None):
        head = "whet"
    return LossPlan(terms, head, num_chunks, router_coefficient(innermost(model)))


def install(model: torch.nn.Module, config: Config, resolved: ResolvedRun) -> str | None:
    """Find out how the model's logits are made, and say how its loss is computed.

    Raises:
        ModelError: the package that was asked for computes another loss on this machine.
    """
    if resolved.method != "sft":
        return None
    plan, seam = plan_loss(config, resolved, model), seam_of(innermost(model))
    said = []
    if isinstance(seam, HeadSeam):
        said.append(_of_head(plan, seam, resolved))
    else:
        said.append(f"the model computes its own logits, because {seam.reason}")
    if resolved.head not in (plan.head, "whet"):
        reason = _why_not(resolved.head, seam, plan.terms) if isinstance(seam, HeadSeam) else seam.reason
        said.append(f"not {resolved.head}'s, because {reason}")
    if plan.router_coefficient:
        said.append(f"the routers' load balance counts {plan.router_coefficient:g} a supervised token")
    return f"loss: {'; '.join(said)}"


def _of_head(plan: LossPlan, seam: HeadSeam, resolved: ResolvedRun) -> str:
    form = "" if seam.form.is_plain else f", logits {seam.form} as the model was found to have them"
    if plan.head == "whet":
        mebibytes = CHUNK_BYTES.get(resolved.device, CHUNK_BYTES["cpu"]) // 2**20
        pieces = f"in {plan.num_chunks} chunks" if plan.num_chunks else f"in chunks of up to {mebibytes} MiB of logits"
        return f"head and loss are computed together {pieces}{form}"
    parts = read_head(seam.head)
    assert isinstance(parts, HeadParts)
    dtype = getattr(torch, resolved.autocast_dtype) if resolved.autocast_dtype else parts.weight.dtype
    wrong = differs(plan.head, parts.weight.device, dtype, parts.weight.shape[1], seam.form.softcap)
    if wrong is not None:
        found = f"{plan.head} computes another loss here: {wrong}"
        raise ModelError(Problem("", found, "remove its key: whet's own head is as small"))
    return f"head and loss are {plan.head}'s, found equal to whet's own on this device{form}"


def _why_not(head: str, seam: HeadSeam, terms: LossTerms) -> str | None:
    parts = read_head(seam.head)
    assert isinstance(parts, HeadParts)
    return refuses(head, seam.form, terms, parts.bias is not None, parts.lora is not None)
