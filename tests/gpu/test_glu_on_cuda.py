"""The Triton kernels of gated MLPs on a GPU, held against float64."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.unit.model.kernels.test_gated_mlp import ACTIVATIONS, GatedMlp

from whet.model.kernels.base import select
from whet.model.kernels.gated_mlp import install_in
from whet.model.kernels.glu import ACTIVATIONS as KINDS
from whet.model.kernels.glu import GLU, Activation, PlainGlu, make_glu

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: gated MLPs on a GPU NOT TESTED")

LIMITS = [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)]


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.parametrize("activation", KINDS, ids=lambda activation: activation.name)
@pytest.mark.parametrize(("dtype", "limit"), LIMITS)
@pytest.mark.parametrize("shape", [(1, 1), (37, 331), (4096, 14336)])
def test_the_kernels_are_the_twin(
    activation: Activation, dtype: torch.dtype, limit: float, shape: tuple[int, int]
) -> None:
    assert select(GLU, device="cuda", dtype=dtype).is_fused
    torch.manual_seed(0)
    gate, up, grad = (torch.randn(shape, device="cuda").to(dtype) for _ in range(3))
    exact = [tensor.double() for tensor in (gate, up, grad)]
    fused, plain = make_glu(activation, gate), PlainGlu(activation)
    assert error(fused.again(gate, up)[0], plain.forward(*exact[:2])) <= limit
    d_up, exact_d_up = fused.backward_(grad, gate, up, None), plain.backward_(exact[2], *exact[:2], None)
    assert error(d_up, exact_d_up) <= limit
    assert error(grad, exact[2]) <= limit


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_gated_mlp_is_the_models(activation: str, autocast: bool) -> None:
    own = GatedMlp(activation, bias=True).cuda()
    fast = copy.deepcopy(own)
    assert install_in(fast)
    x = torch.randn(1, 301, 11, device="cuda", requires_grad=True)
    results = []
    for mlp in (own, fast):
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
            y = mlp(x)
        results.append([y, *torch.autograd.grad(y.float().square().sum(), [x, *mlp.parameters()])])
    for found, expected in zip(results[1], results[0], strict=True):
        assert error(found, expected.double()) <= (3e-2 if autocast else 1e-5)
