"""A step whose loss or gradient is no number changes nothing; three in a row end the run."""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tests.models import tiny_model
from tests.tiny_training import make_resolved, make_trainer, random_samples, write_prepared
from torch.nn.utils import parameters_to_vector
from transformers import TrainerCallback

from whet.core.errors import TrainingStopped
from whet.data.store import PreparedSet
from whet.model.attention import NAME
from whet.training.callbacks.guard import NonFiniteGuard
from whet.training.checkpoint import newest_complete
from whet.training.fit import fit
from whet.training.gradient_norm import GradientNorm

KEYS: dict[str, Any] = {
    "micro_batch_size": 2,
    "num_epochs": 3.0,
    "save_steps": 1,
    "logging_steps": 1,
    "warmup_steps": 0,
}


class Poison(TrainerCallback):
    """Makes chosen steps go wrong: their loss (through a weight), or their gradient alone."""

    def __init__(self, model: torch.nn.Module, steps: set[int], what: str) -> None:
        self.model, self.steps, self.what = model, steps, what
        self.weights: dict[int, torch.Tensor] = {}
        self._clean: torch.Tensor | None = None
        model.lm_head.weight.register_hook(self._gradient)
        self._bad_now = False

    def _gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.inf if self._bad_now and self.what == "gradient" else gradient

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step + 1
        self._bad_now = step in self.steps
        self.weights[step] = parameters_to_vector(self.model.parameters()).detach().clone()
        if self._bad_now and self.what == "loss":
            self._clean = self.model.model.norm.weight.detach().clone()
            self.model.model.norm.weight.data.fill_(math.nan)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._clean is not None:
            self.model.model.norm.weight.data.copy_(self._clean)
            self._clean = None


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return write_prepared(tmp_path_factory.mktemp("guard") / "prepared", random_samples(8, seed=6))


