"""Building an optimizer from a config: arguments reach it, and a wrong one is an error that names the right ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import tiny_model
from tests.tiny_training import make_config
from transformers import TrainingArguments

from whet.core.errors import ConfigError
from whet.training.optimizers import build_optimizer, unavailable


def build(tmp_path: Path, optimizer: str, **keys: Any) -> Any:
    config = make_config(optimizer=optimizer, **keys)
    args = TrainingArguments(output_dir=str(tmp_path), optim=optimizer, learning_rate=1e-2, use_cpu=True)
    return build_optimizer(tiny_model(hidden_size=64), config, args)


@pytest.mark.parametrize(
    ("optimizer", "arguments"),
    [
        ("sgd", {"momentum": 0.9, "nesterov": True}),
        ("adamw_torch", {"amsgrad": True}),
        ("adafactor", {"clip_threshold": 0.5}),
        ("rmsprop", {"alpha": 0.95, "centered": True}),
        ("rmsprop_bnb_8bit", {"alpha": 0.95}),
    ],
)
def test_optim_args_reach_the_optimizer(tmp_path: Path, optimizer: str, arguments: dict[str, Any]) -> None:
    built = build(tmp_path, optimizer, optim_args=arguments)
    assert {name: built.defaults.get(name, built.param_groups[0].get(name)) for name in arguments} == arguments or all(
        value in (built.defaults.get("betas") or ()) for value in arguments.values()
    )


def test_adam_keys_reach_the_optimizer(tmp_path: Path) -> None:
    config = make_config(optimizer="adamw_torch_fused", adam_beta2=0.95)
    args = TrainingArguments(output_dir=str(tmp_path), optim="adamw_torch_fused", adam_beta2=0.95, use_cpu=True)
    built = build_optimizer(tiny_model(), config, args)
    assert built.defaults["betas"] == (0.9, 0.95)
    assert built.defaults["fused"]


def test_an_argument_the_optimizer_does_not_know_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'momentun' is no argument of SGD -> did you mean 'momentum'\?"):
        build(tmp_path, "sgd", optim_args={"momentun": 0.9})


def test_a_value_the_optimizer_refuses_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SGD refuses its arguments: Nesterov momentum requires a momentum"):
        build(tmp_path, "sgd", optim_args={"nesterov": True})


def test_8_bit_optimizers_keep_embeddings_in_32_bits(tmp_path: Path) -> None:
    model = tiny_model(hidden_size=64)
    args = TrainingArguments(output_dir=str(tmp_path), optim="adamw_8bit", use_cpu=True)
    optimizer = build_optimizer(model, make_config(optimizer="adamw_8bit"), args)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    dtypes = {name: optimizer.state[parameter]["state1"].dtype for name, parameter in model.named_parameters()}
    assert dtypes["model.embed_tokens.weight"] == torch.float32
    assert dtypes["model.layers.0.mlp.up_proj.weight"] == torch.uint8


def test_what_cannot_be_used_here_says_why() -> None:
    assert unavailable("adamw_torch", "mps") is None
    assert unavailable("adamw_8bit", "mps") == "bitsandbytes has no optimizer for MPS"
