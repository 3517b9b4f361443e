"""Lists made once say what walks through the model's tree say, and are gone when training is over."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import tiny_model
from tests.tiny_training import make_resolved, make_trainer, random_samples, write_prepared
from transformers import TrainerCallback

from whet.training.callbacks.listed_modules import Listed


def listed(model: torch.nn.Module) -> Any:
    """The model with its answers from lists."""
    lists = Listed(model)
    answering: Any = model
    answering.train, answering.zero_grad = lists.train, lists.zero_grad
    return answering


def test_every_module_is_in_training_mode_after_train_whatever_it_was_in() -> None:
    model = listed(tiny_model().train())
    model.model.layers[1].mlp.eval()
    assert model.train() is model
    assert all(module.training for module in model.modules())
    model.eval()
    assert not any(module.training for module in model.modules())


def test_no_gradient_is_left_after_zero_grad() -> None:
    model = listed(tiny_model())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.zero_grad(set_to_none=False)
    assert all(not parameter.grad.any() for parameter in model.parameters())
    model.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_copy_answers_for_itself() -> None:
    model = listed(tiny_model().eval())
    twin = copy.deepcopy(model)
    twin.train()
    assert twin.model.layers[0].training
    assert not model.model.layers[0].training


def test_a_step_of_training_walks_through_no_tree_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walks = []
    walk = torch.nn.Module.named_modules

    def counted(self: torch.nn.Module, memo: Any = None, prefix: str = "", *args: Any, **kwargs: Any) -> Any:
        if not prefix:
            walks.append(type(self).__name__)
        return walk(self, memo, prefix, *args, **kwargs)

    class Count(TrainerCallback):
        at_step: list[int] = []  # noqa: RUF012

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.at_step.append(len(walks))

    resolved = make_resolved(tmp_path / "out", max_steps=4, micro_batch_size=1, save_strategy="no")
    trainer = make_trainer(write_prepared(tmp_path / "set", random_samples(8)), resolved)
    trainer.add_callback(Count())
    monkeypatch.setattr(torch.nn.Module, "named_modules", counted)
    trainer.train()
    assert len(set(Count.at_step[1:])) == 1, walks[Count.at_step[1] :]
    assert not {"train", "zero_grad"} & vars(trainer.model).keys()
