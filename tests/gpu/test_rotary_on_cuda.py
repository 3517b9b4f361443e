"""Rotary embedding and norms on a GPU: values and gradients of the plain forms, alone and in a model."""

from __future__ import annotations

import pytest
import torch
from tests.models import packed_batch, tiny_model

from whet.model.attention import NAME
from whet.model.kernels import rotary
from whet.model.kernels.layers import install_norms, install_rotary
from whet.model.loss import supervised_logits_loss
from whet.model.patches import restore_rotary, rotary_homes

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: rotary kernels NOT TESTED")


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize(("heads", "width", "length"), [(32, 128, 4096), (5, 64, 37), (1, 256, 1), (9, 24, 130)])
@pytest.mark.parametrize("heads_first", [True, False])
def test_the_kernel_turns_as_the_plain_form_does_in_float64(
    heads: int, width: int, length: int, heads_first: bool, dtype: torch.dtype, limit: float
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, length, heads, width, device="cuda").to(dtype)
    x = (x.transpose(1, 2) if heads_first else x).requires_grad_()
    angles = torch.randn(1, length, width // 2, device="cuda").repeat(1, 1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    axis = 1 if heads_first else 2
    exact = x.detach().double().requires_grad_()
    expected, _ = rotary.plain(exact, exact, cos.double(), sin.double(), axis)
    found, _ = rotary.fast(x, x, cos, sin, axis)
    assert found.dtype == dtype
    assert error(found, expected) <= limit
    grad = torch.randn_like(found)
    (theirs,) = torch.autograd.grad(expected, exact, grad.double())
    (ours,) = torch.autograd.grad(found, x, grad)
    assert error(ours, theirs) <= limit
    assert x.transpose(1, 2).is_contiguous() == ours.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "phi3"])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_model_that_norms_and_turns_by_them_has_the_same_gradients(architecture: str, autocast: bool) -> None:
    model = tiny_model(architecture, attention=NAME).cuda().train()
    batch = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in packed_batch((37, 5, 1, 24)).items()}
    gradients = []
    for fused in (False, True):
        model.zero_grad()
        for home in rotary_homes(model):
            restore_rotary(home)
        if fused:
            assert install_rotary(model, "cuda") == "rotary: fused"
            assert install_norms(model, "cuda") is not None
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            supervised_logits_loss(model, batch).total.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for name, plain in gradients[0].items():
        assert error(gradients[1][name], plain.double()) <= (5e-2 if autocast else 1e-4), name
