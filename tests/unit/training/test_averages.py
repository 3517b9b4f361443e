"""Schedule-free optimizers: what is evaluated, saved and left at the end is the average, not what is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import tiny_model
from tests.tiny_training import make_resolved, make_trainer, random_samples, write_prepared
from torch.nn.utils import parameters_to_vector
from transformers import AutoModelForCausalLM

from whet.data.store import PreparedSet
from whet.model.attention import NAME
from whet.training.fit import fit

KEYS: dict[str, Any] = {
    "optimizer": "schedule_free_adamw",
    "learning_rate": 1e-2,
    "lr_scheduler": "constant",
    "warmup_steps": 2,
    "micro_batch_size": 4,
    "max_steps": 7,
    "save_steps": 4,
    "eval_steps": 4,
    "logging_steps": 1,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    folder = tmp_path_factory.mktemp("averages") / "prepared"
    return write_prepared(folder, random_samples(8, seed=4), random_samples(3, seed=5))


def test_the_average_is_what_is_evaluated_and_saved(prepared: PreparedSet, tmp_path: Path) -> None:
    resolved = make_resolved(tmp_path / "run", **KEYS)
    trainer = make_trainer(prepared, resolved, tiny_model(attention=NAME))
    fit(trainer, resolved)
    told = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    assert set(told) == {4, 7}

    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-4", attn_implementation=NAME)
    other = make_trainer(prepared, make_resolved(tmp_path / "other", **KEYS), saved)
    assert other.evaluate()["eval_loss"] == pytest.approx(told[4], rel=1e-6)

    left = parameters_to_vector(trainer.model.parameters()).detach().clone()
    last = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-7")
    assert torch.equal(left, parameters_to_vector(last.parameters()))
    trainer.optimizer.train()
    assert not torch.equal(left, parameters_to_vector(trainer.model.parameters())), "what is trained is another set"


def test_a_run_without_checkpoints_ends_with_the_average_too(prepared: PreparedSet, tmp_path: Path) -> None:
    keys = {**KEYS, "save_strategy": "no", "eval_strategy": "no", "save_steps": None, "eval_steps": None}
    resolved = make_resolved(tmp_path, **keys)
    trainer = make_trainer(prepared, resolved, tiny_model(attention=NAME))
    fit(trainer, resolved)
    assert not trainer.optimizer.optimizer.param_groups[0]["train_mode"]


def test_a_resumed_run_ends_with_the_same_average(prepared: PreparedSet, tmp_path: Path) -> None:
    ends = []
    for resume_from in (None, tmp_path / "checkpoint-4"):
        resolved = make_resolved(tmp_path, **KEYS)
        trainer = make_trainer(prepared, resolved, tiny_model(attention=NAME))
        fit(trainer, resolved, resume_from)
        ends.append(parameters_to_vector(trainer.model.parameters()).detach().clone())
    assert torch.equal(*ends)
