"""The LoRA kernels give what PEFT's own forward gives, values and gradients, and keep less."""

from __future__ import annotations

import contextlib
import copy
import gc
from functools import partial
from types import MethodType
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.models import packed_batch, tiny_model
from tests.tiny_training import make_config
from torch.utils.checkpoint import checkpoint

from whet.config.resolve import resolve
from whet.core.errors import ModelError
from whet.core.types import Hardware
from whet.model.attention import NAME
from whet.model.kernels.install_lora import install
from whet.model.kernels.lora import keep_mask
from whet.model.kernels.lora_layers import hide_from_compiler
from whet.model.loss import supervised_logits_loss
from whet.model.memory.accounting import LiveBytes

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LENGTHS = (30, 13, 20)


def adapted(
    architecture: str = "llama", size: dict[str, Any] | None = None, dtype: torch.dtype = torch.float64, **lora: Any
) -> Any:
    """A tiny model with an adapter whose B is not zero, in training mode.

    In float64, as float32 roundings of a whole model hide what is compared here; norms and loss stay float32.
    """
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR, "init_lora_weights": False, **lora}
    model = tiny_model(architecture, attention=NAME, **(size or {}))
    torch.manual_seed(3)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings)).to(dtype).train()


def kernels_on(model: Any, **keys: Any) -> str | None:
    config = make_config(sequence_len=128, adapter="lora", lora_target_linear=True, **keys)
    return install(model, config, resolve(config, Hardware("cpu")))


def step(model: Any, lengths: tuple[int, ...] = LENGTHS) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(5)
    loss = supervised_logits_loss(model, packed_batch(lengths, supervised_share=1.0)).total
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.detach(), gradients


def assert_near(one: Any, other: Any, limit: float = 1e-5) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=limit, atol=0)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        error = (gradient - other[1][name]).norm() / other[1][name].norm()
        assert error <= limit, (name, float(error))


CASES: dict[str, dict[str, Any]] = {
    "all linear layers": {},
    "odd sizes": {"size": {"hidden_size": 44, "intermediate_size": 75, "head_dim": 10}, "r": 3},
    "rank-stabilised": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "ranks by pattern": {"rank_pattern": {"q_proj": 2, "up_proj": 7}, "alpha_pattern": {"v_proj": 3, "down_proj": 5}},
    "biases": {"size": {"attention_bias": True, "mlp_bias": True}},
    "biases and DoRA": {"size": {"attention_bias": True, "mlp_bias": True}, "use_dora": True},
    "q and v alone": {"target_modules": ["q_proj", "v_proj"]},
    "up alone": {"target_modules": ["up_proj"]},
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_that_of_peft(case: str) -> None:
    model = adapted(**CASES[case])
    for parameter in model.parameters():  # biases start as zeros
        if parameter.dim() == 1 and not parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)
    expected = step(model)
    said = kernels_on(model)
    assert said is not None
    assert "by PEFT" not in said
    assert_near(step(model), expected)


@pytest.mark.parametrize("architecture", ["mistral", "qwen3", "gemma3", "phi3", "gpt2"])
def test_a_step_of_every_architecture_is_that_of_peft(architecture: str) -> None:
    model = adapted(architecture, target_modules="all-linear", fan_in_fan_out=architecture == "gpt2")
    expected = step(model)
    said = kernels_on(model)
    assert said is not None
    assert "by PEFT" not in said
    assert_near(step(model), expected)


@pytest.mark.parametrize("case", ["all linear layers", "DoRA"])
def test_a_few_tokens_take_the_form_that_adds_and_give_the_same(case: str) -> None:
    model = adapted(**CASES[case])
    expected = step(model, (3, 2))
    kernels_on(model)
    assert_near(step(model, (3, 2)), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_computing_again_in_the_backward_pass_changes_nothing(reentrant: bool) -> None:
    model = adapted()
    expected = step(model)
    kernels_on(model)
    checkpointed(model, reentrant)
    assert_near(step(model), expected)


def checkpointed(model: Any, reentrant: bool) -> None:
    """Every layer computed again in the backward pass."""
    model.enable_input_require_grads()
    for layer in model.get_base_model().model.layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=reentrant)


