"""All experts in one grouped product: the fast form on a GPU, where a loop would launch a small product per expert.

Rows are sorted by expert, and a product takes the whole sorted tensor with the places where each expert's rows end. The
host never learns how many rows an expert has, so it never waits for the device. Letters of shapes as in
`whet.model.kernels.moe`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from whet.model.kernels.base import Choice, Kernel, select
from whet.model.kernels.moe import Form, Gate, Gradients, Kept, Loop, Routes, Stack, wide

WIDTHS = 8
"""PyTorch's grouped product wants rows of whole 16-byte words: 8 numbers of 16 bits."""


class Products(Protocol):
    """The two grouped products that everything is made of."""

    def rows(self, x_SI: torch.Tensor, weight_EIO: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
        """Each row times its expert's matrix, (S, O)."""

    def columns(self, x_SM: torch.Tensor, y_SN: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
        """x^T y over each expert's rows, (E, M, N); zeros for an expert without rows."""


class TorchProducts:
    """PyTorch's own: CUTLASS on CUDA in bfloat16, a loop elsewhere."""

    def rows(self, x_SI: torch.Tensor, weight_EIO: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.grouped_mm(x_SI, weight_EIO, offs=ends_E)

    def columns(self, x_SM: torch.Tensor, y_SN: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.grouped_mm(x_SM.T, y_SN, offs=ends_E)


@dataclass(frozen=True)
class Segments:
    """The experts by grouped products."""

    products: Products
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
        up, down = _with_whole_words(up), _with_whole_words(down)
        u_SU, xa_SR = self._project(x_TH[routes.tokens_S], up, routes)
        y_SH, ha_SR = self._project(gate.forward(u_SU), down, routes)
        out_TH = _sum_per_token(y_SH.mul_(weights_S[:, None]), routes, len(x_TH))
        return out_TH, Kept(u_SU, xa_SR, ha_SR) if keep else None

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
        ranks = [None if stack.a_ERI is None else stack.a_ERI.shape[1] for stack in (up, down)]
        up, down = _with_whole_words(up), _with_whole_words(down)
        dout_SH = dout_TH[routes.tokens_S]
        g_SF, doutb_SR = self._project_back(dout_SH, down, routes)  # of h, before the router's weight
        h_SF, du_SU = gate.backward(kept.u_SU, g_SF * weights_S[:, None])
        d_weights_S = (h_SF * g_SF).sum(-1, dtype=wide(x_TH.dtype))
        if down.bias_EO is not None:
            d_weights_S += (dout_SH * down.bias_EO[_experts(routes)].to(dout_SH.dtype)).sum(-1, dtype=d_weights_S.dtype)
        dyb_SR = None if doutb_SR is None else doutb_SR * weights_S[:, None]
        self._fill(d_down, h_SF, dout_SH.mul_(weights_S[:, None]), kept.ha_SR, dyb_SR, down, routes, ranks[1])
        del h_SF, g_SF, dout_SH
        dx_SH, dub_SR = self._project_back(du_SU, up, routes)
        x_SH = x_TH[routes.tokens_S] if d_up.needs_input else None
        self._fill(d_up, x_SH, du_SU, kept.xa_SR, dub_SR, up, routes, ranks[0])
        return _sum_per_token(dx_SH, routes, len(x_TH)), d_weights_S

    def _project(self, x_SI: torch.Tensor, stack: Stack, routes: Routes) -> tuple[torch.Tensor, torch.Tensor | None]:
        y_SO = self.products.rows(x_SI, stack.weight_EIO.to(x_SI.dtype), routes.ends_E)
        if stack.bias_EO is not None:
            y_SO += stack.bias_EO.to(x_SI.dtype)[_experts(routes)]
        if stack.a_ERI is None or stack.b_EOR is None:
            return y_SO, None
        xa_SR = self.products.rows(x_SI, stack.a_ERI.transpose(1, 2), routes.ends_E)
        y_SO += self.products.rows(xa_SR, stack.b_EOR.transpose(1, 2), routes.ends_E)
        return y_SO, xa_SR

    def _project_back(
        self, dy_SO: torch.Tensor, stack: Stack, routes: Routes
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        dx_SI = self.products.rows(dy_SO, stack.weight_EIO.transpose(1, 2).to(dy_SO.dtype), routes.ends_E)
        if stack.a_ERI is None or stack.b_EOR is None:
            return dx_SI, None
        dyb_SR = self.products.rows(dy_SO, stack.b_EOR, routes.ends_E)
        dx_SI += self.products.rows(dyb_SR, stack.a_ERI, routes.ends_E)
        return dx_SI, dyb_SR

    def _fill(
        self,
        into: Gradients,
        x_SI: torch.Tensor | None,
        dy_SO: torch.Tensor,
        xa_SR: torch.Tensor | None,
        dyb_SR: torch.Tensor | None,
        stack: Stack,
        routes: Routes,
        rank: int | None,
    ) -> None:
        """The gradients that are wanted of a projection; ``rank`` is the adapter's own, before it was widened."""
        wants_weight, wants_bias, wants_a, wants_b = into.wanted
        if wants_weight and x_SI is not None:  # in the layout of the weight, so that nothing is copied later
            is_stored_as_used = stack.weight_EIO.stride(-1) == 1
            pair = (x_SI, dy_SO) if is_stored_as_used else (dy_SO, x_SI)
            gradient = self.products.columns(*pair, routes.ends_E)
            into.weight_EIO = gradient if is_stored_as_used else gradient.transpose(1, 2)
        if wants_bias and stack.bias_EO is not None:
            room = torch.zeros(stack.bias_EO.shape, dtype=wide(dy_SO.dtype), device=dy_SO.device)
            into.bias_EO = room.index_add_(0, _experts(routes), dy_SO.to(room.dtype))
        if wants_a and x_SI is not None and dyb_SR is not None:
            into.a_ERI = self.products.columns(dyb_SR, x_SI, routes.ends_E)[:, :rank]
        if wants_b and xa_SR is not None:
            into.b_EOR = self.products.columns(dy_SO, xa_SR, routes.ends_E)[..., :rank]


def _experts(routes: Routes) -> torch.Tensor:
    """The expert of each row."""
    rows_S = torch.arange(len(routes.slots_S), device=routes.ends_E.device, dtype=routes.ends_E.dtype)
    return torch.searchsorted(routes.ends_E, rows_S, right=True)


def _sum_per_token(y_SH: torch.Tensor, routes: Routes, num_tokens: int) -> torch.Tensor:
    """Rows back in the order of the tokens, and summed; without atomics, so always in one order."""
    places_S = torch.empty_like(routes.slots_S)
    places_S[routes.slots_S] = torch.arange(len(places_S), device=places_S.device)
    return y_SH[places_S].view(num_tokens, -1, y_SH.shape[-1]).sum(1, dtype=wide(y_SH.dtype))


def _with_whole_words(stack: Stack) -> Stack:
    """The adapter widened with zeros to a rank that grouped products take; the result is the same."""
    if stack.a_ERI is None or stack.b_EOR is None or stack.a_ERI.shape[1] % WIDTHS == 0:
        return stack
    missing = -stack.a_ERI.shape[1] % WIDTHS
    pad = torch.nn.functional.pad
    return replace(stack, a_ERI=pad(stack.a_ERI, (0, 0, 0, missing)), b_EOR=pad(stack.b_EOR, (0, missing)))


def _refuses_grouped_mm(device: str, dtype: torch.dtype, widths: tuple[int, ...]) -> str | None:
    if device != "cuda":
        return f"on a {device} PyTorch's grouped product is that loop itself"
    if not hasattr(torch.nn.functional, "grouped_mm"):
        return f"PyTorch {torch.__version__} has no grouped product"
    if torch.cuda.get_device_capability() < (8, 0):
        return "PyTorch's grouped product wants compute capability 8.0"
    if dtype != torch.bfloat16:
        return f"PyTorch's grouped product is for bfloat16, and this is {str(dtype).removeprefix('torch.')}"
    odd = [width for width in widths if width % WIDTHS]
    return f"a width of {odd[0]} is no multiple of {WIDTHS}" if odd else None


def _refuses_triton(device: str, dtype: torch.dtype, widths: tuple[int, ...]) -> str | None:
    if device != "cuda":
        return f"Triton's kernels are for CUDA, and this is a {device}"
    import importlib.util

    return None if importlib.util.find_spec("triton") else "triton is not installed"


def _triton_form() -> Segments:
    from whet.model.kernels.moe_triton import TritonProducts

    return Segments(TritonProducts(), "triton")


def _grouped_form() -> Segments:
    return Segments(TorchProducts(), "grouped_mm")


KERNELS: dict[str, Kernel] = {
    "grouped_mm": Kernel("experts by grouped_mm", Loop, _grouped_form, _refuses_grouped_mm, 1e-5),
    "triton": Kernel("experts by triton", Loop, _triton_form, _refuses_triton, 1e-5),
}
"""What `moe_grouped_backend` names, in the order in which auto tries them; each makes a form."""


def choose_form(backend: str, **facts: Any) -> tuple[Form, str]:
    """The form for a device, and why.

    Args:
        backend: ``auto``, ``loop`` or a name of `KERNELS`.
        facts: device ("cuda"), dtype that is computed in, widths of all the projections.

    Raises:
        ValueError: the backend was named and cannot run; with the reason.
    """
    if backend == "loop":
        return Loop(), "a loop over the experts, as asked for"
    reasons = []
    for name in KERNELS if backend == "auto" else (backend,):
        choice: Choice = select(KERNELS[name], **facts)
        if choice.is_fused:
            return choice.function(), f"grouped products of {name}"
        reasons.append(choice.why.partition("because ")[2])
    if backend != "auto":
        raise ValueError(reasons[0])
    return Loop(), f"a loop over the experts, because {reasons[0]}"
