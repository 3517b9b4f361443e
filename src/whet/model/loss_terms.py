"""What is summed over the supervised tokens, beside the plain cross-entropy, and what a model does to its logits.

Shapes: R rows (supervised positions), V vocabulary. Everything here is fp32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True, slots=True)
class LogitForm:
    """What a model makes of the product ``u`` of its head: ``softcap * tanh(scale * u / softcap)``.

    Attributes:
        scale: of Cohere (`logit_scale`), Granite (1 / `logits_scaling`), Falcon-H1; 1 for the others.
        softcap: of Gemma 2 (`final_logit_softcapping`); None leaves ``scale * u``.
    """

    scale: float = 1.0
    softcap: float | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the logits are the product itself."""
        return self.scale == 1.0 and self.softcap is None

    def __str__(self) -> str:
        scaled = "" if self.scale == 1.0 else f"scaled by {self.scale:g}"
        capped = "" if self.softcap is None else f"capped at {self.softcap:g}"
        return " and ".join(each for each in (scaled, capped) if each)

    def apply(self, product: torch.Tensor) -> torch.Tensor:
        """The model's logits, fp32 where they are not the product itself."""
        if self.is_plain:
            return product
        scaled = product.float() * self.scale
        return scaled if self.softcap is None else (scaled / self.softcap).tanh() * self.softcap


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The loss of a token: ``weight * smoothed cross-entropy + z_loss * logsumexp(logits) ** 2``.

    Attributes:
        label_smoothing: e in ``(1 - e) * -log p(target) + e * mean over V of -log p`` (Szegedy et al., 2016).
        z_loss: coefficient of the squared log of the softmax's normaliser (PaLM, Chowdhery et al., 2022).
        weighting: a weight of each token that no gradient goes through. ``dft``: p(target) (Wu et al., 2025,
            arXiv:2508.05629). ``eaft``: the entropy of the `eaft_k` most probable tokens among themselves, divided by
            its largest value, to the power `eaft_alpha` (Diao et al., 2026, arXiv:2601.02151). Weights are not
            normalised: the sum is still divided by the number of supervised tokens.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    weighting: Literal["none", "dft", "eaft"] = "none"
    eaft_alpha: float = 1.0
    eaft_k: int = 20

    @property
    def is_plain(self) -> bool:
        """Whether this is the cross-entropy and nothing else."""
        return not self.label_smoothing and not self.z_loss and self.weighting == "none"

    def weights(self, logits_RV: torch.Tensor, log_p_R: torch.Tensor) -> torch.Tensor | None:
        """fp32[R] without a graph, or None where every token counts the same.

        Args:
            logits_RV: of any dtype.
            log_p_R: log p(target).
        """
        if self.weighting == "none":
            return None
        if self.weighting == "dft":
            return log_p_R.detach().exp()
        return normalised_entropy(logits_RV.detach(), self.eaft_k).pow_(self.eaft_alpha)


PLAIN = LossTerms()


@dataclass(frozen=True, slots=True)
class LossPlan:
    """How a micro-batch's loss is computed.

    Attributes:
        terms: what the loss of a token is.
        head: "whet", "liger" or "cut_cross_entropy".
        num_chunks: how many chunks of positions the head works in; None takes as few as its budget of bytes allows.
        router_coefficient: of the load-balancing loss of a mixture's routers; 0 without.
    """

    terms: LossTerms = PLAIN
    head: Literal["whet", "liger", "cut_cross_entropy"] = "whet"
    num_chunks: int | None = None
    router_coefficient: float = 0.0


EVALUATION = LossPlan()
"""The plain cross-entropy, whatever was trained on."""


def normalised_entropy(logits_RV: torch.Tensor, k: int) -> torch.Tensor:
    """fp32[R] in [0, 1]: entropy of the k likeliest tokens, renormalised among themselves, over log k."""
    k = min(k, logits_RV.shape[-1])
    log_p = logits_RV.topk(k, dim=-1, sorted=False).values.float().log_softmax(-1)
    entropy: torch.Tensor = -(log_p.exp() * log_p).sum(-1) / max(math.log(k), 1e-9)
    return entropy.clamp_(0.0, 1.0)


def loss_of_logits(
    logits_RV: torch.Tensor, targets_R: torch.Tensor, terms: LossTerms = PLAIN
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss from logits that are there, in plain PyTorch: the definition that every fast form is held to.

    Returns:
        The sum of the terms, an fp32 scalar with a graph, and fp32[R], the plain cross-entropy of each token, detached.
    """
    logits_RV = logits_RV.float()
    log_p_RV = logits_RV.log_softmax(-1)
    log_p_R = log_p_RV.gather(-1, targets_R[:, None])[:, 0]
    each = -log_p_R
    if terms.label_smoothing:
        each = (1 - terms.label_smoothing) * each - terms.label_smoothing * log_p_RV.mean(-1)
    weights = terms.weights(logits_RV, log_p_R)
    if weights is not None:
        each = weights * each
    if terms.z_loss:
        each = each + terms.z_loss * logits_RV.logsumexp(-1) ** 2
    return each.sum(), -log_p_R.detach()