def test_dropout_computed_again_is_the_same_dropout() -> None:
    model = adapted(lora_dropout=0.3)
    kernels_on(model)
    expected = step(model)
    assert_near(step(model), expected, 1e-12)
    checkpointed(model, reentrant=False)
    assert_near(step(model), expected, 1e-12)


@pytest.mark.parametrize("names", [LINEAR[:3], ["o_proj"], LINEAR[4:]], ids=["q k v", "o", "mlp"])
def test_with_the_same_masks_dropout_is_that_of_peft(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that depends on the input's place alone stands in for both."""

    def mask(x: torch.Tensor, share: float, seed: int = 0) -> torch.Tensor:
        places = torch.arange(x.numel()).view(x.shape)
        return (places * 7919 % 101 >= 100 * share).to(x.dtype) / (1 - share)

    monkeypatch.setattr("whet.model.kernels.lora.keep_mask", mask)
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: x * mask(x, self.p) if self.training else x)
    model = adapted(target_modules=names, lora_dropout=0.3)
    expected = step(model)
    kernels_on(model)
    assert_near(step(model), expected)
    model.eval()
    assert step(model)[0] != expected[0]


def test_the_mask_drops_its_share_and_keeps_the_mean() -> None:
    x = torch.ones(400, 100)
    mask = keep_mask(x, 0.25, seed=1)
    assert abs((mask == 0).double().mean() - 0.25) < 0.01
    assert mask.max() == torch.tensor(1 / 0.75)
    assert torch.equal(mask, keep_mask(x, 0.25, seed=1))
    assert not torch.equal(mask, keep_mask(x, 0.25, seed=2))


def test_an_adapter_that_is_switched_off_merged_or_joined_by_another_is_computed_by_peft() -> None:
    model = adapted()
    plain, with_adapter = logits(model, off=True), logits(model)
    kernels_on(model)
    torch.testing.assert_close(logits(model), with_adapter)
    assert torch.equal(logits(model, off=True), plain)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), with_adapter)
    model.unmerge_adapter()
    torch.testing.assert_close(model.merge_and_unload()(torch.arange(9)[None]).logits, with_adapter)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_copy_of_the_model_runs_on_its_own_weights(compiled: bool) -> None:
    model = adapted()
    assert "q+k+v" in str(kernels_on(model))
    if compiled:
        hide_from_compiler(model)
    twin, before = copy.deepcopy(model), logits(model)
    for kind in ("q_proj", "o_proj", "up_proj"):  # with others, alone, in an MLP
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                if f"{kind}.lora_B" in name:
                    parameter.zero_()
        torch.testing.assert_close(logits(model), before)
        changed = logits(twin)
        assert not torch.allclose(changed, before)
        for layer in twin.modules():  # and it is what PEFT makes of the copy's weights
            vars(layer).pop("forward", None)
        torch.testing.assert_close(logits(twin), changed)
        twin = copy.deepcopy(model)


@torch.no_grad()
def logits(model: Any, off: bool = False) -> torch.Tensor:
    with model.disable_adapter() if off else contextlib.nullcontext():
        result: torch.Tensor = model(torch.arange(9)[None]).logits
    return result


