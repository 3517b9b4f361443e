"""The head's loss on a GPU: our Triton kernel and the packages, held against all logits in float32."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch

from whet.model.head_loss import HeadWeights, head_loss, reference_head_loss
from whet.model.head_packages import differs
from whet.model.head_softmax import SOFTMAX
from whet.model.kernels.base import select
from whet.model.loss_terms import LogitForm, LossTerms

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the loss on a GPU NOT TESTED")

FORMS = [LogitForm(), LogitForm(0.25), LogitForm(softcap=30.0)]


def outcome(loss: Any, dtype: torch.dtype, vocabulary: int, form: LogitForm, **how: Any) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(321, 128, generator=random).cuda().to(dtype).requires_grad_()
    weight = (torch.randn(vocabulary, 128, generator=random) * 0.3).cuda().to(dtype).requires_grad_()
    targets = torch.randint(vocabulary, (321,), generator=random).cuda()
    total, per_token = loss(hidden, HeadWeights(weight), targets, form, **how)
    return [total.detach(), per_token, *torch.autograd.grad(total * 0.01, [hidden, weight])]


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


def test_the_fused_softmax_is_chosen() -> None:
    assert select(SOFTMAX, device="cuda", form=LogitForm(), terms=LossTerms()).is_fused


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("vocabulary", [1000, 32_003])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2), (torch.float16, 5e-3)])
def test_chunks_on_a_gpu_are_the_whole_in_float32(
    form: LogitForm, vocabulary: int, dtype: torch.dtype, limit: float
) -> None:
    exact = outcome(reference_head_loss, torch.float32, vocabulary, form)
    for terms in (LossTerms(), LossTerms(label_smoothing=1e-6)):  # the kernel, and PyTorch in blocks
        for found, expected in zip(
            outcome(head_loss, dtype, vocabulary, form, terms=terms, chunk_rows=100), exact, strict=True
        ):
            assert error(found, expected) <= limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize(("name", "module"), [("liger", "liger_kernel"), ("cut_cross_entropy", "cut_cross_entropy")])
def test_packages_compute_the_same(name: str, module: str, softcap: float | None, dtype: torch.dtype) -> None:
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed: NOT TESTED")
    if name == "cut_cross_entropy" and dtype == torch.float32:
        pytest.skip("it computes in 16 bits")
    assert differs(name, torch.device("cuda"), dtype, 128, softcap) is None


def test_peak_memory_does_not_depend_on_the_vocabulary() -> None:
    """Of a frozen head, beside the numbers themselves."""

    def peak(vocabulary: int) -> int:
        hidden = torch.randn(8192, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        weight = torch.randn(vocabulary, 64, device="cuda", dtype=torch.bfloat16)
        targets = torch.zeros(8192, dtype=torch.long, device="cuda")
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        head_loss(hidden, HeadWeights(weight), targets)[0].backward()
        return torch.cuda.max_memory_allocated() - before

    assert peak(256_000) <= 1.1 * peak(64_000)
