"""What a test may leave in the environment: the account in tests/conftest.py, which itself must not depend on order."""

from __future__ import annotations

import os

import pytest
from tests.conftest import _STEERING, _put_back_environment

from whet.distributed.launch import _OF_THE_LAUNCHER


@pytest.mark.parametrize("name", ["RAY_CLIENT_MODE", "WANDB_SERVICE", "HF_SOMETHING_NEW", "MLFLOW_SOMETHING_NEW"])
def test_what_a_library_sets_when_it_is_imported_is_put_back_and_not_told(name: str) -> None:
    """Whichever test imports it first would fail, and no other: which one it is, nobody knows."""
    before = dict(os.environ)
    os.environ[name] = "set on import"
    assert _put_back_environment(before) == []
    assert dict(os.environ) == before


@pytest.mark.parametrize("name", ["RANK", "WANDB_MODE", "MLFLOW_TRACKING_URI", "HF_HUB_OFFLINE", "WHET_SEED"])
def test_what_steers_other_tests_is_told(name: str) -> None:
    before = dict(os.environ)
    os.environ[name] = "left"
    (told,) = _put_back_environment(before)
    assert told == f"{name}: {before.get(name)!r} before it, 'left' after it"
    assert dict(os.environ) == before


def test_a_launchers_variables_steer_other_tests() -> None:
    assert set(_OF_THE_LAUNCHER) <= _STEERING