def poisoned(prepared: PreparedSet, tmp_path: Path, steps: set[int], what: str, **keys: Any) -> tuple[Any, Any, Poison]:
    resolved = make_resolved(tmp_path, **{**KEYS, **keys})
    trainer = make_trainer(prepared, resolved, tiny_model(attention=NAME, tie_word_embeddings=False))
    poison = Poison(trainer.model, steps, what)
    trainer.callback_handler.callbacks.insert(0, poison)  # before the guard looks
    return trainer, resolved, poison


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_torch_fused", "sgd", "adafactor"])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_bad_step_changes_nothing_and_is_told(
    prepared: PreparedSet, tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str, optimizer: str
) -> None:
    trainer, resolved, poison = poisoned(prepared, tmp_path, {3, 5}, what, optimizer=optimizer)
    with caplog.at_level(logging.WARNING, logger="whet"):
        fit(trainer, resolved)
    for step in range(1, 12):
        moved = not torch.equal(poison.weights[step], poison.weights[step + 1])
        assert moved == (step not in (3, 5)), f"step {step}"
    states = [value for state in trainer.optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    assert all(torch.isfinite(value.float()).all() for value in states)
    messages = [record.message for record in caplog.records]
    assert [message.split(":")[0] for message in messages] == ["step 3", "step 5"]
    found = "the loss is nan" if what == "loss" else r"the gradient norm is (inf|nan)"
    assert re.search(found, messages[0])
    assert "the step was skipped, the weights are as before" in messages[0]


def test_what_was_stepped_in_the_backward_pass_is_not_called_skipped(
    prepared: PreparedSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The bad gradient is of the head alone; the other weights have been stepped when the guard looks."""
    keys = {"optimizer": "sgd", "optimizer_in_backward": True, "max_grad_norm": 0.0, "max_steps": 3}
    trainer, resolved, poison = poisoned(prepared, tmp_path, {2}, "gradient", **keys)
    with caplog.at_level(logging.WARNING, logger="whet"):
        fit(trainer, resolved)
    assert not torch.equal(poison.weights[2], poison.weights[3])
    (message,) = [record.message for record in caplog.records]
    assert "the weights are as before" not in message
    assert "optimizer_in_backward had stepped the other weights by then" in message


def test_lomo_stops_at_once_and_logs_no_norm_that_nobody_knows(prepared: PreparedSet, tmp_path: Path) -> None:
    keys = {"optimizer": "lomo", "max_steps": 5, "save_strategy": "no"}
    trainer, resolved, _ = poisoned(prepared, tmp_path, {3}, "loss", **keys)
    assert trainer.args.max_grad_norm == 0
    with pytest.raises(TrainingStopped, match=r"step 3: the loss is nan.*has changed the weights with it.*are lost"):
        fit(trainer, resolved)
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(steps) == 2
    assert not any("grad_norm" in entry for entry in steps)


def test_the_rows_of_the_bad_step_are_named(
    prepared: PreparedSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, resolved, _ = poisoned(prepared, tmp_path, {2}, "gradient", max_steps=3)
    with caplog.at_level(logging.WARNING, logger="whet"):
        fit(trainer, resolved)
    expected = [f"chat.jsonl:{index + 1}" for index in trainer.train_samples.order.step_samples(0, 1, 1).tolist()]
    (message,) = [record.message for record in caplog.records]
    assert f"its rows: {', '.join(expected)} ->" in message


def test_three_in_a_row_end_the_run_with_the_last_good_checkpoint(prepared: PreparedSet, tmp_path: Path) -> None:
    trainer, resolved, poison = poisoned(prepared, tmp_path, {1, 4, 5, 6}, "loss")
    with pytest.raises(
        TrainingStopped, match=r"step 6: 3 steps in a row could not be used \(the loss is nan"
    ) as caught:
        fit(trainer, resolved)
    assert caught.value.exit_code == 1
    assert str(tmp_path) in str(caught.value)
    assert newest_complete(tmp_path).path == tmp_path / "checkpoint-5"
    from safetensors.torch import load_file

    kept = load_file(tmp_path / "checkpoint-5" / "model.safetensors")
    saved = torch.cat([kept[name].flatten() for name, _ in trainer.model.named_parameters()])
    assert torch.equal(saved, poison.weights[4]), "steps 4 and 5 changed nothing"


def test_a_bad_step_in_between_starts_the_count_again(prepared: PreparedSet, tmp_path: Path) -> None:
    trainer, resolved, _ = poisoned(prepared, tmp_path, {1, 2, 4, 5, 7, 8}, "gradient")
    assert fit(trainer, resolved).steps == 12


def test_a_gradient_scaler_is_left_its_overflows() -> None:
    """Under float16 the first gradients overflow while the scale is found; the scaler skips those steps by itself."""
    model = torch.nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    model.weight.grad.fill_(math.inf)
    guard = NonFiniteGuard(lambda: torch.tensor(1.0), lambda step: (), "out", scaler=lambda: True)
    args, state = _Plain(world_size=1, device=torch.device("cpu")), _Plain(global_step=0)
    for _ in range(4):
        guard.on_pre_optimizer_step(args, state, None, model=model)
    assert model.weight.grad is not None
    assert guard.skipped == []


def test_a_gradient_scaler_finds_its_scale_and_then_trains(
    prepared: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float16 with loss scaling, on a CPU: `fp16` is refused there for its speed, and its logic is the same."""
    trainer, resolved, _ = poisoned(prepared, tmp_path, set(), "loss", max_steps=12)
    accelerator = trainer.accelerator
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
    monkeypatch.setattr(accelerator, "native_amp", True)
    monkeypatch.setitem(accelerator.state.__dict__, "_mixed_precision", "fp16")
    before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
    skipped: list[bool] = []

    class Watch(TrainerCallback):
        def on_optimizer_step(self, *args: Any, optimizer: Any = None, **kwargs: Any) -> None:
            skipped.append(bool(optimizer.step_was_skipped))

    trainer.add_callback(Watch())
    assert fit(trainer, resolved).steps == 12
    assert skipped[0], "the scale is too high at first"
    assert not skipped[-1], skipped
    assert accelerator.scaler.get_scale() < 2.0**22
    after = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    assert bool(torch.isfinite(after).all())
    assert not torch.equal(before, after)


class _Plain:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


@pytest.mark.parametrize("max_steps", [2, 3])
def test_a_run_without_one_good_step_does_not_end_well(prepared: PreparedSet, tmp_path: Path, max_steps: int) -> None:
    """Two bad steps are no three in a row, and yet nothing was trained; and there is no checkpoint to speak of."""
    trainer, resolved, _ = poisoned(prepared, tmp_path, {1, 2, 3}, "loss", max_steps=max_steps)
    with pytest.raises(TrainingStopped, match="no step of the run was good: check the base model's weights"):
        fit(trainer, resolved)


@pytest.mark.parametrize("limit", [1.0, 0.0])
def test_the_norm_is_that_of_clipping_and_is_not_computed_again(
    prepared: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float
) -> None:
    """One pass over the gradients a step, whether they are clipped or not."""
    passes = 0
    measured = torch.nn.utils.get_total_norm
    clipped = torch.nn.utils.clip_grad_norm_

    def counted(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal passes
            passes += 1
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", counted(measured))
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", counted(clipped))
    resolved = make_resolved(tmp_path, **{**KEYS, "max_steps": 3, "max_grad_norm": limit, "save_strategy": "no"})
    trainer = make_trainer(prepared, resolved, tiny_model(attention=NAME))
    fit(trainer, resolved)
    assert passes == 3
    logged = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert len(logged) == 3
    assert all(norm > 1.0 for norm in logged), "the norm before clipping is what is logged"


@pytest.mark.parametrize("limit", [0.5, 1e4, math.inf])
def test_clipping_is_that_of_pytorch_and_none_where_there_is_no_limit(limit: float) -> None:
    """Below the limit nothing is multiplied, above it everything, and what is no number stays none."""
    for poison in (1.0, math.nan, math.inf):
        ours, theirs = (tiny_model() for _ in range(2))
        for model in (ours, theirs):
            generator = torch.Generator().manual_seed(0)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            model.lm_head.weight.grad[0, 0] *= poison
        norm, accelerator = GradientNorm(), Accelerator(cpu=True)
        norm.watch(accelerator)
        found = accelerator.clip_grad_norm_(ours.parameters(), limit)
        if math.isinf(limit):  # PyTorch would make every gradient nan of one that is infinite
            expected = torch.nn.utils.get_total_norm([each.grad for each in theirs.parameters()])
        else:
            expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), limit)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        assert norm.take() is not None
        assert norm.take() is None
        for mine, yours in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, yours.grad, rtol=0, atol=0, equal_nan=True)
