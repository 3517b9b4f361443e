"""The experts of a mixture, with low-rank adapters beside their weights and never merged into them.

A token goes to K of E experts. The T x K pairs are sorted by expert, and each expert multiplies its own rows::

    u = x W_up^T + s (x A_up^T) B_up^T + bias      h = gate(u)
    y = h W_down^T + s (h A_down^T) B_down^T + bias      out[token] += router weight * y

PEFT's ``target_parameters`` computes W + s B A for all experts in each forward pass, keeps it until the backward pass,
and then makes a gradient as large as W. Here the work of the adapter is that of its rank, a frozen W has no gradient,
and what is kept for the backward pass is u and the two rank-wide products: x stays where it is and is gathered again,
h is computed again from u, and y is not needed (the gradient of a router weight is h . (dout W_down), the order of
products of SonicMoE, https://arxiv.org/abs/2512.14080; sorted segments are ScatterMoE's,
https://arxiv.org/abs/2403.08245).

Letters of shapes: T tokens, K experts of a token, S = T x K rows sorted by expert, E experts, I and O width in and out
of a projection, H width of the model, U of u, F of h, R rank, N rows of one expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

HALVES = (torch.float16, torch.bfloat16)


class Gate(Protocol):
    """What stands between the two projections: (N, U) -> (N, F)."""

    def forward(self, u_NU: torch.Tensor) -> torch.Tensor: ...

    def backward(self, u_NU: torch.Tensor, dh_NF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """h again, and the gradient of u."""


class SiluGate:
    """silu(first half of u) * second half, as most models have it."""

    def forward(self, u_NU: torch.Tensor) -> torch.Tensor:
        gate, up = u_NU.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up

    def backward(self, u_NU: torch.Tensor, dh_NF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = u_NU.chunk(2, dim=-1)
        activated = torch.nn.functional.silu(gate)
        du = torch.empty_like(u_NU)
        d_gate, d_up = du.chunk(2, dim=-1)
        d_gate.copy_(torch.ops.aten.silu_backward(dh_NF * up, gate))
        torch.mul(dh_NF, activated, out=d_up)
        return activated * up, du


@dataclass(frozen=True)
class AnyGate:
    """A function of u alone, differentiated by autograd (gpt-oss's clamped one, plain activations)."""

    function: Callable[[torch.Tensor], torch.Tensor]

    def forward(self, u_NU: torch.Tensor) -> torch.Tensor:
        return self.function(u_NU)

    def backward(self, u_NU: torch.Tensor, dh_NF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.enable_grad():
            u = u_NU.detach().requires_grad_()
            h = self.function(u)
        (du,) = torch.autograd.grad(h, u, dh_NF)
        return h.detach(), du


@dataclass(frozen=True)
class LowRank:
    """An adapter of a stack of experts, laid out as PEFT stores it.

    Attributes:
        a: (E * R, I), expert by expert.
        b: (O, R * E), the experts innermost.
        scale: alpha / rank.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float


@dataclass(frozen=True)
class Projection:
    """One of the two stacks of matrices.

    Attributes:
        weight: (E, O, I), or (E, I, O) where ``is_transposed`` (gpt-oss).
        bias: (E, O).
        low_rank: its adapter; None where it is not adapted.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    low_rank: LowRank | None = None
    is_transposed: bool = False

    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """What may need a gradient, in the order of `whet.model.kernels.moe_function`."""
        a, b = (None, None) if self.low_rank is None else (self.low_rank.a, self.low_rank.b)
        return self.weight, self.bias, a, b


@dataclass(frozen=True)
class Stack:
    """A projection as a form reads it: weight (E, I, O), a (E, R, I), b (E, O, R) times the scale; no copy of it."""

    weight_EIO: torch.Tensor
    bias_EO: torch.Tensor | None
    a_ERI: torch.Tensor | None
    b_EOR: torch.Tensor | None


@dataclass(frozen=True)
class Routes:
    """Which rows belong to which expert.

    Attributes:
        slots_S: places in the flattened (T, K), sorted by expert.
        tokens_S: the token of each.
        ends_E: int32, where each expert's rows end.
    """

    slots_S: torch.Tensor
    tokens_S: torch.Tensor
    ends_E: torch.Tensor

    def segments(self) -> Iterator[tuple[int, slice]]:
        """Each expert that has rows, with them. Waits for the device."""
        start = 0
        for expert, end in enumerate(self.ends_E.tolist()):
            if end > start:
                yield expert, slice(start, end)
            start = end


def route(index_TK: torch.Tensor, num_experts: int) -> Routes:
    """Sort the pairs of tokens and experts by expert; within an expert they keep their order."""
    sorted_S, slots_S = torch.sort(index_TK.reshape(-1), stable=True)
    experts_E = torch.arange(num_experts, device=index_TK.device, dtype=sorted_S.dtype)
    ends_E = torch.searchsorted(sorted_S, experts_E, right=True).to(torch.int32)
    return Routes(slots_S, slots_S // index_TK.shape[-1], ends_E)


@dataclass(frozen=True)
class Kept:
    """What the forward pass leaves for the backward pass beside its inputs: u and the rank-wide products."""

    u_SU: torch.Tensor
    xa_SR: torch.Tensor | None
    ha_SR: torch.Tensor | None


@dataclass
class Gradients:
    """Of a projection, in the layout of its `Stack`; a form fills in those that are wanted.

    Attributes:
        wanted: of weight, bias, a and b, in this order.
    """

    wanted: tuple[bool, ...]
    weight_EIO: torch.Tensor | None = None
    bias_EO: torch.Tensor | None = None
    a_ERI: torch.Tensor | None = None
    b_EOR: torch.Tensor | None = None

    @property
    def needs_input(self) -> bool:
        """Whether the input of the projection is read for them."""
        return self.wanted[0] or self.wanted[2]

    def make_room(self, stack: Stack) -> None:
        """Zeros, to be filled expert by expert: an expert without rows has no other gradient."""
        tensors = (stack.weight_EIO, stack.bias_EO, stack.a_ERI, stack.b_EOR)
        self.weight_EIO, self.bias_EO, self.a_ERI, self.b_EOR = (
            torch.zeros_like(each) if wants and each is not None else None
            for each, wants in zip(tensors, self.wanted, strict=True)
        )


class Form(Protocol):
    """One way to compute the experts: `Loop`, or the segments of `whet.model.kernels.moe_grouped`."""

    name: str

    def forward(
        self,
        x_TH: torch.Tensor,
        weights_S: torch.Tensor,
        routes: Routes,
        up: Stack,
        down: Stack,
        gate: Gate,
        keep: bool,
    ) -> tuple[torch.Tensor, Kept | None]:
        """out (T, H), in float32 where x is of 16 bits, and what the backward pass needs if it is to ``keep`` it."""

    def backward(
        self,
        dout_TH: torch.Tensor,
        x_TH: torch.Tensor,
        weights_S: torch.Tensor,
        routes: Routes,
        up: Stack,
        down: Stack,
        gate: Gate,
        kept: Kept,
        d_up: Gradients,
        d_down: Gradients,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of x (T, H) and of the router weights (S); those of the projections are filled in."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """Where sums over experts are kept."""
    return torch.float32 if dtype in HALVES else dtype


class Loop:
    """The plain form: one expert after another, each with its rows, in the matrix products of PyTorch.

    No tensor of S x H is made: rows are gathered and added back expert by expert. On a CPU this is also the fast form;
    PyTorch's grouped product is the same loop there.
    """

    name = "loop"

    def forward(
        self,
        x_TH: torch.Tensor,
        weights_S: torch.Tensor,
        routes: Routes,
        up: Stack,
        down: Stack,
        gate: Gate,
        keep: bool,
    ) -> tuple[torch.Tensor, Kept | None]:
        out_TH = torch.zeros(x_TH.shape, dtype=wide(x_TH.dtype), device=x_TH.device)
        kept = _room(x_TH, len(weights_S), up, down) if keep else None
        for expert, rows in routes.segments():
            tokens_N = routes.tokens_S[rows]
            u_NU, xa_NR = _project(
                x_TH.index_select(0, tokens_N), up, expert, None if kept is None else kept.u_SU[rows]
            )
            h_NF = gate.forward(u_NU)
            y_NH, ha_NR = _project(h_NF, down, expert)
            if kept is not None:
                _put(kept.xa_SR, rows, xa_NR)
                _put(kept.ha_SR, rows, ha_NR)
            out_TH.index_add_(0, tokens_N, (y_NH * weights_S[rows, None]).to(out_TH.dtype))
        return out_TH, kept

    def backward(
        self,
        dout_TH: torch.Tensor,
        x_TH: torch.Tensor,
        weights_S: torch.Tensor,
        routes: Routes,
        up: Stack,
        down: Stack,
        gate: Gate,
        kept: Kept,
        d_up: Gradients,
        d_down: Gradients,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        d_up.make_room(up)
        d_down.make_room(down)
        dx_TH = torch.zeros(x_TH.shape, dtype=wide(x_TH.dtype), device=x_TH.device)
        d_weights_S = torch.zeros(len(weights_S), dtype=wide(x_TH.dtype), device=x_TH.device)
        for expert, rows in routes.segments():
            tokens_N = routes.tokens_S[rows]
            dout_NH = dout_TH.index_select(0, tokens_N)
            g_NF, doutb_NR = _project_back(dout_NH, down, expert)  # of h, before the router's weight
            weights_N1 = weights_S[rows, None]
            h_NF, du_NU = gate.backward(kept.u_SU[rows], g_NF * weights_N1)
            d_weights_S[rows] = (h_NF * g_NF).sum(-1, dtype=d_weights_S.dtype)
            if down.bias_EO is not None:
                d_weights_S[rows] += (dout_NH @ down.bias_EO[expert].to(dout_NH.dtype)).to(d_weights_S.dtype)
            dy_NH = dout_NH * weights_N1
            dyb_NR = None if doutb_NR is None else doutb_NR * weights_N1
            _gather_gradients(d_down, expert, h_NF, dy_NH, _part(kept.ha_SR, rows), dyb_NR)
            dx_NH, dub_NR = _project_back(du_NU, up, expert)
            x_NH = x_TH.index_select(0, tokens_N) if d_up.needs_input else None
            _gather_gradients(d_up, expert, x_NH, du_NU, _part(kept.xa_SR, rows), dub_NR)
            dx_TH.index_add_(0, tokens_N, dx_NH.to(dx_TH.dtype))
        return dx_TH, d_weights_S


def _room(x_TH: torch.Tensor, num_rows: int, up: Stack, down: Stack) -> Kept:
    def rank_wide(a_ERI: torch.Tensor | None) -> torch.Tensor | None:
        return None if a_ERI is None else x_TH.new_empty(num_rows, a_ERI.shape[1])

    return Kept(x_TH.new_empty(num_rows, up.weight_EIO.shape[2]), rank_wide(up.a_ERI), rank_wide(down.a_ERI))


def _put(into_SR: torch.Tensor | None, rows: slice, values_NR: torch.Tensor | None) -> None:
    if into_SR is not None and values_NR is not None:
        into_SR[rows] = values_NR


def _part(of_SR: torch.Tensor | None, rows: slice) -> torch.Tensor | None:
    return None if of_SR is None else of_SR[rows]


def _project(
    x_NI: torch.Tensor, stack: Stack, expert: int, out_NO: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """x W + (x A^T) B^T + bias, and x A^T."""
    weight_IO = stack.weight_EIO[expert].to(x_NI.dtype)
    if stack.bias_EO is not None:
        y_NO = torch.addmm(stack.bias_EO[expert].to(x_NI.dtype), x_NI, weight_IO, out=out_NO)
    else:
        y_NO = torch.mm(x_NI, weight_IO, out=out_NO)
    if stack.a_ERI is None or stack.b_EOR is None:
        return y_NO, None
    xa_NR = x_NI @ stack.a_ERI[expert].T
    return y_NO.addmm_(xa_NR, stack.b_EOR[expert].T), xa_NR


def _project_back(dy_NO: torch.Tensor, stack: Stack, expert: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """dy W^T + (dy B) A, and dy B."""
    dx_NI = dy_NO @ stack.weight_EIO[expert].T.to(dy_NO.dtype)
    if stack.a_ERI is None or stack.b_EOR is None:
        return dx_NI, None
    dyb_NR = dy_NO @ stack.b_EOR[expert]
    return dx_NI.addmm_(dyb_NR, stack.a_ERI[expert]), dyb_NR


def _gather_gradients(
    into: Gradients,
    expert: int,
    x_NI: torch.Tensor | None,
    dy_NO: torch.Tensor,
    xa_NR: torch.Tensor | None,
    dyb_NR: torch.Tensor | None,
) -> None:
    """The gradients of one expert's weights from its rows of input and of gradient, and their rank-wide products."""
    if into.weight_EIO is not None and x_NI is not None:
        _put_product(into.weight_EIO[expert], x_NI, dy_NO)
    if into.bias_EO is not None:
        into.bias_EO[expert] = dy_NO.sum(0)
    if into.a_ERI is not None and x_NI is not None and dyb_NR is not None:
        _put_product(into.a_ERI[expert], dyb_NR, x_NI)
    if into.b_EOR is not None and xa_NR is not None:
        _put_product(into.b_EOR[expert], dy_NO, xa_NR)


def _put_product(into_MN: torch.Tensor, x_SM: torch.Tensor, y_SN: torch.Tensor) -> None:
    """x^T y, written where it belongs without a copy where types allow it, whichever way the place is laid out."""
    if into_MN.dtype != x_SM.dtype:
        into_MN.copy_(x_SM.T @ y_SN)
    elif into_MN.stride(-1) == 1:
        torch.mm(x_SM.T, y_SN, out=into_MN)
    else:
        torch.mm(y_SN.T, x_SM, out=into_MN.T)
