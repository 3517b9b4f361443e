"""A run leaves the environment of its process as it was."""

from __future__ import annotations

import os

import pytest

from whet.core.environment import environment_put_back


def test_what_a_run_sets_changes_and_removes_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the next run of a notebook does not report to the trackers of the one before."""
    monkeypatch.setenv("WANDB_NAME", "mine")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    before = dict(os.environ)
    with environment_put_back():
        os.environ.update(WANDB_NAME="first run", TENSORBOARD_LOGGING_DIR="out/runs")
        del os.environ["WANDB_MODE"]
    assert dict(os.environ) == before


def test_after_an_error_trackers_still_find_where_they_have_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow ends its run when the process does, and looks for the server there."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")

    def run() -> None:
        with environment_put_back():
            os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:9"
