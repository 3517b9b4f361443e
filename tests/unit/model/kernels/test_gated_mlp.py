"""A gated MLP as one step of the graph is the model's own, values and gradients, and keeps less."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from tests.models import packed_batch, tiny_model
from tests.tiny_training import make_config
from torch.utils.checkpoint import checkpoint

from whet.config.resolve import resolve
from whet.core.types import Hardware
from whet.model.attention import NAME
from whet.model.kernels.base import select
from whet.model.kernels.gated_mlp import install, install_in
from whet.model.kernels.glu import GLU
from whet.model.loss import supervised_logits_loss

ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh")


class GatedMlp(torch.nn.Module):
    """As families write it; odd sizes."""

    def __init__(self, activation: str = "silu", bias: bool = False, dropout: float = 0.0) -> None:
        from transformers.activations import ACT2FN

        super().__init__()
        torch.manual_seed(0)
        self.gate_proj, self.up_proj = (torch.nn.Linear(11, 37, bias=bias) for _ in range(2))
        self.down_proj = torch.nn.Linear(37, 11, bias=bias)
        self.act_fn, self.dropout = ACT2FN[activation], torch.nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.dropout(self.act_fn(self.gate_proj(x)) * self.up_proj(x)))


def outcome(mlp: Any, tokens: int = 13, *, of_x: bool = True, autocast: bool = False) -> dict[str, torch.Tensor]:
    """The output, and every gradient."""
    seed = torch.Generator().manual_seed(tokens)
    x = torch.randn(1, tokens, 11, generator=seed).requires_grad_(of_x)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast, cache_enabled=False):
        y = mlp(x)
    y.backward(torch.randn(y.shape, generator=seed).to(y.dtype))
    gradients = {name: p.grad for name, p in [("x", x), *mlp.named_parameters()] if p.grad is not None}
    mlp.zero_grad()
    return {"y": y.detach(), **gradients}


def assert_same(mlp: GatedMlp, limit: float = 1e-5, **how: Any) -> None:
    fast = copy.deepcopy(mlp)
    assert install_in(fast)
    expected, found = outcome(mlp, **how), outcome(fast, **how)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        error = (found[name] - value).float().norm() / value.float().norm().clamp(min=1e-30)
        assert error <= limit, (name, float(error))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_those_of_the_model(activation: str, bias: bool) -> None:
    mlp = GatedMlp(activation, bias)
    for tokens in (1, 13, 0):
        assert_same(mlp, tokens=tokens)
    assert_same(mlp, of_x=False)
    assert_same(mlp, autocast=True, limit=2e-2)


@pytest.mark.parametrize("frozen", [("gate_proj",), ("up_proj", "down_proj"), ("gate_proj", "up_proj", "down_proj")])
def test_frozen_weights_get_no_gradient(frozen: tuple[str, ...]) -> None:
    mlp = GatedMlp(bias=True)
    for name in frozen:
        getattr(mlp, name).requires_grad_(False)
    assert_same(mlp)
    if len(frozen) < 3:
        assert_same(mlp, of_x=False)


def test_only_x_gate_and_up_are_kept() -> None:
    def kept(mlp: Any, x: torch.Tensor) -> int:
        known = {p.untyped_storage().data_ptr() for p in mlp.parameters()}
        saved: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            results.append(mlp(x))
        return sum(saved.values())

    results: list[torch.Tensor] = []  # keeps the graphs, so that no address is used twice
    mlp, x = GatedMlp(), torch.randn(500, 11, requires_grad=True)
    assert kept(mlp, x) == 500 * (11 + 4 * 37) * 4
    assert install_in(mlp)
    assert kept(mlp, x) == 500 * (11 + 2 * 37) * 4
    mlp.requires_grad_(False)
    assert kept(mlp, x) == 500 * 2 * 37 * 4


class Checkpointed(torch.nn.Module):
    """Computes a module again in the backward pass."""

    def __init__(self, mlp: torch.nn.Module, use_reentrant: bool) -> None:
        super().__init__()
        self.mlp, self.use_reentrant = mlp, use_reentrant

    def forward(self, x: torch.Tensor) -> Any:
        return checkpoint(self.mlp, x, use_reentrant=self.use_reentrant)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpoint_computes_it_again(use_reentrant: bool) -> None:
    mlp = GatedMlp()
    expected = outcome(mlp)
    assert install_in(mlp)
    found = outcome(Checkpointed(mlp, use_reentrant))
    for name, value in expected.items():
        torch.testing.assert_close(found[name if name in ("x", "y") else f"mlp.{name}"], value, rtol=1e-5, atol=1e-6)


def test_a_second_pass_through_a_kept_graph_gives_the_same() -> None:
    mlp = GatedMlp()
    assert install_in(mlp)
    x = torch.randn(4, 11, requires_grad=True)
    y = mlp(x).sum()
    first = torch.autograd.grad(y, [x, *mlp.parameters()], retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(y, [x, *mlp.parameters()]), strict=True):
        assert torch.equal(one, other)


def test_what_is_another_computation_is_left_alone() -> None:
    class Linear(torch.nn.Linear):
        """As QAT's and float8's."""

    class Doubled(GatedMlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    class Routed(GatedMlp):
        def forward(self, x: torch.Tensor, routes: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    other, watched = GatedMlp(), GatedMlp()
    other.up_proj = Linear(11, 37, bias=False)
    watched.down_proj.register_forward_hook(lambda *_: None)
    for mlp in (other, watched, Doubled(), Routed(), GatedMlp(dropout=0.5), GatedMlp("relu"), GatedMlp().to("meta")):
        assert not install_in(mlp)
        assert "forward" not in vars(mlp)


def test_a_layer_that_becomes_another_is_called_again() -> None:
    """A lever that comes later may wrap or watch a layer; a compiler sees the model's own code."""
    mlp, calls = GatedMlp(), []
    assert install_in(mlp)
    mlp.up_proj.register_forward_hook(lambda *_: calls.append(1))
    mlp(torch.randn(2, 11))
    assert calls == [1]


