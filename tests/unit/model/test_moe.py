"""Experts with low-rank adapters beside their weights: values and gradients against PEFT and transformers."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import ParamWrapper
from tests.models import MIXTURES, make_config, packed_batch, tiny_model

from whet.config.resolve import resolve
from whet.core.errors import ModelError
from whet.core.types import Hardware
from whet.model.architecture import Supported
from whet.model.isolation import isolates_documents
from whet.model.kernels.moe import AnyGate, Form, Gate, Loop, LowRank, Projection, SiluGate
from whet.model.kernels.moe_function import run_experts
from whet.model.kernels.moe_grouped import Segments, TorchProducts, choose_form
from whet.model.kernels.moe_install import install, take_over

LOOP, GROUPED = Loop(), Segments(TorchProducts(), "grouped_mm")
FORMS = pytest.mark.parametrize("form", [LOOP, GROUPED], ids=lambda form: form.name)
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


def lively(model: Any, seed: int = 1) -> Any:
    """The model with nothing at zero: LoRA's B and biases would hide what they multiply."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "second" in name or "bias" in name or not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2, generator=random)
    return model


def adapted(architecture: str, parameters: list[str] = EXPERTS) -> PeftModel:
    """A tiny mixture with an adapter of rank 3 on its attention and its experts."""
    lora = LoraConfig(r=3, lora_alpha=6, target_modules=["o_proj"], target_parameters=parameters)
    return lively(get_peft_model(tiny_model(architecture, attention="eager"), lora))


