"""What holds for every test: no hub, no telemetry, whatever the shell that starts it says; and no trace of the others.

Tests share a process, in an order that nobody knows. Chance begins anew with each of them; what a command of whet may
do to a process that is its own is undone; and a test that leaves more than that behind fails. Whoever calls whet from a
notebook would find the same there, so the cure is in whet where whet has done it.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

_STEERING = {
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("TORCHELASTIC_RUN_ID", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "XDG_CACHE_HOME", "HF_HOME"),
    *("HF_TOKEN", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"),
    *("WANDB_PROJECT", "WANDB_NAME", "WANDB_ENTITY", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_MODE", "WANDB_WATCH"),
    *("WANDB_LOG_MODEL", "WANDB_DIR", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "HF_MLFLOW_LOG_ARTIFACTS"),
    *("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT", "TENSORBOARD_LOGGING_DIR"),
    *("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DYNAMO_MODE"),
    "FSDP_CPU_RAM_EFFICIENT_LOADING",
}
"""Variables that decide what other tests do: those that whet and launchers set, and that libraries read there.

By their names, for a library may set variables of its own when it is imported (Ray 2.60: RAY_CLIENT_MODE), and which
test imports it first, nobody knows.
"""
_WHET = logging.getLogger("whet")

Facts = dict[str, tuple[Any, Callable[[Any], object]]]
"""Name -> value, and what puts one back."""


def _owned() -> Facts:
    """What a command does to a process that is its own."""
    return {
        "sys.excepthook": (sys.excepthook, lambda hook: setattr(sys, "excepthook", hook)),
        "threading.excepthook": (threading.excepthook, lambda hook: setattr(threading, "excepthook", hook)),
        "formatwarning": (warnings.formatwarning, lambda function: setattr(warnings, "formatwarning", function)),
        "log records": (logging.getLogRecordFactory(), logging.setLogRecordFactory),
        "log handlers": (list(_WHET.handlers), lambda handlers: setattr(_WHET, "handlers", handlers)),
        "log propagation": (_WHET.propagate, lambda propagate: setattr(_WHET, "propagate", propagate)),
        "log level": (_WHET.level, _WHET.setLevel),
    }


def _common() -> Facts:
    """What every test may count on."""
    found: Facts = {
        "the current folder": (os.getcwd(), os.chdir),
        "sys.unraisablehook": (sys.unraisablehook, lambda hook: setattr(sys, "unraisablehook", hook)),
        "the profiler": (sys.getprofile(), sys.setprofile),
    }
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        found[f"the answer to {number.name}"] = (signal.getsignal(number), _answer(number))
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_default_dtype"):  # else it is being imported
        found |= {
            "torch's dtype": (torch.get_default_dtype(), torch.set_default_dtype),
            "torch's device": (torch.get_default_device(), torch.set_default_device),
            "torch's determinism": (torch.are_deterministic_algorithms_enabled(), torch.use_deterministic_algorithms),
            "torch's gradients": (torch.is_grad_enabled(), torch.set_grad_enabled),
            "torch's threads": (torch.get_num_threads(), torch.set_num_threads),
        }
    return found


def _answer(number: signal.Signals) -> Callable[[Any], object]:
    return lambda answer: signal.signal(number, answer)


def _put_back(before: Facts, after: Facts) -> list[str]:
    """What was different, in words; what was not there before (torch was not) is not looked at."""
    different = []
    for name, (value, put) in before.items():
        found = after[name][0]
        if found is not value and found != value:
            put(value)
            different.append(f"{name}: {value!r} before it, {found!r} after it")
    return different


def _put_back_environment(before: dict[str, str]) -> list[str]:
    after = dict(os.environ)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)} - {"PYTEST_CURRENT_TEST"}
    for name in changed:
        if name in before:
            os.environ[name] = before[name]
        else:
            del os.environ[name]
    told = sorted(name for name in changed if name in _STEERING or name.startswith("WHET_"))
    return [f"{name}: {before.get(name)!r} before it, {after.get(name)!r} after it" for name in told]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Chance is the same for a test wherever it stands, its fixtures included."""
    random.seed(0)
    for name in ("numpy", "torch"):
        module = sys.modules.get(name)
        if module is not None and hasattr(module, "random"):  # else it is being imported
            (module.manual_seed if name == "torch" else module.random.seed)(0)


@pytest.fixture(autouse=True)
def _leaves_no_trace() -> Iterator[None]:
    owned, common, environment = _owned(), _common(), dict(os.environ)
    yield
    _put_back(owned, _owned())
    different = [*_put_back(common, _common()), *_put_back_environment(environment)]
    if different:
        pytest.fail("this test leaves the process changed:\n" + "\n".join(different), pytrace=False)