def quantized(kind: str) -> Any:
    """A tiny adapted model with 4-bit layers, as `whet.model.quantize` loads them."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = tiny_model("llama", attention=NAME).requires_grad_(False)
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            packed = bitsandbytes.nn.Linear4bit(
                module.in_features, module.out_features, bias=False, quant_type=kind, compute_dtype=torch.float32
            )
            packed.weight = bitsandbytes.nn.Params4bit(module.weight.data, requires_grad=False, quant_type=kind)
            packed.support_avx512bf16_for_cpu = False
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, packed.to("cpu"))
    model.is_loaded_in_4bit = True
    torch.manual_seed(3)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=LINEAR, init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(model, settings).train()


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_a_base_in_four_bits_is_read_as_bitsandbytes_reads_it(kind: str) -> None:
    model = quantized(kind)
    expected = step(model)
    said = kernels_on(model)
    assert said is not None
    assert "by PEFT" not in said
    assert_near(step(model), expected, 2e-4)


def test_sixteen_bits_are_near_and_come_back_in_the_types_of_peft() -> None:
    """Against PEFT in float32: not farther than PEFT in bfloat16 is, but for a margin."""
    exact = step(adapted(dtype=torch.float32))
    errors = []
    for fast in (False, True):
        model = adapted(dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if "lora_" not in name:
                parameter.data = parameter.data.bfloat16()
        if fast:
            kernels_on(model, bf16=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            _, gradients = step(model)
        assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
        errors.append(sum(float((g - exact[1][n]).norm() / exact[1][n].norm()) for n, g in gradients.items()))
    assert errors[1] <= 1.2 * errors[0]


def test_the_graph_keeps_less_than_that_of_peft() -> None:
    kept = []
    for fast in (False, True):
        model = adapted(dtype=torch.float32)
        if fast:
            kernels_on(model)
        with LiveBytes(known=model.state_dict().values()) as alive:
            loss = supervised_logits_loss(model, packed_batch((200, 100))).total
            kept.append(alive.now())
            loss.backward()
    assert kept[1] < 0.8 * kept[0], kept


def test_an_mlp_keeps_its_input_once_gate_and_up_and_nothing_else_of_that_size() -> None:
    model = adapted(dtype=torch.float32)
    kernels_on(model)
    mlp = model.get_base_model().model.layers[0].mlp
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(1, 500, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        mlp(x)
    factors = sum(p.numel() for n, p in mlp.named_parameters() if "lora_" in n) * 4
    assert x.untyped_storage().data_ptr() in saved
    assert sum(saved.values()) == 500 * (32 + 2 * 64) * 4 + factors


def test_what_waits_for_k_and_v_is_dropped_when_nobody_asks() -> None:
    """An attention that calls k_proj alone, or fails halfway, leaves nothing behind and computes what it asked for."""
    model = adapted()
    kernels_on(model)
    attention = model.get_base_model().model.layers[0].self_attn
    x = torch.randn(1, 5, 32, dtype=torch.float64)
    expected = attention.v_proj(x)
    results = []

    def forward(self: Any, x: torch.Tensor) -> None:
        self.q_proj(x)
        results.append(self.v_proj(x.clone()))
        raise ValueError("halfway")

    attention.forward = MethodType(forward, attention)
    with pytest.raises(ValueError, match="halfway"):
        attention(x)
    torch.testing.assert_close(results[0], expected)
    alive = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.grad_fn is not None]
    assert [t.shape for t in alive if t is not expected and t is not results[0] and t.shape == expected.shape] == []


def test_a_kernel_asked_for_where_none_can_be_is_an_error() -> None:
    model = adapted()
    for layer in model.get_base_model().model.layers:
        layer.mlp.act_fn = torch.nn.Tanh()
    with pytest.raises(ModelError, match=r"lora_mlp_kernel is true, and no layer can have it: its forward is not down"):
        kernels_on(model, lora_mlp_kernel=True)


def test_a_kernel_that_is_switched_off_leaves_its_layers_to_peft() -> None:
    model = adapted()
    said = kernels_on(model, lora_mlp_kernel=False, lora_qkv_kernel=False)
    assert said == "LoRA kernels: 2 x single projection"
    replaced = [name for name, module in model.named_modules() if "forward" in module.__dict__]
    assert [name.rsplit(".", 1)[1] for name in replaced] == ["o_proj", "o_proj"]


def test_dora_with_dropout_stays_with_peft_and_is_said() -> None:
    model = adapted(use_dora=True, lora_dropout=0.1)
    said = kernels_on(model)
    assert said is not None
    assert said.startswith("LoRA kernels: none; by PEFT: 2 x q+k+v: DoRA with dropout needs two products")
