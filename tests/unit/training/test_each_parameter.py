"""Steps in the backward pass and stochastic rounding: the same run, in less memory; resumed to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import tiny_model
from tests.tiny_training import make_config, make_resolved, make_trainer, random_samples, write_prepared
from torch.nn.utils import parameters_to_vector
from transformers import TrainingArguments

from whet.config.rules.machine import a_step_in_backward_is_one_pass_of_one_process as one_pass
from whet.core.types import Hardware
from whet.data.store import PreparedSet
from whet.model.attention import NAME
from whet.training.callbacks.garbage import CollectGarbage
from whet.training.fit import fit
from whet.training.optimizers import build_optimizer
from whet.training.optimizers.each_parameter import EachParameter
from whet.training.optimizers.rounding import round_stochastically

KEYS: dict[str, Any] = {
    "max_steps": 6,
    "micro_batch_size": 2,
    "max_grad_norm": 0.0,
    "weight_decay": 0.1,
    "warmup_steps": 2,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 3,
}
BACKWARD = {"optimizer_in_backward": True}
ROUNDED = {"stochastic_rounding": True, "bfloat16": True}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return write_prepared(tmp_path_factory.mktemp("each") / "prepared", random_samples(24, seed=7))


def run(prepared: PreparedSet, folder: Path, resume: Path | None = None, **keys: Any) -> tuple[torch.Tensor, list[Any]]:
    """The final weights, and the losses and gradient norms on the way."""
    resolved = make_resolved(folder, **{**KEYS, **keys})
    model = tiny_model(attention=NAME, tie_word_embeddings=True).to(getattr(torch, resolved.dtype))
    trainer = make_trainer(prepared, resolved, model)
    fit(trainer, resolved, resume)
    told = [(e["loss"], e["grad_norm"], e["learning_rate"]) for e in trainer.state.log_history if "loss" in e]
    return parameters_to_vector(model.parameters()).detach(), told


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adafactor", "adamw_8bit"])
def test_stepping_in_the_backward_pass_is_the_same_run(prepared: PreparedSet, tmp_path: Path, optimizer: str) -> None:
    plain = run(prepared, tmp_path / "plain", optimizer=optimizer)
    early = run(prepared, tmp_path / "early", optimizer=optimizer, **BACKWARD)
    assert torch.equal(early[0], plain[0])
    for (loss, norm, rate), (other_loss, other_norm, other_rate) in zip(early[1], plain[1], strict=True):
        assert (loss, rate) == (other_loss, other_rate)
        assert norm == pytest.approx(other_norm, rel=1e-5)


@pytest.mark.parametrize("keys", [BACKWARD, ROUNDED, {**BACKWARD, **ROUNDED}], ids=["backward", "rounded", "both"])
def test_a_resumed_run_is_the_run(prepared: PreparedSet, tmp_path: Path, keys: dict[str, Any]) -> None:
    whole = run(prepared, tmp_path, optimizer="adamw_torch_fused", **keys)
    resumed = run(prepared, tmp_path, tmp_path / "checkpoint-3", optimizer="adamw_torch_fused", **keys)
    assert torch.equal(resumed[0], whole[0])
    assert resumed[1] == whole[1]


def test_rounding_in_the_backward_pass_or_after_it_is_the_same(prepared: PreparedSet, tmp_path: Path) -> None:
    after = run(prepared, tmp_path / "after", **ROUNDED)
    within = run(prepared, tmp_path / "within", **ROUNDED, **BACKWARD)
    assert torch.equal(after[0], within[0])
    assert after[0].dtype == torch.bfloat16


def built(tmp_path: Path, model: Any, **keys: Any) -> Any:
    args = TrainingArguments(output_dir=str(tmp_path), optim="adamw_torch", learning_rate=1e-4, use_cpu=True)
    return build_optimizer(model, make_config(learning_rate=1e-4, max_grad_norm=0.0, **keys), args)


def test_one_gradient_is_alive_at_a_time(tmp_path: Path) -> None:
    model = tiny_model()
    optimizer = built(tmp_path, model, **BACKWARD)
    alive: list[int] = []
    own_step = optimizer._step
    optimizer._step = lambda index: (
        alive.append(sum(p.grad is not None for p in model.parameters())),
        own_step(index),
    )
    model(torch.arange(20)[None], labels=torch.arange(20)[None]).loss.backward()
    assert set(alive) == {1}
    assert len(alive) == len(list(model.parameters()))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_loss_that_is_no_number_changes_nothing(tmp_path: Path) -> None:
    model = tiny_model()
    optimizer = built(tmp_path, model, **BACKWARD)
    before = parameters_to_vector(model.parameters()).clone()
    loss = model(torch.arange(20)[None]).logits.sum() * float("nan")
    optimizer.before_backward(loss)
    loss.backward()
    assert torch.equal(parameters_to_vector(model.parameters()), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert optimizer.gradient_norm() is None
    loss = model(torch.arange(20)[None]).logits.sum()
    optimizer.before_backward(loss)
    loss.backward()
    assert not torch.equal(parameters_to_vector(model.parameters()), before)


def test_a_gradient_that_is_no_number_spoils_no_weight(tmp_path: Path) -> None:
    model = tiny_model()
    optimizer = built(tmp_path, model, **BACKWARD)
    model.lm_head.weight.register_hook(lambda gradient: gradient * float("inf"))
    model(torch.arange(20)[None]).logits.sum().backward()
    assert not torch.isfinite(optimizer.gradient_norm())
    assert torch.isfinite(parameters_to_vector(model.parameters())).all()


def test_rounding_is_right_on_average() -> None:
    """Over 4,000 roundings the mean is within five standard errors of the number, and only its neighbours occur."""
    random = torch.Generator().manual_seed(0)
    step = 2.0**-7
    for share in (0.01, 0.3, 0.5, 0.9):
        values = torch.full((4000,), 1.0 + share * step)
        rounded = round_stochastically(values, random).float()
        assert set(rounded.tolist()) == {1.0, 1.0 + step}
        error = (share * (1 - share) / 4000) ** 0.5 * step
        assert abs(float(rounded.mean()) - (1.0 + share * step)) < 5 * error
    assert torch.equal(
        round_stochastically(torch.tensor([0.0, -1.5, 3.0]), random).float(), torch.tensor([0.0, -1.5, 3.0])
    )
    odd = round_stochastically(torch.tensor([float("inf"), float("-inf"), float("nan")]), random)
    assert odd[:2].tolist() == [float("inf"), float("-inf")]
    assert odd[2].isnan()


def test_updates_too_small_for_bfloat16_are_not_lost(tmp_path: Path) -> None:
    """Adam moves a weight of 1 by the learning rate of 1e-4, a fortieth of the distance to its neighbour below."""

    def moved(**keys: Any) -> float:
        model = torch.nn.Linear(64, 64, bias=False).to(torch.bfloat16)
        torch.nn.init.ones_(model.weight)
        optimizer = built(tmp_path, model, optimizer="adamw_torch", bfloat16=True, **keys)
        for _ in range(100):
            model.weight.grad = torch.full_like(model.weight, 0.5)
            optimizer.step()
        return 1.0 - float(model.weight.detach().float().mean())

    assert moved() == 0.0
    assert moved(stochastic_rounding=True) == pytest.approx(0.01, rel=0.05)


def test_states_of_rounded_weights_are_float32_and_no_master_copy_stays(tmp_path: Path) -> None:
    model = tiny_model().to(torch.bfloat16)
    optimizer = built(tmp_path, model, optimizer="adamw_torch", **ROUNDED)
    assert isinstance(optimizer, EachParameter)
    model(torch.arange(20)[None]).logits.float().sum().backward()
    optimizer.step()
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    assert sum(held.numel() for group in optimizer.param_groups for held in group["params"]) == 0
    moments = [tensor for tensor in optimizer.state_tensors() if tensor.numel() > 1]
    assert {tensor.dtype for tensor in moments} == {torch.float32}
    assert sum(tensor.numel() for tensor in moments) == 2 * num_weights


def test_several_processes_or_passes_are_refused() -> None:
    assert "2 processes" in str(one_pass(make_config(**BACKWARD), Hardware("cpu", world_size=2)))
    config = make_config(**BACKWARD, batch_size=4, micro_batch_size=2)
    assert "write batch_size: 2" in str(one_pass(config, Hardware("cpu")))
    assert one_pass(make_config(**BACKWARD), Hardware("cpu")) is None


@pytest.mark.parametrize(("every", "collected"), [(2, 3), (-1, 1)])
def test_garbage_is_collected_when_it_was_asked_for(
    prepared: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, collected: int
) -> None:
    resolved = make_resolved(tmp_path, **{**KEYS, "max_steps": 4, "num_epochs": 1.0, "save_strategy": "no"},
                             gc_collect_steps=every, torch_empty_cache_steps=3)  # fmt: skip
    trainer = make_trainer(prepared, resolved)
    assert trainer.args.torch_empty_cache_steps == 3
    calls: list[int] = []
    monkeypatch.setattr("whet.training.callbacks.garbage.collect", lambda: calls.append(1))
    assert any(isinstance(callback, CollectGarbage) for callback in trainer.callback_handler.callbacks)
    fit(trainer, resolved)
    assert len(calls) == collected