@pytest.mark.parametrize(("architecture", "number"), [("llama", 2), ("gemma3", 2), ("phi3", 0)])
def test_a_model_is_the_same_model(architecture: str, number: int) -> None:
    model: Any = tiny_model(architecture, attention=NAME).train()
    found = []
    for fast in (False, True):
        if fast:
            config = make_config(sequence_len=128)
            said = install(model, config, resolve(config, Hardware("cpu")))
            assert said == (f"gated MLP: {number} keep gate and up, and not their product" if number else None)
        loss = supervised_logits_loss(model, packed_batch((30, 13, 20))).total
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
        model.zero_grad()
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= 2e-4 * other.norm()


def test_the_key_and_the_default_decide() -> None:
    for keys, is_on in (
        ({"liger_glu_activation": False}, False),
        ({"bf16": True}, False),  # slower on a CPU
        ({"bf16": True, "liger_glu_activation": True}, True),
    ):
        config = make_config(sequence_len=128, **keys)
        said = install(tiny_model(), config, resolve(config, Hardware("cpu")))
        assert (said is not None) == is_on, keys


INTERPRETED = """
import torch
from tests.unit.model.kernels.test_gated_mlp import GatedMlp, outcome
from whet.model.kernels import gated_mlp
from whet.model.kernels.glu import ACTIVATIONS, GLU, PlainGlu
from whet.model.kernels.glu_triton import TritonGlu

def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=GLU.tolerance, atol=1e-5)

torch.manual_seed(0)
for activation in ACTIVATIONS:
    for shape in ((1, 1), (3, 37), (7, 331)):
        gate, up, grad = torch.randn(shape) * 4, torch.randn(shape), torch.randn(shape)
        gate.view(-1)[0] = 90.0
        gate.view(-1)[-1] = -90.0
        plain, fused = PlainGlu(activation), TritonGlu(activation)
        kept = gate.clone(), up.clone()
        close(fused.forward(gate, up), plain.forward(gate, up))
        h, activated = fused.again(gate, up)
        close(h, plain.again(gate, up)[0])
        found, expected = grad.clone(), grad.clone()
        close(fused.backward_(found, gate, up, activated), plain.backward_(expected, gate, up, None))
        close(found, expected)
        assert torch.equal(gate, kept[0]) and torch.equal(up, kept[1])
    TritonGlu(activation).forward(torch.empty(0, 3), torch.empty(0, 3))
mlp = GatedMlp("gelu")
expected = outcome(mlp)
gated_mlp.make_glu = lambda activation, like: TritonGlu(activation)
assert gated_mlp.install_in(mlp)
for name, value in outcome(mlp).items():
    close(value, expected[name])
"""


def test_triton_computes_the_same() -> None:
    """In Triton's interpreter, which must be chosen before Triton is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(["", *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_triton_is_for_cuda_alone() -> None:
    choice = select(GLU, device="cpu", dtype=torch.float32)
    assert choice.why == "gated linear unit: plain, because it is a Triton kernel, and this is cpu"
    assert select(GLU, device="cuda", dtype=torch.bfloat16).is_fused
    assert not select(GLU, device="cuda", dtype=torch.float64).is_fused
