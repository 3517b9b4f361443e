"""One optimizer for each parameter, so that each can be stepped by itself.

Two levers need it. `optimizer_in_backward` steps a parameter as soon as its gradient is known and frees the gradient,
so that one gradient is alive at a time (Lv et al., arXiv:2306.09782, section 3.1). `stochastic_rounding` steps a
bfloat16 weight as float32 and rounds it, so that one weight is alive in float32 at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from whet.training.optimizers.rounding import Rounding

Build = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


class EachParameter(torch.optim.Optimizer):
    """An optimizer made of one optimizer a parameter. Learning rates are set in its groups, as in any.

    Args:
        groups: parameter groups with ``lr`` and ``weight_decay``.
        build: makes the optimizer of some groups.
        in_backward: step in the backward pass; `step` then only counts.
        rounding: for bfloat16 parameters; None leaves the rounding to the optimizer.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], build: Build, *, in_backward: bool, rounding: Rounding | None
    ) -> None:
        self._in_backward, self._rounding = in_backward, rounding
        self._steps = 0
        self._norms: list[torch.Tensor] = []
        self._is_dropped = False
        self._parameters = [parameter for group in groups for parameter in group["params"]]
        # What the optimizer of a rounded parameter holds: its float32 form, empty between steps.
        self._held = [self._form_of(parameter) for parameter in self._parameters]
        rest = [
            {key: value for key, value in group.items() if key != "params"} for group in groups for _ in group["params"]
        ]
        self._each = [build([{**own, "params": [held]}]) for own, held in zip(rest, self._held, strict=True)]
        super().__init__(self._groups(), {})
        if in_backward:
            for index, parameter in enumerate(self._parameters):
                parameter.register_post_accumulate_grad_hook(self._hook(index))

    def _form_of(self, parameter: torch.nn.Parameter) -> torch.nn.Parameter:
        if self._rounding is None or parameter.dtype != torch.bfloat16:
            return parameter
        return torch.nn.Parameter(torch.empty(0, dtype=torch.float32, device=parameter.device))

    def _groups(self) -> list[dict[str, Any]]:
        """The groups of all, the very objects, so that what a schedule writes reaches them."""
        return [group for optimizer in self._each for group in optimizer.param_groups]

    def _hook(self, index: int) -> Callable[[torch.Tensor], None]:
        def gradient_is_known(parameter: torch.Tensor) -> None:
            if not self._is_dropped:
                self._protect(parameter)
                self._step(index)
            parameter.grad = None

        return gradient_is_known

    @torch.no_grad()
    def _protect(self, parameter: torch.Tensor) -> None:
        """Measure the gradient, and make one that is no number zero, without waiting for the device to tell."""
        assert parameter.grad is not None
        norm = torch.linalg.vector_norm(parameter.grad, dtype=torch.float32)
        self._norms.append(norm)
        parameter.grad.masked_fill_(~torch.isfinite(norm), 0.0)

    def before_backward(self, loss: torch.Tensor) -> None:
        """Drop this step's gradients where the loss is no number, for afterwards is too late."""
        self._is_dropped = self._in_backward and not bool(torch.isfinite(loss))
        self._norms.clear()

    def gradient_norm(self) -> torch.Tensor | None:
        """Norm over all gradients of the backward pass, a float32 scalar; None where there were none."""
        return torch.linalg.vector_norm(torch.stack(self._norms)) if self._norms else None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step every parameter that has a gradient; in the backward pass that is done already."""
        assert closure is None, "no optimizer here asks for the loss again"
        if not self._in_backward:
            for index, parameter in enumerate(self._parameters):
                if parameter.grad is not None:
                    self._step(index)
        self._steps += 1

    @torch.no_grad()
    def _step(self, index: int) -> None:
        parameter, held = self._parameters[index], self._held[index]
        if held is parameter:
            self._each[index].step()
            return
        assert self._rounding is not None
        assert parameter.grad is not None
        held.data = parameter.float()
        held.grad = parameter.grad.float()
        self._each[index].step()
        parameter.copy_(self._rounding(held.data, self._steps, index))
        held.grad, held.data = None, held.data.new_empty(0)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"each": [optimizer.state_dict() for optimizer in self._each], "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for optimizer, own in zip(self._each, state_dict["each"], strict=True):
            optimizer.load_state_dict(own)
        self._steps = state_dict["steps"]
        self.param_groups = self._groups()

    def state_tensors(self) -> list[torch.Tensor]:
        """Every tensor of the states."""
        states = [state for optimizer in self._each for state in optimizer.state.values()]
        return [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]


def in_backward(optimizer: torch.optim.Optimizer | None) -> EachParameter | None:
    """The optimizer inside accelerate's wrapper, if it steps in the backward pass."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return inner if isinstance(inner, EachParameter) and inner._in_backward else None
