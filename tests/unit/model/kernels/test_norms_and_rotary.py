"""The fast forms of normalisation and rotary embedding give the plain ones' values and gradients."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from tests.levers import resolved_with
from tests.models import tiny_model

from whet.model.kernels import norms, rotary
from whet.model.kernels.base import Kernel
from whet.model.kernels.layers import install, install_norms, install_rotary
from whet.model.patches import original_rotary, rotary_homes


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def gradients(output: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    seed = torch.Generator().manual_seed(9)
    return list(torch.autograd.grad(output, inputs, torch.randn(output.shape, generator=seed)))


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 7, 33), (3, 5, 64), (0, 8), (2, 0, 16)])
def test_the_fast_norm_has_the_values_and_gradients_of_the_plain_one(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.randn(shape[-1], generator=torch.Generator().manual_seed(1)).requires_grad_()
    plain, fast = norms.plain(x, weight, 1e-6), norms.fast(x, weight, 1e-6)
    assert fast.shape == plain.shape
    if not x.numel():
        return
    assert relative(fast, plain) <= norms.RMS_NORM.tolerance
    for one, other in zip(gradients(fast, x, weight), gradients(plain, x, weight), strict=True):
        assert relative(one, other) <= norms.RMS_NORM.tolerance


def test_the_fast_norm_takes_inputs_in_any_memory_order_and_frozen_weights() -> None:
    x = torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(0)).transpose(0, 1).requires_grad_()
    weight = torch.rand(8)
    (fast,) = gradients(norms.fast(x, weight, 1e-5), x)
    (plain,) = gradients(norms.plain(x, weight, 1e-5), x)
    assert relative(fast, plain) <= norms.RMS_NORM.tolerance


def test_a_vector_far_from_one_is_normalised_with_the_same_relative_error() -> None:
    for scale in (1e-12, 1e-3, 1e6, 1e15):
        x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)) * scale
        assert relative(norms.fast(x, torch.ones(32), 1e-6), norms.plain(x, torch.ones(32), 1e-6)) <= 1e-5


@pytest.mark.parametrize(("heads", "kv_heads", "length", "width"), [(4, 2, 7, 8), (1, 1, 1, 2), (3, 3, 130, 64)])
def test_the_fast_rotation_has_the_values_and_gradients_of_the_plain_one(
    heads: int, kv_heads: int, length: int, width: int
) -> None:
    seed = torch.Generator().manual_seed(3)
    # As a projection leaves them: [B, T, H, D_h] in memory, seen as [B, H, T, D_h].
    q = torch.randn(2, length, heads, width, generator=seed).transpose(1, 2).requires_grad_()
    k = torch.randn(2, length, kv_heads, width, generator=seed).transpose(1, 2).requires_grad_()
    angles = torch.randn(2, length, width // 2, generator=seed).repeat(1, 1, 2)
    plain = rotary.plain(q, k, angles.cos(), angles.sin())
    fast = rotary.fast(q, k, angles.cos(), angles.sin())
    for x, one, other in zip((q, k), fast, plain, strict=True):
        assert relative(one, other) <= rotary.ROTARY.tolerance
        (found,), (expected,) = gradients(one, x), gradients(other, x)
        assert relative(found, expected) <= rotary.ROTARY.tolerance


INTERPRETED = """
import torch
from tests.unit.model.kernels.test_norms_and_rotary import gradients, relative
from whet.model.kernels import rotary
from whet.model.kernels.rotary_triton import TritonRotate

