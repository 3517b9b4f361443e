"""Linear layers with low-rank adapters that read one input, as one step of the graph.

    y_i = x W_i' + b_i + scaling_i * dropout_i(x) A_i' B_i'        (LoRA, https://arxiv.org/abs/2106.09685, section 4.1)

with W[out, in], A[r, in], B[out, r] and ' for transposed. Written out, that is three products, two passes over the
output and, for autograd, an input kept for each of them. Here the input is kept once, by reference, and everything else
that the backward pass needs is computed again, because it is small. Two forms are used:

- merged: where there are more tokens than features and the arithmetic is float32, W + scaling * B A is made for the
  moment (it costs a product over features, not over tokens) and one product does the rest. In 16 bits that sum would
  round the adapter away.
- apart: the A of a group stand under one another, so that one product reads x for all of them; the results are added by
  the products themselves, without a pass of their own.

DoRA (https://arxiv.org/abs/2402.09353, equation 5) multiplies the rows of W + scaling * B A by magnitude / norm; the
norm is a constant of the backward pass (section 4.3), as in PEFT.

Shapes: N tokens, I input features, O output features, r the rank of one adapter, R of several together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from whet.model.kernels.base_weight import read_weight

Tensor = torch.Tensor
Factors = tuple[Tensor | None, Tensor | None, Tensor | None]
"""A[r, I], B[O, r] and DoRA's magnitude[O] of one projection; all None where it has no adapter."""


@dataclass(frozen=True, eq=False, slots=True)
class Projection:
    """What of one layer needs no gradient.

    Attributes:
        layer: the frozen layer; its weight is read when it is needed, so that whoever moves or shards it may.
        scaling: alpha / r, or alpha / sqrt(r).
        dropout: share of the adapter's inputs to drop now; 0 in evaluation, and always beside a magnitude.
    """

    layer: torch.nn.Module
    scaling: float = 0.0
    dropout: float = 0.0


def merging_pays(rows: int, num_in: int, num_out: int, *, backward: bool) -> bool:
    """Whether making W + scaling * B A touches fewer numbers than adding the adapter's product to the base's.

    Merged: I O. Apart: N I and N O in the forward pass, N I in the backward pass (beside what the gradients of A and B
    read in either form).
    """
    apart = rows * num_in if backward else rows * (num_in + num_out)
    return apart > num_in * num_out


def keep_mask(x_NI: Tensor, share: float, seed: int) -> Tensor:
    """``x.dtype[N, I]``: 0 where an input is dropped, else 1 / (1 - share); the same for the same seed."""
    generator = torch.Generator(x_NI.device).manual_seed(seed)
    kept = torch.empty_like(x_NI).bernoulli_(1 - share, generator=generator)
    return kept.mul_(1 / (1 - share))


def draw_seeds(projections: Sequence[Projection]) -> tuple[int, ...]:
    """A seed for the dropout of each projection.

    Drawn from the CPU's generator, which checkpoints and gradient checkpointing restore.
    """
    if not any(projection.dropout for projection in projections):
        return (0,) * len(projections)
    return tuple(torch.randint(2**62, (len(projections),)).tolist())


class Group:
    """Projections of one input within one forward or backward pass: their weights are read here, once."""

    def __init__(
        self,
        projections: Sequence[Projection],
        factors: Sequence[Factors],
        seeds: Sequence[int],
        *,
        dtype: torch.dtype,
        rows: int,
        backward: bool = False,
    ) -> None:
        each = zip(projections, factors, seeds, strict=True)
        self.members = [_Member(projection, three, seed, dtype) for projection, three, seed in each]
        for member in self.members:
            num_out, num_in = member.W_OI.shape
            member.prepare(merge=merging_pays(rows, num_in, num_out, backward=backward))

    def forward(self, x_NI: Tensor) -> list[Tensor]:
        """``dtype[N, O]`` of each projection."""
        results = [member.base(x_NI) for member in self.members]
        apart = [(member, y_NO) for member, y_NO in zip(self.members, results, strict=True) if member.is_apart]
        if apart:
            h_NR = x_NI @ _stacked([member.A_rI for member, _ in apart]).t()
            ranks = [member.A_rI.shape[0] for member, _ in apart]
            for (member, y_NO), h_Nr in zip(apart, torch.split(h_NR, ranks, dim=1), strict=True):
                y_NO.addmm_(h_Nr, member.B_Or.t())
        for member, y_NO in zip(self.members, results, strict=True):
            if member.is_adapted and member.dropout:
                kept_NI = keep_mask(x_NI, member.dropout, member.seed).mul_(x_NI)
                y_NO.addmm_(kept_NI @ member.A_rI.t(), member.B_Or.t())
            member.finish(y_NO)
        return results

    def backward(
        self, x_NI: Tensor, grads: Sequence[Tensor | None], outputs: Sequence[Tensor | None], dx_NI: Tensor | None
    ) -> None:
        """Compute the gradients of the factors, and write that of the input into ``dx_NI``.

        Args:
            grads: of each output; None counts as zero.
            outputs: what `forward` gave for projections with a magnitude.
            dx_NI: None where the input needs no gradient.
        """
        seen = [
            (member, member.gradient_of_sum(grad, output))
            for member, grad, output in zip(self.members, grads, outputs, strict=True)
            if grad is not None
        ]
        if dx_NI is not None:
            _base_gradient(seen, dx_NI)
        together = [(member, g_NO) for member, g_NO in seen if member.is_adapted and not member.dropout]
        if together:
            _adapter_gradients(x_NI, together, dx_NI)
        for member, g_NO in seen:
            if member.is_adapted and member.dropout:
                _dropped_gradients(x_NI, member, g_NO, dx_NI)

    def gradients(self) -> list[Tensor | None]:
        """Of A, B and magnitude of each projection, one after the other."""
        return [gradient for member in self.members for gradient in member.gradients()]


