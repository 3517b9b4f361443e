"""`rl: dpo`: TRL's trainer on rows that our data stage has tokenised."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from tests.models import tiny_model
from tests.tiny_training import make_inputs, make_resolved, write_preferences
from trl import DPOTrainer

from whet.core.errors import ConfigError
from whet.data.store import PreparedSet
from whet.methods.dpo import build_trainer
from whet.methods.trl_bridge import COLUMNS, as_dataset
from whet.model.attention import NAME
from whet.model.patches import without_gathering
from whet.training.fit import fit

KEYS: dict[str, Any] = {
    "rl": "dpo",
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_epochs": 2.0,
    "logging_steps": 1,
    "learning_rate": 5e-3,
    "warmup_steps": 0,
}
LORA: dict[str, Any] = {"adapter": "lora", "lora_target_modules": ("q_proj", "v_proj")}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return write_preferences(tmp_path_factory.mktemp("dpo") / "prepared", 8, num_validation=3)


def lora_model() -> Any:
    return get_peft_model(
        tiny_model(attention=NAME), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )


def run(prepared: PreparedSet, output_dir: Path, model: Any, **keys: Any) -> tuple[Any, list[dict[str, Any]]]:
    """A finished run's trainer and the lines of its metrics.jsonl."""
    resolved = make_resolved(output_dir, **{**KEYS, **keys})
    trainer = build_trainer(make_inputs(prepared, resolved, model))
    fit(trainer, resolved)
    return trainer, [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def test_trl_is_given_the_ids_of_our_data_stage(prepared: PreparedSet) -> None:
    dataset = as_dataset(prepared.train)
    assert tuple(dataset.column_names) == COLUMNS
    for index, row in enumerate(dataset):
        assert [row[name] for name in COLUMNS] == [ids.tolist() for ids in prepared.train.pair(index)]


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_training_prefers_the_chosen_answers(prepared: PreparedSet, tmp_path: Path, kind: str) -> None:
    model, keys = (lora_model(), LORA) if kind == "lora" else (tiny_model(attention=NAME), {})
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer, lines = run(prepared, tmp_path, model, **keys)
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    # Before the first update model and reference are one, so no answer has an advantage: the loss is log 2 (eq. 7).
    assert steps[0]["loss"] == pytest.approx(math.log(2), rel=1e-4)
    assert steps[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert steps[-1]["rewards/margins"] > 0.01
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[0]["tokens_per_second"] > steps[0]["supervised_tokens_per_second"] > 0
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_the_evaluation_reports_rewards(prepared: PreparedSet, tmp_path: Path) -> None:
    _, lines = run(prepared, tmp_path, lora_model(), evals_per_epoch=1, **LORA)
    evaluations = [line for line in lines if line["kind"] == "eval"]
    assert [line["step"] for line in evaluations] == [2, 4]
    assert {"eval_loss", "eval_rewards/margins"} <= evaluations[0].keys()


def test_a_fresh_adapter_needs_no_copy_of_itself(prepared: PreparedSet, tmp_path: Path) -> None:
    trainer, _ = run(prepared, tmp_path, lora_model(), **LORA)
    assert set(trainer.model.peft_config) == {"default"}
    assert not (tmp_path / "checkpoint-4" / "ref").exists()


def test_an_adapter_that_starts_as_something_keeps_its_reference(prepared: PreparedSet, tmp_path: Path) -> None:
    """One that is random from the start changes the model before the first step: switched off it is no reference."""
    model = lora_model()
    torch.nn.init.normal_(model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight)
    _, lines = run(prepared, tmp_path, model, peft_init_lora_weights=False, **LORA)
    assert lines[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)


def test_precomputed_references_give_the_same_losses(prepared: PreparedSet, tmp_path: Path) -> None:
    _, kept = run(prepared, tmp_path / "kept", tiny_model(attention=NAME))
    _, precomputed = run(prepared, tmp_path / "pre", tiny_model(attention=NAME), precompute_ref_log_probs=True)
    losses = [[line["loss"] for line in lines if line["kind"] == "train"] for lines in (kept, precomputed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_several_losses_are_added_up_by_weight(prepared: PreparedSet, tmp_path: Path) -> None:
    keys = {"dpo_loss_type": ("sigmoid", "hinge"), "dpo_loss_weights": (1.0, 0.5), "rl_beta": 0.2}
    _, lines = run(prepared, tmp_path, tiny_model(attention=NAME), **keys)
    assert lines[0]["loss"] == pytest.approx(math.log(2) + 0.5, rel=1e-4)  # the hinge of no advantage is 1


def test_what_trl_refuses_is_an_error_of_the_config(prepared: PreparedSet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"TRL refuses these settings: Label smoothing must be greater than 0\.0"):
        run(prepared, tmp_path, tiny_model(attention=NAME), dpo_loss_type=("exo_pair",))


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_resuming_equals_no_interruption(prepared: PreparedSet, tmp_path: Path, kind: str) -> None:
    def run_from(checkpoint: Path | None) -> torch.Tensor:
        torch.manual_seed(3)
        model, keys = (lora_model(), LORA) if kind == "lora" else (tiny_model(attention=NAME), {})
        resolved = make_resolved(tmp_path, **{**KEYS, **keys, "save_strategy": "steps", "save_steps": 3})
        trainer = build_trainer(make_inputs(prepared, resolved, model))
        fit(trainer, resolved, checkpoint)
        return torch.nn.utils.parameters_to_vector(trainer.model.parameters()).detach()

    assert torch.equal(run_from(None), run_from(tmp_path / "checkpoint-3"))


def test_nothing_is_gathered_within_the_patch_alone() -> None:
    accelerator, ours = Accelerator(cpu=True), torch.ones(2)
    with without_gathering(accelerator):
        assert accelerator.gather(ours) is ours
        assert accelerator.gather_for_metrics(ours, use_gather_object=False) is ours
    assert not {"gather", "gather_for_metrics"} & vars(accelerator).keys()


def test_trl_takes_means_over_ranks_as_if_all_had_as_many_pairs() -> None:
    """The patch may go when it does not."""
    source = inspect.getsource(DPOTrainer._compute_loss)
    assert "self.accelerator.gather(chosen_logps).mean()" in source
