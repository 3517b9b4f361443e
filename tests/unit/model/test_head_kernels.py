"""Kernels for GPUs against the eager twin, in Triton's interpreter: float32 on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from whet.model.head_softmax import SOFTMAX, Softmax, make_softmax
from whet.model.kernels.base import select
from whet.model.loss_terms import LogitForm, LossTerms

INTERPRETED = """
import torch
from whet.model import head_loss, head_softmax
from whet.model.head_loss import HeadWeights
from whet.model.head_packages import liger
from whet.model.kernels.softmax_triton import TritonSoftmax
from whet.model.loss_terms import LogitForm, LossTerms

torch.manual_seed(0)

def outcome(loss, vocabulary, num, form, bias):
    torch.manual_seed(vocabulary)
    hidden = torch.randn(num, 9, requires_grad=True)
    weight = (3 * torch.randn(vocabulary, 9)).requires_grad_()
    offset = torch.randn(vocabulary, requires_grad=True) if bias else None
    targets = torch.randint(vocabulary, (num,))
    total, per_token = loss(hidden, HeadWeights(weight, offset), targets, form)
    leaves = [each for each in (hidden, weight, offset) if each is not None]
    return [total.detach(), per_token, *torch.autograd.grad(0.3 * total, leaves)]

def of_liger(hidden, head, targets, form):
    per_token = liger(hidden, head, targets, form)
    return per_token.sum(), per_token.detach()

def fused(*arguments):
    head_loss.make_softmax = lambda buffer, form, terms: TritonSoftmax(form)
    return head_loss.head_loss(*arguments, chunk_rows=3)

for form in (LogitForm(), LogitForm(0.3), LogitForm(softcap=2.0), LogitForm(1.5, 4.0)):
    for vocabulary, num in ((37, 5), (4096, 2), (5003, 4)):
        expected = outcome(head_loss.reference_head_loss, vocabulary, num, form, True)
        for found, value in zip(outcome(fused, vocabulary, num, form, True), expected, strict=True):
            torch.testing.assert_close(found, value, rtol=1e-4, atol=2e-5)
for bias in (False, True):  # the interpreter does not run Liger's soft-capping
    expected = outcome(head_loss.reference_head_loss, 37, 5, LogitForm(), bias)
    for found, value in zip(outcome(of_liger, 37, 5, LogitForm(), bias), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-4, atol=2e-5)
"""


def test_kernels_give_the_loss_and_gradients_of_the_eager_twin() -> None:
    """Ours, and Liger's fused head; the interpreter must be chosen before Triton is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_cpu_run_imports_no_triton() -> None:
    """Having it installed changes nothing there."""
    assert isinstance(make_softmax(torch.empty(2, 5), LogitForm(), LossTerms()), Softmax)
    choice = select(SOFTMAX, device="cpu", form=LogitForm(), terms=LossTerms())
    assert choice.why == "cross-entropy: plain, because it is a Triton kernel, and this is cpu"
    assert not select(SOFTMAX, device="cuda", form=LogitForm(), terms=LossTerms(z_loss=1e-4)).is_fused