class _Member:
    """One projection in one pass.

    Attributes:
        W_OI: the base weight; with the adapter (and DoRA's factor) in it where ``is_merged``.
        A_rI, B_Or: the adapter in the type of the products; what stands before B A is folded into B.
        scale: what was folded into B: a number, or a factor for each output.
        factor: DoRA's magnitude / norm, ``float32[O, 1]``, or None.
        dA, dB, dm: gradients of the factors as they were given; None until there is one.
    """

    def __init__(self, projection: Projection, factors: Factors, seed: int, dtype: torch.dtype) -> None:
        A, B, self.magnitude = factors
        bias = projection.layer.bias
        self.bias = bias.detach().to(dtype) if isinstance(bias, Tensor) else None
        self.W_OI = read_weight(projection.layer, dtype)
        self.dropout, self.seed = projection.dropout, seed
        self.scale: float | Tensor = projection.scaling
        self.factor: Tensor | None = None
        self.dA: Tensor | None = None
        self.dB: Tensor | None = None
        self.dm: Tensor | None = None
        self.is_adapted = A is not None and B is not None
        self.is_merged = False
        if A is not None and B is not None:
            self.A_rI, self.B_Or = A.detach().to(dtype), (B.detach() * projection.scaling).to(dtype)

    def prepare(self, *, merge: bool) -> None:
        """Choose the form: ``merge`` where the arithmetic allows it."""
        is_exact = self.W_OI.dtype in (torch.float32, torch.float64)
        self.is_merged = self.is_adapted and merge and is_exact and not self.dropout
        if self.is_merged:
            self.W_OI = torch.addmm(self.W_OI, self.B_Or, self.A_rI)
        if self.is_adapted and self.magnitude is not None:
            self._apply_magnitude(self.magnitude.detach())

    @property
    def is_apart(self) -> bool:
        """Whether the adapter's product is added to the base's."""
        return self.is_adapted and not self.is_merged and not self.dropout

    def _apply_magnitude(self, magnitude_O: Tensor) -> None:
        merged = self.W_OI if self.is_merged else torch.addmm(self.W_OI.float(), self.B_Or.float(), self.A_rI.float())
        self.factor = (magnitude_O.to(merged.dtype) / torch.linalg.norm(merged, dim=1)).unsqueeze(1)
        if self.is_merged:
            self.W_OI.mul_(self.factor)
            self.B_Or.mul_(self.factor)
            self.scale = self.factor * self.scale

    def base(self, x_NI: Tensor) -> Tensor:
        """The product with ``W_OI``; with the bias, unless DoRA's factor has still to come between."""
        return torch.nn.functional.linear(x_NI, self.W_OI, None if self._scales_output() else self.bias)

    def finish(self, y_NO: Tensor) -> None:
        """What is left to do when base and adapter are summed."""
        if not self._scales_output():
            return
        assert self.factor is not None
        y_NO.mul_(self.factor.t().to(y_NO.dtype))
        if self.bias is not None:
            y_NO.add_(self.bias)

    def gradient_of_sum(self, grad_NO: Tensor, output_NO: Tensor | None) -> Tensor:
        """The gradient of base + adapter from that of the output; the magnitude's is added on the way.

        With y = m / norm * (x V') + b, the magnitude's gradient is the sum over tokens of grad * (y - b) / m.
        """
        if self.magnitude is not None:
            assert output_NO is not None
            grad_m = (grad_NO * output_NO).sum(0, dtype=torch.float32)
            if self.bias is not None:
                grad_m -= grad_NO.sum(0, dtype=torch.float32) * self.bias
            self.dm = grad_m / self.magnitude.detach()
        if not self._scales_output():
            return grad_NO
        assert self.factor is not None
        return grad_NO * self.factor.t().to(grad_NO.dtype)

    def add_gradients(self, dA_rI: Tensor, g_NO: Tensor, h_Nr: Tensor) -> None:
        self.dA = dA_rI
        self.dB = (h_Nr.t() @ g_NO).t()  # twice as fast on a CPU as g' h

    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of A, B and magnitude."""
        return self.dA, None if self.dB is None else self.dB * self.scale, self.dm

    def _scales_output(self) -> bool:
        return self.factor is not None and not self.is_merged


def _base_gradient(seen: Sequence[tuple[_Member, Tensor]], dx_NI: Tensor) -> None:
    """The sum of g W over the projections, into ``dx_NI``."""
    if not seen:
        dx_NI.zero_()
    for number, (member, g_NO) in enumerate(seen):
        if number == 0:
            torch.mm(g_NO, member.W_OI, out=dx_NI)
        else:
            dx_NI.addmm_(g_NO, member.W_OI)


def _adapter_gradients(x_NI: Tensor, seen: Sequence[tuple[_Member, Tensor]], dx_NI: Tensor | None) -> None:
    """Gradients of the adapters without dropout: x is read twice for all of them."""
    ranks = [member.A_rI.shape[0] for member, _ in seen]
    A_RI = _stacked([member.A_rI for member, _ in seen])
    h_NR, t_NR = x_NI @ A_RI.t(), x_NI.new_empty(x_NI.shape[0], sum(ranks))
    for (member, g_NO), t_Nr in zip(seen, torch.split(t_NR, ranks, dim=1), strict=True):
        torch.mm(g_NO, member.B_Or, out=t_Nr)
    dA_RI = t_NR.t() @ x_NI
    parts = zip(
        seen, torch.split(dA_RI, ranks), torch.split(h_NR, ranks, dim=1), torch.split(t_NR, ranks, dim=1), strict=True
    )
    for (member, g_NO), dA_rI, h_Nr, t_Nr in parts:
        member.add_gradients(dA_rI, g_NO, h_Nr)
        if dx_NI is not None and not member.is_merged:
            dx_NI.addmm_(t_Nr, member.A_rI)


def _dropped_gradients(x_NI: Tensor, member: _Member, g_NO: Tensor, dx_NI: Tensor | None) -> None:
    mask_NI = keep_mask(x_NI, member.dropout, member.seed)
    t_Nr, kept_NI = g_NO @ member.B_Or, mask_NI * x_NI
    member.add_gradients(t_Nr.t() @ kept_NI, g_NO, kept_NI @ member.A_rI.t())
    if dx_NI is not None:
        dx_NI.add_(torch.mm(t_Nr, member.A_rI, out=kept_NI).mul_(mask_NI))


def _stacked(factors: Sequence[Tensor]) -> Tensor:
    return factors[0] if len(factors) == 1 else torch.cat(list(factors))


class _LoRA(torch.autograd.Function):
    """``Group`` in the graph: keeps the input and the factors, and an output only for a magnitude."""

    @staticmethod
    def forward(
        ctx: Any, x_NI: Tensor, projections: tuple[Projection, ...], dtype: torch.dtype, *flat: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.projections, ctx.dtype, ctx.seeds = projections, dtype, draw_seeds(projections)
        ctx.set_materialize_grads(False)
        group = Group(projections, in_threes(flat), ctx.seeds, dtype=dtype, rows=x_NI.shape[0])
        results = group.forward(x_NI.to(dtype))
        kept = [y if member.magnitude is not None else None for y, member in zip(results, group.members, strict=True)]
        ctx.save_for_backward(x_NI, *kept, *flat)
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x_NI, *saved = ctx.saved_tensors
        outputs, flat = saved[: len(grads)], saved[len(grads) :]
        group = Group(ctx.projections, in_threes(flat), ctx.seeds, dtype=ctx.dtype, rows=x_NI.shape[0], backward=True)
        dx_NI = torch.empty_like(x_NI, dtype=ctx.dtype) if ctx.needs_input_grad[0] else None
        group.backward(x_NI.to(ctx.dtype), grads, outputs, dx_NI)
        return dx_NI, None, None, *group.gradients()


def lora_linear(
    x: Tensor, projections: Sequence[Projection], factors: Sequence[Factors], dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Every projection of ``x[..., I]``, multiplied in ``dtype``: ``dtype[..., O]`` each."""
    flat = [factor for three in factors for factor in three]
    with torch.autocast(x.device.type, enabled=False):
        results = _LoRA.apply(x.reshape(-1, x.shape[-1]), tuple(projections), dtype, *flat)  # type: ignore[no-untyped-call]
    return tuple(y_NO.view(*x.shape[:-1], y_NO.shape[-1]) for y_NO in results)


def in_threes(flat: Sequence[Tensor | None]) -> list[Factors]:
    """The factors of each projection from one list of all."""
    return [(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat), 3)]
