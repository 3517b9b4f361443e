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

    def watch(self, accelerator: Accelerator) -> None:
        """Remember what this accelerator's clipping computes from now on.

        Where the limit is infinite (`max_grad_norm` 0), the gradients are measured and not multiplied by 1 as well.
        """
        clip = accelerator.clip_grad_norm_

        def clip_and_remember(
            parameters: Iterable[torch.nn.Parameter], max_norm: float, norm_type: float = 2
        ) -> torch.Tensor | None:
            norm = self._known()
            if norm is not None:
                pass
            elif math.isinf(max_norm) and accelerator.distributed_type in _PLAIN:
                accelerator.unscale_gradients()
                gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
                norm = torch.nn.utils.get_total_norm(gradients, norm_type)
            else:
                norm = clip(parameters, max_norm, norm_type)
            self.latest = norm.detach() if isinstance(norm, torch.Tensor) else None
            return norm

        accelerator.clip_grad_norm_ = clip_and_remember

    def take(self) -> torch.Tensor | None:
        """The norm of this step, forgotten afterwards, so that no step is judged by that of another."""
        norm, self.latest = self.latest, None
        return norm
