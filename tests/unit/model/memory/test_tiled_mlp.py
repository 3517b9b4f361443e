"""An MLP in shards is the MLP."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.levers import model_with, resolved_with, under

from whet.core.errors import ModelError
from whet.model.levers import install_levers
from whet.model.memory.tiled_mlp import shard, works_token_by_token

TILED = {"tiled_mlp": True, "tiled_mlp_num_shards": 5}
WIDE = {"hidden_size": 32, "intermediate_size": 512}


def assert_near(one: Any, other: Any) -> None:
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-6, atol=0)
    assert one.gradients.keys() == other.gradients.keys()
    for name, gradient in one.gradients.items():
        largest = float(other.gradients[name].abs().max())
        torch.testing.assert_close(gradient, other.gradients[name], rtol=0, atol=2e-6 * largest, msg=name)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("more", [{}, {"gradient_checkpointing": True}], ids=["alone", "in checkpoints"])
def test_gradients_are_those_without_it(lora: bool, more: dict[str, Any]) -> None:
    """Products of a part of the row are rounded in another order, so not to the bit."""
    assert_near(under({**TILED, **more}, model_with(lora)), under({}, model_with(lora)))


def test_it_keeps_the_input_alone_and_computes_a_part_at_a_time() -> None:
    """Of the model's own MLP."""
    own = {"liger_glu_activation": False}
    plain, tiled = under(own, model_with(**WIDE)), under({**own, **TILED}, model_with(**WIDE))
    assert tiled.saved < 0.4 * plain.saved
    checkpointed = under({**own, "gradient_checkpointing": True}, model_with(**WIDE))
    both = under({**own, "gradient_checkpointing": True, **TILED}, model_with(**WIDE))
    assert both.saved == checkpointed.saved
    gradients = sum(gradient.nbytes for gradient in both.gradients.values())
    assert both.peak - gradients < 0.5 * (checkpointed.peak - gradients)


def test_an_instance_forward_that_was_there_before_is_kept() -> None:
    """As of a kernel that has replaced it."""
    mlp = model_with().model.layers[0].mlp
    own, calls = mlp.forward, []

    def replaced(x: torch.Tensor) -> torch.Tensor:
        calls.append(x.shape[1])
        return own(x)

    mlp.forward = replaced
    shard(mlp, 3, 32)
    x = torch.randn(1, 10, 32, requires_grad=True)
    mlp(x).sum().backward()
    assert sorted(calls) == [2, 2, 4, 4, 4, 4], "each part forward, and again backward"


def test_the_number_of_shards_follows_the_row() -> None:
    mlp = model_with().model.layers[0].mlp
    own, calls = mlp.forward, []
    mlp.forward = lambda x: (calls.append(x.shape[1]), own(x))[1]
    shard(mlp, None, 32)
    for tokens in (32, 33, 96):
        mlp(torch.randn(1, tokens, 32))
    assert calls == [32, 17, 16, 32, 32, 32]


def test_a_copy_of_the_model_runs_on_its_own_weights() -> None:
    """As DPO's reference is one; under the shards are the forwards of other levers."""
    model, resolved = model_with(), resolved_with(**TILED)
    install_levers(model, resolved.config, resolved)
    ids = torch.arange(9)[None]
    twin, before = copy.deepcopy(model), model(input_ids=ids).logits.detach()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.zero_()
    torch.testing.assert_close(twin(input_ids=ids).logits, before)
    assert not torch.allclose(model(input_ids=ids).logits, before)


class Shifting(torch.nn.Module):
    """Each token meets the one before."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.linear, self.other = torch.nn.Linear(size, size), torch.nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + x.roll(1, dims=1)


def test_one_layer_where_tokens_meet_is_enough_to_refuse() -> None:
    model, resolved = model_with(), resolved_with(**TILED)
    model.model.layers[2].mlp = Shifting(model.config.hidden_size)
    with pytest.raises(ModelError, match="Shifting of LlamaForCausalLM does not work token by token"):
        install_levers(model, resolved.config, resolved)


def test_where_tokens_meet_it_is_refused() -> None:
    assert not works_token_by_token(Shifting(), 8)
    model, resolved = model_with(), resolved_with(**TILED)
    for layer in model.model.layers:
        layer.mlp.gate = torch.nn.Linear(8, 8)
    with pytest.raises(ModelError, match="no layer of LlamaForCausalLM has an MLP that works token by token"):
        install_levers(model, resolved.config, resolved)
