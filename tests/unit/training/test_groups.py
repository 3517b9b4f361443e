"""Which parameter gets which learning rate and weight decay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.models import tiny_model
from tests.tiny_training import make_config

from whet.core.errors import ConfigError
from whet.training.optimizers.groups import parameter_groups


def rates_and_decays(model: torch.nn.Module, **keys: Any) -> dict[str, tuple[float, float]]:
    """Parameter name -> (learning rate, weight decay)."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, make_config(learning_rate=1.0, weight_decay=0.1, **keys))
    found = [(names[id(p)], (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]]
    assert len(found) == len(dict(found)), "a parameter stands in two groups"
    return dict(found)


def lora_model() -> Any:
    return get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"], use_dora=False))


def test_norms_and_biases_are_not_decayed() -> None:
    found = rates_and_decays(tiny_model("gpt2"))
    undecayed = {name for name, (_, decay) in found.items() if decay == 0.0}
    assert undecayed == {name for name in found if name.endswith("bias") or "ln_" in name}
    assert len(undecayed) > 4


def test_every_trainable_parameter_stands_in_one_group_and_no_frozen_one() -> None:
    model = lora_model()
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert rates_and_decays(model).keys() == trainable


def test_lora_plus_trains_b_faster() -> None:
    found = rates_and_decays(lora_model(), adapter="lora", loraplus_lr_ratio=16.0)
    assert {rate for name, (rate, _) in found.items() if "lora_A" in name} == {1.0}
    assert {rate for name, (rate, _) in found.items() if "lora_B" in name} == {16.0}
    assert {rate for name, (rate, _) in found.items() if "lora_embedding" in name} == {1e-6}


@pytest.mark.parametrize(("keys", "rate"), [({"embedding_lr": 0.5}, 0.5), ({"embedding_lr_scale": 0.25}, 0.25)])
def test_embeddings_and_the_head_may_have_their_own_rate(keys: dict[str, float], rate: float) -> None:
    found = rates_and_decays(tiny_model(tie_word_embeddings=False), **keys)
    assert {name for name, (found_rate, _) in found.items() if found_rate == rate} == {
        "model.embed_tokens.weight",
        "lm_head.weight",
    }


def test_a_named_group_decides_over_everything_else() -> None:
    group = {"name": "values", "modules": ("v_proj", "embed_tokens"), "lr": 0.125}
    found = rates_and_decays(tiny_model(), embedding_lr=0.5, lr_groups=(group,))
    assert {rate for name, (rate, _) in found.items() if "v_proj" in name or "embed" in name} == {0.125}
    assert found["model.layers.0.self_attn.q_proj.weight"] == (1.0, 0.1)


def test_a_group_that_matches_nothing_is_an_error() -> None:
    group = {"name": "values", "modules": ("vproj",), "lr": 0.125}
    with pytest.raises(ConfigError, match="the modules vproj of group 'values' match no trainable parameter"):
        rates_and_decays(tiny_model(), lr_groups=(group,))


def test_a_model_with_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no parameter is trainable -> look at unfrozen_parameters"):
        rates_and_decays(tiny_model().requires_grad_(False))