def loss_and_gradients(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    batch = packed_batch((31,))
    out = model(input_ids=batch["input_ids"], labels=batch["labels"])
    out.loss.backward()
    return out.logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def near(ours: torch.Tensor, theirs: torch.Tensor, limit: float = 1e-5) -> bool:
    return ours.shape == theirs.shape and bool((ours - theirs).norm() <= limit * theirs.norm())


def unlike(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> list[str]:
    assert ours.keys() == theirs.keys()
    return [name for name in theirs if not near(ours[name], theirs[name])]


@pytest.fixture
def nothing_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT may not write base + adapter into the module from now on."""
    monkeypatch.setattr(ParamWrapper, "_activate_lora", lambda *_: pytest.fail("PEFT merged an adapter"))


@pytest.mark.parametrize("architecture", MIXTURES)
def test_it_is_what_peft_computes(architecture: str, request: pytest.FixtureRequest) -> None:
    model = adapted(architecture)
    logits, gradients = loss_and_gradients(model)
    request.getfixturevalue("nothing_merged")
    for form in (LOOP, GROUPED):
        assert take_over(model, form) > 0
        ours, our_gradients = loss_and_gradients(model)
        assert near(ours, logits), form.name
        assert unlike(our_gradients, gradients) == [], form.name


@FORMS
@pytest.mark.parametrize("architecture", ["qwen3_moe", "gpt_oss"])
def test_full_training_is_what_transformers_computes(architecture: str, form: Form) -> None:
    model = lively(tiny_model(architecture, attention="eager"))
    logits, gradients = loss_and_gradients(model)
    take_over(model, form)
    ours, our_gradients = loss_and_gradients(model)
    assert near(ours, logits)
    assert unlike(our_gradients, gradients) == []


@pytest.mark.parametrize("parameter", EXPERTS)
def test_one_adapted_projection_is_enough(parameter: str, request: pytest.FixtureRequest) -> None:
    model = adapted("mixtral", [parameter])
    logits, gradients = loss_and_gradients(model)
    request.getfixturevalue("nothing_merged")
    take_over(model, LOOP)
    ours, our_gradients = loss_and_gradients(model)
    assert near(ours, logits)
    assert unlike(our_gradients, gradients) == []


def test_peft_still_decides_the_state_of_the_adapter() -> None:
    """Switched off, merged in place, a second adapter, several active at once: as without us."""
    ids = packed_batch((31,))["input_ids"]
    plain = adapted("qwen3_moe")
    ours = copy.deepcopy(plain)
    take_over(ours, LOOP)
    models = (plain, ours)
    for model in models:
        model.add_adapter("second", LoraConfig(r=2, target_modules=["o_proj"], target_parameters=EXPERTS))
        lively(model, seed=2)

    def agree() -> torch.Tensor:
        with torch.no_grad():
            theirs, mine = (model(input_ids=ids).logits for model in models)
        assert near(mine, theirs)
        return mine

    first = agree()
    for model in models:
        model.set_adapter("second")
    second = agree()
    for model in models:
        model.base_model.set_adapter(["default", "second"])
    both = agree()
    for model in models:
        model.base_model.set_adapter("default")
        model.merge_adapter()
    assert near(agree(), first)
    for model in models:
        model.unmerge_adapter()
    with plain.disable_adapter(), ours.disable_adapter():
        off = agree()
    assert near(agree(), first)
    assert not any(near(first, other, 1e-2) for other in (second, both, off))


def test_a_copy_of_the_model_runs_on_its_own_weights() -> None:
    model = adapted("mixtral")
    take_over(model, LOOP)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "experts" in name and "lora_B" in name:
                parameter.zero_()
    ids = packed_batch((9,))["input_ids"]
    assert not near(twin(input_ids=ids).logits, model(input_ids=ids).logits, 1e-2)


@pytest.mark.parametrize("architecture", MIXTURES)
def test_packed_documents_stay_apart(architecture: str) -> None:
    model = tiny_model(architecture, attention="whet_documents")
    take_over(model, LOOP)
    assert isinstance(isolates_documents(model), Supported)


def projections(num_experts: int, hidden: int, width: int, rank: int, *, transposed: bool, biased: bool) -> Any:
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random).mul_(0.3).requires_grad_()

    def projection(inner: int, outer: int) -> Projection:
        shape = (inner, outer) if transposed else (outer, inner)
        low_rank = LowRank(draw(num_experts * rank, inner), draw(outer, rank * num_experts), 0.5)
        return Projection(draw(num_experts, *shape), draw(num_experts, outer) if biased else None, low_rank, transposed)

    return projection(hidden, 2 * width), projection(width, hidden)


def merged(projection: Projection) -> torch.Tensor:
    """(E, I, O): the weight as PEFT would merge it."""
    assert projection.low_rank is not None
    a, b, scale = projection.low_rank.a, projection.low_rank.b, projection.low_rank.scale
    experts = projection.weight.shape[0]
    delta = torch.einsum("eri,ore->eio", a.view(experts, -1, a.shape[1]), b.view(b.shape[0], -1, experts)) * scale
    return (projection.weight if projection.is_transposed else projection.weight.transpose(1, 2)) + delta


def by_hand(x: Any, index: Any, router: Any, up: Projection, down: Projection, gate: Gate) -> torch.Tensor:
    """One token and one expert after another, in float64, with merged weights."""
    rows = []
    for token in range(len(x)):
        row = torch.zeros(x.shape[1], dtype=torch.float64)
        for place, expert in enumerate(index[token].tolist()):
            u = x[token].double() @ merged(up)[expert].double()
            u = u if up.bias is None else u + up.bias[expert].double()
            y = gate.forward(u[None])[0] @ merged(down)[expert].double()
            y = y if down.bias is None else y + down.bias[expert].double()
            row = row + router[token, place].double() * y
        rows.append(row)
    return torch.stack(rows)


def clamped(u: torch.Tensor) -> torch.Tensor:
    gate, up = u[..., ::2].clamp(max=0.5), u[..., 1::2].clamp(-0.5, 0.5)
    return (up + 1) * gate * torch.sigmoid(gate * 1.7)


ROUTINGS: dict[str, Sequence[Sequence[int]]] = {
    "one token": [[2, 0]],
    "all to one pair": [[1, 3]] * 7,
    "empty experts": [[0, 4], [4, 0], [0, 4], [0, 4], [4, 0]],
    "one expert a token": [[3], [3], [0], [1], [3], [4]],
    "all experts": [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]],
}


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("kind", ["plain", "gpt_oss"])
def test_every_routing_is_what_merged_weights_give(routing: str, kind: str) -> None:
    is_like_gpt_oss = kind == "gpt_oss"
    hidden, width = (8, 8) if is_like_gpt_oss else (7, 5)  # PyTorch's grouped product takes no odd widths
    gate: Gate = AnyGate(clamped) if is_like_gpt_oss else SiluGate()
    up, down = projections(5, hidden, width, 3, transposed=is_like_gpt_oss, biased=is_like_gpt_oss)
    index = torch.tensor(ROUTINGS[routing])
    random = torch.Generator().manual_seed(3)
    x = torch.randn(len(index), hidden, generator=random).requires_grad_()
    router = torch.rand(index.shape, generator=random).requires_grad_()
    leaves = [x, router, *(each for each in (*up.tensors(), *down.tensors()) if each is not None)]
    expected = by_hand(x, index, router, up, down, gate)
    weights = torch.randn(expected.shape, generator=random)
    wanted = torch.autograd.grad((expected * weights).sum(), leaves)
    for form in (LOOP, GROUPED) if is_like_gpt_oss else (LOOP,):
        out = run_experts(form, x, index, router, up, down, gate)
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
        for ours, theirs in zip(torch.autograd.grad((out * weights).sum(), leaves), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@FORMS
def test_mixed_precision_is_near_and_keeps_types(form: Form) -> None:
    up, down = projections(4, 16, 24, 8, transposed=False, biased=True)
    random = torch.Generator().manual_seed(3)
    x = torch.randn(40, 16, generator=random).requires_grad_()
    index = torch.rand(40, 4, generator=random).topk(2).indices
    router = torch.rand(index.shape, generator=random).requires_grad_()
    leaves = [x, router, *(each for each in (*up.tensors(), *down.tensors()) if each is not None)]
    exact = run_experts(form, x, index, router, up, down, SiluGate())
    wanted = torch.autograd.grad(exact.square().sum(), leaves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = run_experts(form, x, index, router, up, down, SiluGate())
    assert out.dtype == torch.float32
    assert near(out, exact, 0.02)
    for ours, theirs in zip(torch.autograd.grad(out.square().sum(), leaves), wanted, strict=True):
        assert ours.dtype == torch.float32
        assert near(ours, theirs, 0.05)


def saved_bytes(model: Any) -> int:
    """Of all tensors that the forward pass keeps for the backward pass, weights apart."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(input_ids=packed_batch((31,))["input_ids"]).logits
    assert out.requires_grad
    return sum(kept.values())


def test_it_keeps_less_than_the_merged_weights_alone() -> None:
    model = adapted("qwen3_moe")
    theirs = saved_bytes(model)
    merged_bytes = sum(p.numel() * 4 for n, p in model.named_parameters() if n.endswith("_proj") and "experts" in n)
    assert merged_bytes > 0
    take_over(model, LOOP)
    assert saved_bytes(model) < theirs - merged_bytes


def lever(model: Any, config: Any) -> str | None:
    return install(model, config, resolve(config, Hardware("cpu")))


ADAPTER = {"adapter": "lora", "lora_target_linear": True}


def test_the_lever_says_who_computes_what() -> None:
    said = lever(adapted("mixtral"), make_config("m", adapter={**ADAPTER, "lora_target_parameters": EXPERTS}))
    assert said == (
        "experts: 2 layers by a loop over the experts, because on a cpu PyTorch's grouped product is that loop itself; "
        "adapted in 2, beside the weights, with nothing merged"
    )
    plain = lever(tiny_model("mixtral"), make_config("m", adapter=ADAPTER, experts={"use_sonicmoe": True}))
    assert plain is not None
    assert "(sonicmoe asks for grouped experts, which these are)" in plain
    assert (
        "the adapter leaves them alone: add lora_target_parameters: [experts.gate_up_proj, experts.down_proj]" in plain
    )
    model = tiny_model("mixtral")
    said = lever(model, make_config("m", experts={"expert_backend": "batched_mm"}))
    assert said == "experts: 2 layers by transformers' batched_mm, as asked for"
    assert model.config._experts_implementation == "batched_mm"
    assert lever(tiny_model("llama"), make_config("m")) is None
    shared = lever(adapted("deepseek_v3"), make_config("m", adapter=ADAPTER))
    assert shared is not None
    assert "dense layers and shared experts are not adapted" in shared


def test_what_cannot_be_had_is_refused() -> None:
    with pytest.raises(ModelError, match=r"use_scattermoe: .* reaches nothing in 'm' -> remove the line"):
        lever(tiny_model("llama"), make_config("m", experts={"use_scattermoe": True}))
    with pytest.raises(ModelError, match=r"triton cannot run, because Triton's kernels are for CUDA, .* -> write"):
        lever(tiny_model("mixtral"), make_config("m", experts={"moe_grouped_backend": "triton"}))
    with pytest.raises(ValueError, match="a cpu PyTorch's grouped product is that loop itself"):
        choose_form("grouped_mm", device="cpu", dtype=torch.float32, widths=(8,))


INTERPRETED = """
import torch
from whet.model.kernels.moe_triton import TritonProducts
torch.manual_seed(0)
triton = TritonProducts()
for ends, inner, outer in [((3, 3, 90, 161), 37, 70), ((1,), 16, 3), ((0, 0, 5), 65, 8)]:
    ends = torch.tensor(ends, dtype=torch.int32)
    x, y = torch.randn(int(ends[-1]), inner), torch.randn(int(ends[-1]), outer)
    weight = torch.randn(len(ends), inner, outer)
    segments = [slice(a, b) for a, b in zip([0, *ends.tolist()], ends.tolist())]
    rows = torch.cat([x[rows] @ weight[e] for e, rows in enumerate(segments)])
    columns = torch.stack([x[rows].T @ y[rows] for rows in segments])
    torch.testing.assert_close(triton.rows(x, weight, ends), rows, rtol=1e-5, atol=1e-4)
    turned = weight.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(triton.rows(x, turned, ends), rows, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(triton.columns(x, y, ends), columns, rtol=1e-5, atol=1e-4)
"""


def test_triton_products_are_those_of_a_loop() -> None:
    """In Triton's interpreter, which must be chosen before it is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
