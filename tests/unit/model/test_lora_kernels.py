"""The LoRA kernels give what PEFT's own forward gives, values and gradients, and keep less."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.models import packed_batch, tiny_model
from tests.tiny_training import make_config

from whet.config.resolve import resolve
from whet.core.types import Hardware
from whet.model.attention import NAME
from whet.model.kernels.install_lora import install
from whet.model.loss import supervised_logits_loss

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
