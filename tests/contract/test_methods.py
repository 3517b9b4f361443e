"""Every method of the table builds a trainer that trains, and the seams it stands on are where they were."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.models import tiny_model
from tests.tiny_training import make_inputs, make_resolved, random_samples, write_preferences, write_prepared
from transformers import Trainer, TrainingArguments

from whet.config import names
from whet.methods import METHODS
from whet.model.attention import NAME
from whet.training.fit import fit


def test_the_config_knows_the_methods() -> None:
    assert {"sft", *names.METHODS} == set(METHODS.names())


@pytest.mark.parametrize("name", METHODS.names())
def test_the_method_trains(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "prepared"
    prepared = write_prepared(folder, random_samples(4)) if name == "sft" else write_preferences(folder, 4)
    keys = {} if name == "sft" else {"rl": name}
    resolved = make_resolved(tmp_path / "out", max_steps=2, warmup_steps=0, **keys)
    model = tiny_model(attention=NAME)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    trainer = METHODS.load(resolved.method)(make_inputs(prepared, resolved, model))
    result = fit(trainer, resolved)
    assert result.steps == 2
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert (tmp_path / "out" / "metrics.jsonl").exists()
    assert (tmp_path / "out" / "checkpoint-2" / "whet-checkpoint.json").exists()


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("get_train_dataloader", []),
        ("get_batch_samples", ["epoch_iterator", "num_batches", "device"]),
        ("compute_loss", ["model", "inputs", "return_outputs", "num_items_in_batch"]),
        ("evaluate", ["eval_dataset", "ignore_keys", "metric_key_prefix"]),
        ("create_optimizer", ["model"]),
        ("create_scheduler", ["num_training_steps", "optimizer"]),
        ("log", ["logs", "start_time"]),
        ("floating_point_ops", ["inputs"]),
    ],
)
def test_transformers_calls_what_we_override(method: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(Trainer, method)).parameters)[1:] == parameters


def test_trl_prepares_data_where_we_skip_it() -> None:
    from trl import DPOTrainer

    from whet.methods.trl_bridge import COLUMNS

    assert list(inspect.signature(DPOTrainer._prepare_dataset).parameters)[1] == "dataset"
    source = inspect.getsource(DPOTrainer._set_signature_columns_if_needed)
    assert all(f'"{column}"' in source for column in COLUMNS)


def test_the_dataclass_of_arguments_has_no_unknown_name(tmp_path: Path) -> None:
    """Every argument that we pass exists in this version of transformers, and says what we mean."""
    from whet.training.arguments import argument_values

    prepared = write_prepared(tmp_path / "prepared", random_samples(4))
    resolved = make_resolved(tmp_path / "out", gradient_checkpointing=True)
    plan = make_inputs(prepared, resolved).plan
    args = TrainingArguments(**argument_values(resolved, plan))
    assert args.gradient_checkpointing is False, "a lever has done it, and knows of which layers"
    preferences = TrainingArguments(**argument_values(replace(resolved, method="dpo"), plan))
    assert preferences.gradient_checkpointing is True
    assert preferences.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert args.device.type == "cpu"
    assert args.disable_tqdm is True
    assert args.report_to == []
