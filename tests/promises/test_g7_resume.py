"""G7 resume: a run that was stopped and resumed is bit for bit the run that was not.

On a CPU, after any step: mid-epoch, at its end, packed, with accumulation, with dropout, with a scheduler in motion.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import tiny_model
from tests.tiny_training import make_resolved, make_trainer, random_samples, write_prepared
from torch.nn.utils import parameters_to_vector
from transformers import TrainerCallback

from whet.data.store import PreparedSet
from whet.model.attention import NAME
from whet.training.callbacks.interrupt import TrainingInterrupted
from whet.training.checkpoint import checkpoint_to_resume
from whet.training.fit import fit

KEYS: dict[str, Any] = {
    "sequence_len": 64,
    "sample_packing": True,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "num_epochs": 3.0,
    "warmup_steps": 2,
    "weight_decay": 0.1,
    "logging_steps": 1,
    "save_strategy": "no",
}


class StopAfter(TrainerCallback):
    """Sends this process the terminal's Ctrl-C in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            import signal

            signal.raise_signal(signal.SIGINT)


def build(prepared: PreparedSet, output_dir: Path, **keys: Any) -> Any:
    """A trainer of a model with dropout, so that the random state matters too."""
    resolved = make_resolved(output_dir, **{**KEYS, **keys})
    return make_trainer(prepared, resolved, tiny_model(attention=NAME, attention_dropout=0.1)), resolved


def outcome(trainer: Any, output_dir: Path) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """The final weights, and what metrics.jsonl says of the steps, times left out."""
    names = (
        "step",
        "loss",
        "grad_norm",
        "learning_rate",
        "epoch",
        "eval_loss",
        "tokens_seen",
        "supervised_tokens_seen",
    )
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    told = [{name: line[name] for name in names if name in line} for line in lines if line["kind"] != "summary"]
    return parameters_to_vector(trainer.model.parameters()).detach(), told


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    samples = random_samples(30, seed=7)
    return write_prepared(tmp_path_factory.mktemp("g7") / "prepared", samples, random_samples(4, seed=8))


@pytest.fixture(scope="module")
def uninterrupted(prepared: PreparedSet, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("uninterrupted")
    trainer, resolved = build(prepared, folder)
    fit(trainer, resolved)
    return outcome(trainer, folder)


@pytest.mark.parametrize("step", [1, 3, 4, 7])
def test_resuming_equals_no_interruption(prepared: PreparedSet, uninterrupted: Any, tmp_path: Path, step: int) -> None:
    trainer, resolved = build(prepared, tmp_path)
    steps_per_epoch = trainer.train_samples.order.steps_per_epoch(2)
    assert steps_per_epoch == 4, "steps 1, 3 and 7 shall be mid-epoch and 4 an epoch's end"
    trainer.add_callback(StopAfter(step))
    with pytest.raises(TrainingInterrupted, match=rf"step {step}: stopped by Ctrl-C; .*checkpoint-{step} is saved"):
        fit(trainer, resolved)

    torch.manual_seed(12345)  # a new process has another random state
    resumed, resolved = build(prepared, tmp_path)
    checkpoint, passed_over = checkpoint_to_resume(True, str(tmp_path), "resume_from_checkpoint")
    assert checkpoint == tmp_path / f"checkpoint-{step}"
    assert not passed_over
    fit(resumed, resolved, checkpoint)

    weights, told = outcome(resumed, tmp_path)
    assert torch.equal(weights, uninterrupted[0])
    assert told == uninterrupted[1]


def test_resuming_twice_from_a_scheduled_checkpoint(prepared: PreparedSet, uninterrupted: Any, tmp_path: Path) -> None:
    """Not only from the checkpoint of an interruption, and not only once."""
    trainer, resolved = build(prepared, tmp_path, save_strategy="steps", save_steps=2)
    trainer.add_callback(StopAfter(5))
    with pytest.raises(TrainingInterrupted):
        fit(trainer, resolved)
    for stop in (9, None):
        resumed, resolved = build(prepared, tmp_path, save_strategy="steps", save_steps=2)
        if stop is not None:
            resumed.add_callback(StopAfter(stop))
            with pytest.raises(TrainingInterrupted):
                fit(resumed, resolved, tmp_path / "checkpoint-4")
        else:
            fit(resumed, resolved, tmp_path / "checkpoint-8")
    weights, told = outcome(resumed, tmp_path)
    assert torch.equal(weights, uninterrupted[0])
    assert told == uninterrupted[1]
