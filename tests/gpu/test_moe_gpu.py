"""The experts' grouped forms on a GPU against the loop: values and gradients."""

from __future__ import annotations

import pytest
import torch

from whet.model.kernels.moe import Loop, LowRank, Projection, SiluGate
from whet.model.kernels.moe_function import run_experts
from whet.model.kernels.moe_grouped import choose_form

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the GPU forms are NOT tested")

CASES = [
    ("triton", torch.float32, 1e-2, 64, 96, 16),
    ("triton", torch.float32, 1e-5, 37, 50, 3),
    ("triton", torch.bfloat16, 0.02, 64, 96, 16),
    ("grouped_mm", torch.bfloat16, 0.02, 64, 96, 16),
    ("grouped_mm", torch.bfloat16, 0.02, 64, 96, 3),
]


def layer(hidden: int, width: int, rank: int, dtype: torch.dtype) -> tuple[list[torch.Tensor], Projection, Projection]:
    random = torch.Generator("cuda").manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, device="cuda", dtype=dtype).mul_(0.3).requires_grad_()

    def projection(inner: int, outer: int) -> Projection:
        low_rank = LowRank(draw(8 * rank, inner), draw(outer, rank * 8), 0.5)
        return Projection(draw(8, outer, inner), draw(8, outer), low_rank)

    up, down = projection(hidden, 2 * width), projection(width, hidden)
    leaves = [draw(300, hidden), draw(300, 2), *(each for each in (*up.tensors(), *down.tensors()) if each is not None)]
    return leaves, up, down


@pytest.mark.parametrize(("backend", "dtype", "limit", "hidden", "width", "rank"), CASES)
def test_grouped_forms_are_the_loop(
    backend: str, dtype: torch.dtype, limit: float, hidden: int, width: int, rank: int
) -> None:
    if limit == 1e-2:
        torch.backends.fp32_precision = "tf32"  # as transformers allows it
    leaves, up, down = layer(hidden, width, rank, dtype)
    x, router = leaves[:2]
    index = torch.rand(300, 6, device="cuda").topk(2).indices  # the last two experts get no row
    form, _ = choose_form(backend, device="cuda", dtype=dtype, widths=(hidden, width, 2 * width))
    results = []
    for each in (form, Loop()):
        out = run_experts(each, x, index, router, up, down, SiluGate())
        results.append([out, *torch.autograd.grad(out.float().square().sum(), leaves)])
    for ours, plain in zip(*results, strict=True):
        assert (ours - plain).float().norm() <= limit * plain.float().norm()
