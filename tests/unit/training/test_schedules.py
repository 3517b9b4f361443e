"""The learning rate at every step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tiny_training import make_config

from whet.config.names import FOLLOW_EVALUATIONS
from whet.core.errors import ConfigError
from whet.training.schedules import SCHEDULERS, build_scheduler, keeps_rates, learning_rates, schedule_from


def rates(total: int = 100, warmup: int = 10, **keys: Any) -> list[float]:
    return learning_rates(schedule_from(make_config(learning_rate=1.0, **keys), total, warmup), 1.0)


def test_the_plain_cosine_is_that_of_transformers() -> None:
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    factor = get_cosine_schedule_with_warmup(optimizer, 10, 100).lr_lambdas[0]
    assert rates(lr_scheduler="cosine") == [factor(step) for step in range(100)]


def test_the_cosine_keeps_to_its_floor() -> None:
    found = rates(lr_scheduler="cosine", cosine_min_lr_ratio=0.1)
    assert found[10] == 1.0
    assert found[55] == pytest.approx(0.55)
    assert min(found[10:]) == pytest.approx(0.1, abs=1e-3)


def test_the_cosine_may_reach_its_floor_early_and_stay() -> None:
    found = rates(lr_scheduler="cosine", cosine_min_lr_ratio=0.1, cosine_constant_lr_ratio=0.5)
    assert found[30] == pytest.approx(0.55)
    assert set(found[50:]) == {0.1}


def test_the_warm_up_may_be_quadratic() -> None:
    found = rates(lr_scheduler="cosine", lr_quadratic_warmup=True)
    assert found[:11] == pytest.approx([(step / 10) ** 2 for step in range(11)])


def test_one_cycle_rises_for_the_warm_up() -> None:
    found = rates(lr_scheduler="one_cycle", lr_scheduler_kwargs={"div_factor": 10.0})
    assert found[0] == pytest.approx(0.1)
    assert found.index(max(found)) == 9
    assert found[-1] < 0.01


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lr_scheduler": "polynomial", "lr_scheduler_kwargs": {"powr": 2}}, "unexpected keyword argument 'powr'"),
        (
            {"lr_scheduler": "rex", "lr_scheduler_kwargs": {"power": 2}},
            "scheduler 'rex' refuses its arguments: it takes none",
        ),
        ({"lr_scheduler": "cosin"}, "'cosin' is not among the schedulers -> did you mean 'cosine'?"),
    ],
)
def test_a_wrong_scheduler_is_an_error_before_the_run(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rates(**keys)
    assert message in str(caught.value)


def test_rates_that_nobody_can_know_are_refused() -> None:
    with pytest.raises(ConfigError, match="follow from evaluations that are yet to come"):
        rates(lr_scheduler="reduce_lr_on_plateau")


@pytest.mark.parametrize("name", SCHEDULERS.names())
def test_a_schedule_computes_its_rates_or_keeps_them(name: str) -> None:
    """A run that goes on with other settings asks: rates that are kept cannot become others."""
    arguments = {"warmup_stable_decay": {"num_decay_steps": 9}, "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1}}
    arguments["cosine_with_min_lr"] = arguments["cosine_warmup_with_min_lr"]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    for restarts in [{}, *([] if name in FOLLOW_EVALUATIONS else [{"jagged_restart_steps": 3}])]:
        config = make_config(lr_scheduler=name, lr_scheduler_kwargs=arguments.get(name), **restarts)
        made = build_scheduler(optimizer, schedule_from(config, 100, 10))
        assert hasattr(made, "lr_lambdas") != keeps_rates(config)


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "one_cycle", "rex", "constant"])
def test_restarts_wrap_any_schedule(scheduler: str) -> None:
    """Between the ramps the rates are the schedule's own, on the ramps a share of them, never 0 of them."""
    plain = rates(lr_scheduler=scheduler)
    jagged = rates(
        lr_scheduler=scheduler,
        jagged_restart_steps=20,
        jagged_restart_warmup_steps=3,
        jagged_restart_anneal_steps=4,
    )
    for step, (rate, own) in enumerate(zip(jagged, plain, strict=True)):
        position = step % 20
        rise = min(1, (position + 1) / 4) if step >= 20 else 1
        fall = min(1, (20 - position) / 5)
        assert rate == pytest.approx(own * rise * fall)


def test_a_schedule_with_restarts_goes_on_from_its_state() -> None:
    keys = {"jagged_restart_steps": 5, "jagged_restart_warmup_steps": 2, "lr_scheduler": "cosine"}
    schedule = schedule_from(make_config(learning_rate=1.0, **keys), 20, 2)
    found, states = [], []
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build_scheduler(optimizer, schedule)
    for _ in range(20):
        found.append(optimizer.param_groups[0]["lr"])
        states.append((optimizer.state_dict(), scheduler.state_dict()))
        optimizer.step()
        scheduler.step()
    again = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    resumed = build_scheduler(again, schedule)
    again.load_state_dict(states[7][0])
    resumed.load_state_dict(states[7][1])
    rest = []
    for _ in range(13):
        rest.append(again.param_groups[0]["lr"])
        again.step()
        resumed.step()
    assert rest == found[7:]
