"""The norm of a step's gradients, computed once: by clipping.

transformers' Trainer clips through `Accelerator.clip_grad_norm_` and keeps the norm for its log; no callback is told.
Here that method, of one accelerator, is wrapped by one that remembers what it returned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

_PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


class GradientNorm:
    """Remembers the norm of each step's gradients before they are clipped.

    Args:
        known: the norm where the backward pass itself has measured and freed the gradients, else None.

    Attributes:
        latest: fp32 scalar on the device; None before the first step, and where nobody computes a norm.
    """

    def __init__(self, known: Callable[[], torch.Tensor | None] = lambda: None) -> None:
        self._known = known
        self.latest: torch.Tensor | None = None

    def watch(
        self,
        accelerator: Accelerator,
        listed: Callable[[], list[torch.nn.Parameter] | None] = lambda: None,
    ) -> None:
        """Remember what this accelerator's clipping computes from now on.

        Args:
            accelerator: its ``clip_grad_norm_`` is replaced.
            listed: the model's parameters without a walk through its modules, where somebody has them.

        Where that is known to change nothing, the gradients are measured and not multiplied by 1 as well: with an
        infinite limit (`max_grad_norm` 0), and on a CPU with a norm below the limit. A GPU would have to be waited for.
        Where no gradient is left (LOMO frees each in the backward pass), no norm is known, and none is logged.
        """
        clip = accelerator.clip_grad_norm_

        def clip_and_remember(
            parameters: Iterable[torch.nn.Parameter], max_norm: float, norm_type: float = 2
        ) -> torch.Tensor | None:
            norm = self._known()
            known = listed()
            parameters = parameters if known is None else known
            is_cheap = math.isinf(max_norm) or accelerator.device.type == "cpu"
            if norm is not None:
                pass
            elif is_cheap and accelerator.distributed_type in _PLAIN:
                accelerator.unscale_gradients()
                trained = [parameter for parameter in parameters if parameter.grad is not None]
                norm = _clipped(trained, max_norm, norm_type) if trained else None
            else:
                norm = clip(parameters, max_norm, norm_type)
            self.latest = norm.detach() if isinstance(norm, torch.Tensor) else None
            return norm

        accelerator.clip_grad_norm_ = clip_and_remember

    def take(self) -> torch.Tensor | None:
        """The norm of this step, forgotten afterwards, so that no step is judged by that of another."""
        norm, self.latest = self.latest, None
        return norm


def _clipped(trained: list[torch.nn.Parameter], limit: float, norm_type: float) -> torch.Tensor:
    """The norm of the gradients before they are clipped, as PyTorch clips them except where it would multiply by 1."""
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients, norm_type)
    if not math.isinf(limit) and not bool(limit / (norm + 1e-6) >= 1):
        torch.nn.utils.clip_grads_with_norm_(trained, limit, norm)
    return norm
