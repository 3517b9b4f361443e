"""The heads of other packages, used on CUDA when the config names one: liger-kernel and cut-cross-entropy.

Each is held against our own head on the device before the run begins (`differs`). Neither is chosen unasked: our head
needs three matrix products, and theirs four when the loss of each token is wanted, as it is here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from whet.model.head_loss import HeadWeights, head_loss, product_dtype
from whet.model.loss_terms import LogitForm, LossTerms

PackageHead = Callable[[torch.Tensor, HeadWeights, torch.Tensor, LogitForm], torch.Tensor]
"""(hidden [N, H], head, targets [N], form) -> fp32[N], the cross-entropy of each, with a graph."""


def liger(hidden_NH: torch.Tensor, head: HeadWeights, targets_N: torch.Tensor, form: LogitForm) -> torch.Tensor:
    """Liger's fused linear cross-entropy; the weight's gradient is summed in fp32."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    dtype = product_dtype(hidden_NH, head.weight)
    bias = None if head.bias is None else head.bias.to(dtype)
    with torch.autocast(hidden_NH.device.type, enabled=False):
        per_token: torch.Tensor = liger_fused_linear_cross_entropy(
            hidden_NH.to(dtype),
            head.weight.to(dtype),
            targets_N,
            bias=bias,
            reduction="none",
            softcap=form.softcap,
            accum_dtype=torch.float32,
        )
    return per_token.float()


def cut_cross_entropy(
    hidden_NH: torch.Tensor, head: HeadWeights, targets_N: torch.Tensor, form: LogitForm
) -> torch.Tensor:
    """Cut-cross-entropy, with no gradient left out for being small (`filter_eps`)."""
    from cut_cross_entropy import linear_cross_entropy

    dtype = product_dtype(hidden_NH, head.weight)
    with torch.autocast(hidden_NH.device.type, enabled=False):
        per_token: torch.Tensor = linear_cross_entropy(
            hidden_NH.to(dtype),
            head.weight.to(dtype),
            targets_N,
            softcap=form.softcap,
            reduction="none",
            filter_eps=None,
        )
    return per_token.float()


PACKAGE_HEADS: dict[str, PackageHead] = {"liger": liger, "cut_cross_entropy": cut_cross_entropy}


def refuses(name: str, form: LogitForm, terms: LossTerms, has_bias: bool, has_lora: bool) -> str | None:
    """Why a package's head cannot compute this loss, in words that follow "because"."""
    if not terms.is_plain:
        return "the loss is more than the cross-entropy"
    if form.scale != 1.0:
        return "the model scales its logits"
    if has_lora:
        return "the output layer has an adapter"
    if has_bias and name == "cut_cross_entropy":
        return "the output layer has a bias"
    return None


def differs(name: str, device: torch.device, dtype: torch.dtype, hidden_size: int, softcap: float | None) -> str | None:
    """What is wrong with a package's head here, held against ours on random numbers; None when nothing is."""
    random = torch.Generator().manual_seed(0)
    num, vocabulary = 129, 1031
    hidden = torch.randn(num, hidden_size, generator=random).to(device, dtype)
    weight = (torch.randn(vocabulary, hidden_size, generator=random) * hidden_size**-0.5).to(device, dtype)
    targets = torch.randint(vocabulary, (num,), generator=random).to(device)
    form = LogitForm(softcap=softcap)
    results = []
    for loss in (_of_ours, PACKAGE_HEADS[name]):
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        per_token = loss(leaves[0], HeadWeights(leaves[1]), targets, form)
        gradients = torch.autograd.grad(per_token.sum() if per_token.ndim else per_token, leaves)
        results.append((per_token.detach().sum(), *gradients))
    limit = 1e-4 if dtype == torch.float32 else 2e-2
    for what, ours, theirs in zip(("loss", "gradient of hidden states", "gradient of the head"), *results, strict=True):
        error = float((theirs.float() - ours.float()).norm() / ours.float().norm())
        if not error <= limit:
            return f"its {what} differs by {error:.1e} of ours, and {limit:.0e} is the limit"
    return None


def _of_ours(hidden_NH: torch.Tensor, head: HeadWeights, targets_N: torch.Tensor, form: LogitForm) -> torch.Tensor:
    return head_loss(hidden_NH, head, targets_N, form)[0]
