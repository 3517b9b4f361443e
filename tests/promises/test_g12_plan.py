"""The plan of a run is what the run then does: steps, epochs, tokens, when it logs, saves and evaluates."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny_training import make_inputs, make_resolved, make_trainer, random_samples, write_prepared

from whet.core.errors import ConfigError
from whet.data.store import PreparedSet
from whet.methods.inputs import training_order
from whet.training.fit import fit
from whet.training.schedules import learning_rates, schedule_from
from whet.training.steps import Interval, StepPlan, plan_steps

PACKED = {"sequence_len": 64, "sample_packing": True, "micro_batch_size": 1, "gradient_accumulation_steps": 2}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    folder = tmp_path_factory.mktemp("steps") / "prepared"
    return write_prepared(folder, random_samples(23, seed=1), random_samples(3, seed=2))


def plan_of(prepared: PreparedSet, **keys: Any) -> StepPlan:
    resolved = make_resolved(Path("unused"), **{**PACKED, **keys})
    order = training_order(resolved, prepared.train)
    return plan_steps(resolved, order, prepared.train.supervised, has_validation=prepared.validation is not None)


@pytest.mark.parametrize(
    "keys",
    [
        {"num_epochs": 2.0},
        {"num_epochs": 1.4},
        {"max_steps": 5},
        {"num_epochs": 2.0, "saves_per_epoch": 2, "evals_per_epoch": 1},
        {"num_epochs": 2.0, "save_steps": 0.3, "eval_steps": 2, "eval_strategy": "steps"},
        {"num_epochs": 1.0, "sample_packing": False, "micro_batch_size": 3, "gradient_accumulation_steps": 3},
        {"max_steps": 3, "save_strategy": "no", "eval_strategy": "no"},
    ],
    ids=lambda keys: ",".join(f"{name}={value}" for name, value in keys.items()),
)
def test_the_run_does_what_was_planned(prepared: PreparedSet, tmp_path: Path, keys: dict[str, Any]) -> None:
    resolved = make_resolved(tmp_path, **{**PACKED, "logging_steps": 1, "save_total_limit": 0, **keys})
    inputs = make_inputs(prepared, resolved)
    plan = inputs.plan
    trainer = make_trainer(prepared, resolved)
    fit(trainer, resolved)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]

    assert trainer.state.global_step == plan.total_steps
    assert steps[-1]["epoch"] == pytest.approx(plan.num_epochs, abs=1 / inputs.order.num_rows)
    assert steps[-1]["tokens_seen"] == plan.tokens
    assert steps[-1]["supervised_tokens_seen"] == plan.supervised_tokens
    saved = [int(re.sub(r"\D", "", folder.name)) for folder in tmp_path.glob("checkpoint-*")]
    assert sorted(saved) == plan.save_steps
    assert [line["step"] for line in lines if line["kind"] == "eval"] == plan.eval_steps
    schedule = schedule_from(resolved.config, plan.total_steps, plan.warmup_steps)
    planned_rates = learning_rates(schedule, resolved.config.optimizer.learning_rate)
    assert [line["learning_rate"] for line in steps] == planned_rates


def test_without_a_word_it_saves_and_evaluates_every_epoch(prepared: PreparedSet) -> None:
    plan = plan_of(prepared, num_epochs=2.0)
    assert plan.saving == plan.evaluating == Interval("epoch")
    assert plan.save_steps == [plan.steps_per_epoch, 2 * plan.steps_per_epoch]


def test_without_a_validation_set_nothing_is_evaluated(tmp_path: Path) -> None:
    prepared = write_prepared(tmp_path / "prepared", random_samples(5))
    assert plan_of(prepared, eval_steps=2).evaluating == Interval("no")


def test_the_world_size_divides_the_steps(prepared: PreparedSet) -> None:
    """16 steps' worth of rows on one rank are 4 on four."""
    resolved = [make_resolved(Path("x"), world_size=n, micro_batch_size=1, sample_packing=False) for n in (1, 4)]
    plans = [
        plan_steps(run, training_order(run, prepared.train), prepared.train.supervised, has_validation=False)
        for run in resolved
    ]
    assert [plan.steps_per_epoch for plan in plans] == [23, 6]
    assert plans[0].tokens == plans[1].tokens == int(np.sum(prepared.train.lengths))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"load_best_model_at_end": True, "save_steps": 3, "eval_steps": 2},
            "checkpoints every 3 steps are not all evaluated every 2 steps -> make save_steps a multiple of eval_steps",
        ),
        (
            {"load_best_model_at_end": True, "save_strategy": "epoch", "eval_steps": 2},
            "saving is by 'epoch' and evaluating by 'steps'",
        ),
        (
            {"early_stopping_patience": 2, "eval_strategy": "no"},
            "early stopping needs evaluations, and this run has none -> set val_set_size or test_datasets",
        ),
    ],
)
def test_intervals_that_contradict_are_refused(prepared: PreparedSet, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan_of(prepared, **keys)
