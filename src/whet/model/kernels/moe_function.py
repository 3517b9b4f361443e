"""All experts of a layer as one node of the graph: what is saved, in which type it is computed, and the gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from whet.model.kernels.moe import Form, Gate, Gradients, Kept, Projection, Routes, Stack, route


@dataclass(frozen=True)
class Plan:
    """What of the computation is no tensor."""

    form: Form
    gate: Gate
    dtype: torch.dtype
    is_transposed: tuple[bool, bool]
    scales: tuple[float, float]
    is_trained: bool

    def stack(self, tensors: tuple[torch.Tensor | None, ...], which: int) -> Stack:
        """Projection number ``which`` as a form reads it; small tensors in the type that is computed in."""
        weight, bias, a, b = tensors
        assert weight is not None
        experts = weight.shape[0]
        weight_EIO = weight if self.is_transposed[which] else weight.transpose(1, 2)
        if a is None or b is None:
            return Stack(weight_EIO, bias, None, None)
        b_EOR = b.view(b.shape[0], -1, experts).permute(2, 0, 1).to(self.dtype) * self.scales[which]
        return Stack(weight_EIO, bias, a.view(experts, -1, a.shape[-1]).to(self.dtype), b_EOR.contiguous())

    def as_stored(self, gradients: Gradients, which: int) -> tuple[torch.Tensor | None, ...]:
        """The gradients in the layouts of PEFT and of the model."""
        weight, a, b = gradients.weight_EIO, gradients.a_ERI, gradients.b_EOR
        if weight is not None and not self.is_transposed[which]:
            weight = weight.transpose(1, 2)
        if a is not None:
            a = a.flatten(0, 1)
        if b is not None:
            b = (b.permute(1, 2, 0) * self.scales[which]).flatten(1)
        return weight, gradients.bias_EO, a, b


class _Experts(torch.autograd.Function):
    """All experts of a layer in one node of the graph."""

    @staticmethod
    def forward(
        ctx: Any, plan: Plan, x_TH: torch.Tensor, index_TK: torch.Tensor, router_TK: torch.Tensor, *tensors: Any
    ) -> torch.Tensor:
        routes = route(index_TK, tensors[0].shape[0])
        up, down = plan.stack(tensors[:4], 0), plan.stack(tensors[4:], 1)
        weights_S = router_TK.reshape(-1)[routes.slots_S].to(plan.dtype)
        with torch.autocast(x_TH.device.type, enabled=False):
            out_TH, kept = plan.form.forward(
                x_TH.to(plan.dtype), weights_S, routes, up, down, plan.gate, plan.is_trained
            )
        if kept is not None:
            ctx.plan = plan
            ctx.save_for_backward(
                x_TH, router_TK, routes.slots_S, routes.tokens_S, routes.ends_E, kept.u_SU, kept.xa_SR, kept.ha_SR,
                *tensors,
            )  # fmt: skip
        return out_TH.to(x_TH.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_TH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        plan: Plan = ctx.plan
        x_TH, router_TK, slots_S, tokens_S, ends_E, u_SU, xa_SR, ha_SR, *tensors = ctx.saved_tensors
        _, wants_x, _, wants_router, *wanted = ctx.needs_input_grad
        routes = Routes(slots_S, tokens_S, ends_E)
        up, down = plan.stack(tuple(tensors[:4]), 0), plan.stack(tuple(tensors[4:]), 1)
        d_up, d_down = Gradients(tuple(wanted[:4])), Gradients(tuple(wanted[4:]))
        weights_S = router_TK.reshape(-1)[slots_S].to(plan.dtype)
        with torch.autocast(x_TH.device.type, enabled=False):
            dx_TH, d_weights_S = plan.form.backward(
                dout_TH.to(plan.dtype), x_TH.to(plan.dtype), weights_S, routes, up, down, plan.gate,
                Kept(u_SU, xa_SR, ha_SR), d_up, d_down,
            )  # fmt: skip
        d_router = None
        if wants_router:
            d_router = torch.empty_like(router_TK).reshape(-1)
            d_router[slots_S] = d_weights_S.to(d_router.dtype)
            d_router = d_router.view(router_TK.shape)
        gradients = (*plan.as_stored(d_up, 0), *plan.as_stored(d_down, 1))
        in_type = (g if g is None else g.to(t.dtype) for g, t in zip(gradients, tensors, strict=True))
        return None, dx_TH.to(x_TH.dtype) if wants_x else None, None, d_router, *in_type


def compute_dtype(x: torch.Tensor, weight: torch.Tensor) -> torch.dtype:
    """Under autocast its type; else that of the weights."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return weight.dtype if weight.dtype.is_floating_point else x.dtype


def run_experts(
    form: Form,
    x_TH: torch.Tensor,
    index_TK: torch.Tensor,
    router_TK: torch.Tensor,
    up: Projection,
    down: Projection,
    gate: Gate,
) -> torch.Tensor:
    """The output of a layer's experts, (T, H), in x's dtype; sums over experts are made in float32.

    Args:
        form: how it is computed.
        x_TH: the tokens' states.
        index_TK: int64, which experts each token goes to; all below E.
        router_TK: the weight of each.
        up, down: the two projections, (H -> U) and (F -> H).
        gate: what stands between them, (U -> F).
    """
    tensors = (*up.tensors(), *down.tensors())
    inputs = (x_TH, router_TK, *tensors)
    is_trained = torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in inputs)
    scales = (up.low_rank.scale if up.low_rank else 1.0, down.low_rank.scale if down.low_rank else 1.0)
    plan = Plan(form, gate, compute_dtype(x_TH, up.weight), (up.is_transposed, down.is_transposed), scales, is_trained)
    out: torch.Tensor = _Experts.apply(plan, x_TH, index_TK, router_TK, *tensors)  # type: ignore[no-untyped-call]
    return out
