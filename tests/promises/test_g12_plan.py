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
        {"max_steps": 9, "jagged_restart_steps": 4, "jagged_restart_warmup_steps": 1, "jagged_restart_anneal_steps": 2},
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


ROWS = ({"path": "chat.jsonl", "type": "completion"}, {"path": "code.jsonl", "type": "completion"})


@pytest.mark.parametrize(
    "keys",
    [
        {"datasets": ({**ROWS[0], "weight": 3.0}, {**ROWS[1], "weight": 1.0})},
        {"datasets": ({**ROWS[0], "epochs": 0.4}, {**ROWS[1], "epochs": 2.5}), "num_epochs": 3.4},
        {"datasets": ROWS, "mixing_temperature": 3.0, "sample_packing": False, "max_steps": 7},
        {"datasets": ROWS, "order": "sequential", "sample_packing_sequentially": True, "num_epochs": 1.5},
        {
            "datasets": ROWS,
            "sample_packing_balance": True,
            "phases": (
                {"share": 0.3, "weights": {"chat": 9.0, "code": 1.0}},
                {"share": 0.7, "weights": {"code": 1.0}},
            ),
        },
    ],
    ids=["weights", "epochs", "temperature", "sequential", "phases"],
)
def test_a_mixed_run_does_what_was_planned(tmp_path: Path, keys: dict[str, Any]) -> None:
    """Steps, tokens, and of each dataset the share and how often its rows are seen."""
    sources = [0] * 26 + [1] * 14
    samples = random_samples(40, seed=5)
    prepared = write_prepared(tmp_path / "prepared", samples, sources=sources, names=("chat", "code"))
    keys = {"num_epochs": 2.0, "logging_steps": 1, "save_strategy": "no", **keys}
    resolved = make_resolved(tmp_path / "out", **{**PACKED, **keys})
    inputs = make_inputs(prepared, resolved)
    trainer = make_trainer(prepared, resolved)
    seen, given = np.zeros(40, dtype=int), trainer.get_batch_samples

    def watched(*arguments: Any) -> Any:
        batches, count = given(*arguments)
        for batch in batches:
            np.add.at(seen, batch["example_ids"].numpy(), 1)
        return batches, count

    trainer.get_batch_samples = watched
    fit(trainer, resolved)
    plan, lengths = inputs.plan, prepared.train.lengths
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "train"][-1]
    assert trainer.state.global_step == last["step"] == plan.total_steps
    assert last["tokens_seen"] == plan.tokens == int(seen @ lengths)
    assert last["supervised_tokens_seen"] == plan.supervised_tokens
    tokens = np.bincount(sources, weights=seen * lengths)
    assert [share.realised for share in plan.shares] == pytest.approx((tokens / tokens.sum()).tolist())
    assert [share.times_seen for share in plan.shares] == pytest.approx([seen[:26].mean(), seen[26:].mean()])


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
