"""Every optimizer and scheduler of the tables trains; the config knows exactly these names."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import tiny_model
from tests.tiny_training import make_config, make_resolved, make_trainer, random_samples, write_prepared

from whet.config import names
from whet.data.store import PreparedSet
from whet.training.fit import fit
from whet.training.optimizers import OPTIMIZERS, needs_bitsandbytes, unavailable
from whet.training.schedules import FOLLOW_EVALUATIONS, SCHEDULERS, learning_rates, schedule_from

SCHEDULER_ARGUMENTS: dict[str, dict[str, Any]] = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 4},
}
"""Arguments without which transformers' scheduler cannot be built."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    folder = tmp_path_factory.mktemp("optimizers") / "prepared"
    return write_prepared(folder, random_samples(8, seed=4), random_samples(2, seed=5))


def test_the_config_knows_the_optimizers() -> None:
    assert set(names.OPTIMIZERS) == set(OPTIMIZERS.names())
    assert set(names.SCHEDULERS) == set(SCHEDULERS.names())


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_the_optimizer_trains_and_resumes(prepared: PreparedSet, tmp_path: Path, name: str) -> None:
    """The loss falls, every state is finite, and a resumed run ends with the same weights."""
    reason = unavailable(name, "cpu")
    if reason is not None:
        pytest.skip(reason)
    rates = {"sgd": 0.3, "adagrad": 0.05, "adafactor": 0.02}
    keys: dict[str, Any] = {
        "optimizer": name,
        "learning_rate": rates.get(name, 3e-3),
        "micro_batch_size": 4,
        "num_epochs": 6.0,
        "save_steps": 6,
        "eval_strategy": "no",
        "logging_steps": 1,
        "warmup_steps": 0,
        "lr_scheduler": "constant",
    }

    def run(resume_from: Path | None = None) -> tuple[torch.Tensor, list[float]]:
        resolved = make_resolved(tmp_path, **keys)
        trainer = make_trainer(prepared, resolved, tiny_model(attention="whet_documents", hidden_size=64))
        fit(trainer, resolved, resume_from)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return torch.nn.utils.parameters_to_vector(trainer.model.parameters()).detach(), losses

    with warnings.catch_warnings():
        if needs_bitsandbytes(name):
            warnings.simplefilter("ignore")  # of bitsandbytes, about what it cannot do on a CPU
        weights, losses = run()
        again, _ = run(tmp_path / "checkpoint-6")
    assert losses[-1] < losses[0] - 0.05
    assert torch.isfinite(weights).all()
    assert torch.equal(weights, again)


@pytest.mark.parametrize("name", SCHEDULERS.names())
def test_the_scheduler_warms_up_and_stays_in_bounds(name: str) -> None:
    if name in FOLLOW_EVALUATIONS:
        pytest.skip("its rates follow evaluations")
    config = make_config(lr_scheduler=name, lr_scheduler_kwargs=SCHEDULER_ARGUMENTS.get(name), learning_rate=1e-3)
    rates = learning_rates(schedule_from(config, total_steps=20, warmup_steps=5), 1e-3)
    assert len(rates) == 20
    assert all(math.isfinite(rate) and 0 <= rate <= 1e-3 * (1 + 1e-9) for rate in rates)
    if name != "constant":
        assert rates[:5] == sorted(rates[:5])
        assert rates[0] < rates[5]
        assert max(rates) == pytest.approx(1e-3)