seed = torch.Generator().manual_seed(3)
for rows, heads, length, width, angle_rows in ((1, 1, 1, 2, 1), (2, 3, 5, 12, 2), (2, 11, 4, 64, 1)):
    apart = torch.randn(rows, length, heads, 2 * width, generator=seed)[..., :width].transpose(1, 2)
    for x in (apart.contiguous().requires_grad_(), apart.detach().requires_grad_()):
        angles = torch.randn(angle_rows, length, width // 2, generator=seed).repeat(1, 1, 2)
        plain, _ = rotary.plain(x, x, angles.cos(), angles.sin())
        fused = TritonRotate.apply(x, angles.cos(), angles.sin(), torch.float32)
        assert relative(fused, plain) <= rotary.ROTARY.tolerance
        (found,), (expected,) = gradients(fused, x), gradients(plain, x)
        assert relative(found, expected) <= rotary.ROTARY.tolerance
    assert TritonRotate.apply(x, angles.cos(), angles.sin(), torch.bfloat16).dtype == torch.bfloat16
empty = torch.empty(1, 2, 0, 4)
assert TritonRotate.apply(empty, empty[0, :1], empty[0, :1], torch.float32).shape == empty.shape
"""


def test_the_kernel_for_cuda_turns_as_the_plain_form_does() -> None:
    """In Triton's interpreter, which must be chosen before Triton is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(["", *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_what_turns_part_of_a_head_stays_with_its_family() -> None:
    q, cos = torch.ones(1, 2, 3, 8), torch.ones(1, 3, 4)
    assert rotary.can_turn(q[..., :4], cos)
    assert not rotary.can_turn(q, cos)


@pytest.mark.parametrize(
    ("architecture", "norms_replaced", "rotates"),
    [("llama", 5, True), ("qwen3", 9, True), ("gemma3", 13, True), ("phi3", 5, True), ("gpt2", 0, False)],
)
def test_a_model_with_fast_layers_is_the_same_model(architecture: str, norms_replaced: int, rotates: bool) -> None:
    model = tiny_model(architecture)
    ids = torch.randint(0, 300, (2, 11), generator=torch.Generator().manual_seed(0))
    expected = model(input_ids=ids, labels=ids, use_cache=False)
    expected.loss.backward()
    wanted = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()
    said = install_norms(model, "cpu")
    assert said == (f"rms_norm: fused in {norms_replaced} layers" if norms_replaced else None)
    assert (install_rotary(model, "cpu") is not None) == rotates
    found = model(input_ids=ids, labels=ids, use_cache=False)
    found.loss.backward()
    assert relative(found.logits, expected.logits) <= 1e-5
    for name, parameter in model.named_parameters():
        if name in wanted and wanted[name].abs().max() > 1e-7:
            assert relative(parameter.grad, wanted[name]) <= 2e-4, name


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
def test_a_norm_of_float32_weights_makes_of_16_bits_what_its_family_does(architecture: str) -> None:
    """As mixed precision on CUDA gives it queries and keys; the choice is tried here on a CPU."""
    model = tiny_model(architecture)
    install_norms(model, "cuda")
    norm = model.model.layers[0].self_attn.q_norm
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(2))
    for dtype in (torch.bfloat16, torch.float16):
        x = torch.randn(5, 4, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
        theirs, ours = type(norm).forward(norm, x), norm(x)
        assert ours.dtype == theirs.dtype
        assert relative(ours.float(), theirs.float()) <= 2 * torch.finfo(dtype).eps
    assert norm.whet_narrows_halves == (architecture == "gemma3")


def test_a_copy_of_a_model_with_fast_layers_has_layers_of_its_own() -> None:
    model = tiny_model("llama")
    install_norms(model, "cpu")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.model.norm.weight.zero_()
    ids = torch.arange(5)[None]
    assert not model(ids).logits.any()
    assert twin(ids).logits.any()


def test_a_norm_of_another_kind_is_left_alone() -> None:
    class OddRMSNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight * 0.5

    model = torch.nn.Sequential(OddRMSNorm())
    assert install_norms(model, "cpu") is None
    assert "forward" not in vars(model[0])


def test_the_patch_of_rotary_is_needed_and_calls_theirs_for_other_devices() -> None:
    """When a family's attention no longer looks for the global function, this fails and the patch may go."""
    model = tiny_model("llama")
    install_rotary(model, "cpu")
    (home,) = rotary_homes(model)
    calls = []
    theirs = home.apply_rotary_pos_emb
    try:
        home.apply_rotary_pos_emb = lambda *args, **kwargs: calls.append(1) or theirs(*args, **kwargs)
        model(torch.arange(4)[None])
    finally:
        home.apply_rotary_pos_emb = theirs
    assert calls
    x = torch.ones(1, 2, 3, 4, device="meta")
    original, patched = original_rotary(home), home.apply_rotary_pos_emb
    assert original is not patched
    angles = torch.ones(1, 3, 4, device="meta")
    assert patched(x, x, angles, angles)[0].device.type == "meta"


def test_a_run_that_wants_no_fast_rotation_has_none_after_a_run_that_did() -> None:
    model = tiny_model("llama")
    (home,) = rotary_homes(model)
    install_rotary(model, "cpu")
    assert home.apply_rotary_pos_emb is not original_rotary(home)
    resolved = resolved_with(liger_rope=False)
    install(model, resolved.config, resolved)
    assert home.apply_rotary_pos_emb is original_rotary(home)


@pytest.mark.parametrize("kernel", [norms.RMS_NORM, rotary.ROTARY])
def test_a_device_without_a_fast_form_gets_the_plain_one(kernel: Kernel) -> None:
    assert kernel.refuses(device="mps", dtype=torch.float32)
