"""Every optimizer and scheduler of the tables trains; the config knows exactly these names."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import tiny_model
from tests.tiny_training import make_config, random_samples, write_prepared
from transformers import TrainingArguments

from whet.config import names
from whet.config.optimizers import PACKAGES, unavailable
from whet.data.store import PreparedSet
from whet.training.arguments import _stock_optimizer
from whet.training.optimizers import OPTIMIZERS, build_optimizer
from whet.training.schedules import FOLLOW_EVALUATIONS, SCHEDULERS, learning_rates, schedule_from

SCHEDULER_ARGUMENTS: dict[str, dict[str, Any]] = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 4},
}
"""Arguments without which transformers' scheduler cannot be built."""


RATES = {
    "sgd": 0.3,
    "adagrad": 0.05,
    "adafactor": 0.02,
    "galore_adafactor": 0.02,
    "lomo": 0.3,
    "adalomo": 0.02,
    "schedule_free_sgd": 3.0,
    "schedule_free_radam": 0.02,
    "sinkgd": 0.02,
    "dion": 0.01,
    "soap": 0.01,
}
"""Learning rates; 3e-3 for the others."""


@pytest.fixture(autouse=True)
def uncompiled() -> Iterator[None]:
    """torchao compiles its step, which costs far more here than all the rest and changes no law."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    folder = tmp_path_factory.mktemp("optimizers") / "prepared"
    return write_prepared(folder, random_samples(8, seed=4), random_samples(2, seed=5))


def test_the_config_knows_the_optimizers() -> None:
    assert set(names.OPTIMIZERS) == set(OPTIMIZERS.names())
    assert set(names.SCHEDULERS) == set(SCHEDULERS.names())


class Run:
    """A tiny model on one batch, by one optimizer, without a trainer around it."""

    def __init__(self, tmp_path: Path, name: str, **keys: Any) -> None:
        config = make_config(optimizer=name, learning_rate=RATES.get(name, 3e-3), lr_scheduler="constant", **keys)
        self.model = tiny_model(hidden_size=64).train()
        self.optimizer = build_optimizer(
            self.model, config, TrainingArguments(str(tmp_path), optim=_stock_optimizer(name), use_cpu=True)
        )
        self.ids = torch.randint(5, 200, (4, 16), generator=torch.Generator().manual_seed(1))

    def steps(self, number: int) -> list[float]:
        losses = []
        for _ in range(number):
            if hasattr(self.optimizer, "train"):
                self.optimizer.train()
            loss = self.model(input_ids=self.ids, labels=self.ids).loss
            if hasattr(self.optimizer, "fused_backward"):
                self.optimizer.fused_backward(loss, self.optimizer.param_groups[0]["lr"])
            else:
                loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    def weights(self) -> torch.Tensor:
        return torch.nn.utils.parameters_to_vector(self.model.parameters()).detach().clone()


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_the_optimizer_learns_and_goes_on_from_what_it_saved(tmp_path: Path, name: str) -> None:
    """The loss falls, every weight moves and is finite, and a new optimizer with the saved state goes on alike.

    The state is saved and loaded as transformers does it: by `torch.save`, and `torch.load` of weights only.
    """
    reason = unavailable(name, "cpu")
    if reason is not None:
        pytest.skip(reason)
    with warnings.catch_warnings():
        if name in PACKAGES:
            warnings.simplefilter("ignore")  # of bitsandbytes, about what it cannot do on a CPU; of deprecated imports
        run = Run(tmp_path, name)
        start = run.weights()
        losses = run.steps(4)
        torch.save(run.optimizer.state_dict(), tmp_path / "optimizer.pt")
        weights, random = {k: v.clone() for k, v in run.model.state_dict().items()}, torch.get_rng_state()
        losses += run.steps(4)

        again = Run(tmp_path, name)
        again.model.load_state_dict(weights)
        again.optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
        torch.set_rng_state(random)
        again.steps(4)
    assert losses[-1] < losses[0] - 0.05
    assert torch.isfinite(run.weights()).all()
    assert (run.weights() != start).float().mean() > 0.5
    assert torch.equal(run.weights(), again.weights())


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
