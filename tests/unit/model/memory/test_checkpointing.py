"""Checkpointing changes what is kept, never what comes out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.levers import Outcome, assert_same, model_with, resolved_with, under

from whet.core.errors import ModelError
from whet.model.levers import install_levers
from whet.model.memory.layers import repeated_layers

CHECKPOINTED = {"gradient_checkpointing": True}
LEVERS: dict[str, dict[str, Any]] = {
    "full": CHECKPOINTED,
    "reentrant": {**CHECKPOINTED, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "every second": {**CHECKPOINTED, "gradient_checkpointing_every": 2},
    "attention": {**CHECKPOINTED, "selective_checkpointing": True},
    "products": {**CHECKPOINTED, "selective_checkpointing": {"save": ("attention", "matmul")}},
}


def run(lever: dict[str, Any], lora: bool, architecture: str = "llama") -> Outcome:
    return under(lever, model_with(lora, architecture, dropout=0.1 if lora else 0.0))


@pytest.fixture(scope="module")
def plain() -> dict[bool, Outcome]:
    return {lora: run({}, lora) for lora in (False, True)}


@pytest.mark.parametrize("lever", LEVERS)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_gradients_are_those_without_it(plain: dict[bool, Outcome], lever: str, lora: bool) -> None:
    outcome = run(LEVERS[lever], lora) if not (lora and lever == "products") else run(LEVERS["attention"], lora)
    assert_same(outcome, plain[lora])


def test_what_is_kept_is_ordered_as_what_is_computed_again(plain: dict[bool, Outcome]) -> None:
    saved = {name: run(lever, False).saved for name, lever in LEVERS.items()} | {"none": plain[False].saved}
    assert saved["full"] < saved["attention"] < saved["products"] < saved["none"]
    assert saved["full"] < saved["every second"] < saved["none"]
    assert saved["full"] < 0.3 * saved["none"]


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3", "phi3"])
def test_selection_suits_other_architectures(architecture: str) -> None:
    """Gemma's layers of sliding attention keep nothing, the others do."""
    size = {"layer_types": ["sliding_attention", "full_attention"] * 2} if architecture == "gemma3" else {}
    outcomes = [
        under(lever, model_with(False, architecture, **size)) for lever in ({}, CHECKPOINTED, LEVERS["attention"])
    ]
    assert_same(outcomes[0], outcomes[2])
    assert outcomes[1].saved < outcomes[2].saved < outcomes[0].saved


def test_layers_of_a_type_that_is_recomputed_keep_nothing() -> None:
    model = model_with(False, "mistral")
    assert model.config.sliding_window
    resolved = resolved_with(**CHECKPOINTED, selective_checkpointing={"recompute_layer_types": ("full_attention",)})
    with pytest.raises(ModelError, match="no layer of MistralForCausalLM is left to keep anything of"):
        install_levers(model, resolved.config, resolved)


def test_every_third_layer_is_said_and_done() -> None:
    model, resolved = model_with(), resolved_with(**CHECKPOINTED, gradient_checkpointing_every=3)
    said = install_levers(model, resolved.config, resolved)
    assert "gradient_checkpointing: 2 of 4 layers are computed again, the others keep their activations" in said
    assert [layer.gradient_checkpointing for layer in repeated_layers(model)] == [True, False, False, True]


def test_frozen_embeddings_get_no_gradient_for_nothing() -> None:
    """Only a reentrant checkpoint needs inputs that require one."""
    for reentrant in (False, True):
        model = model_with(lora=True)
        under({**CHECKPOINTED, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}, model)
        embedded = model.get_input_embeddings()(torch.tensor([[1]]))
        assert embedded.requires_grad is reentrant


def test_an_operator_that_is_none_is_refused() -> None:
    resolved = resolved_with(**CHECKPOINTED, selective_checkpointing={"save": ("aten.matmull",)})
    with pytest.raises(ModelError, match=r"'aten\.matmull' is no operator of torch"):
        install_levers(model_with(), resolved.config, resolved)
