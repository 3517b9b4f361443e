"""TensorBoard, W&B (offline) and MLflow each get the figures that metrics.jsonl has."""

from __future__ import annotations

import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_training import make_resolved, make_trainer, random_samples, write_prepared

from whet.training.fit import fit
from whet.training.tracking import stays_here


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trains two steps with the given tracker keys; returns the logged losses. The environment is put back."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_", "HF_MLFLOW", "TENSORBOARD_")):
            monkeypatch.delenv(name)

    def train(**keys: Any) -> list[float]:
        before = dict(os.environ)
        prepared = write_prepared(tmp_path / "prepared", random_samples(8, seed=6))
        resolved = make_resolved(tmp_path / "out", max_steps=2, logging_steps=1, save_strategy="no", **keys)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the trackers, about themselves
                fit(make_trainer(prepared, resolved), resolved)
        finally:
            os.environ.clear()
            os.environ.update(before)
        lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines if line["kind"] == "train"]

    return train


def test_tensorboard(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    losses = run(use_tensorboard=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "out" / "runs"))
    events.Reload()
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses)
    assert {"train/tokens_per_second", "train/supervised_tokens_per_second"} <= set(events.Tags()["scalars"])


def test_mlflow(run: Any, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    losses = run(mlflow_experiment_name="tiny", mlflow_run_name="first")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'out' / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert found.info.run_name == "first"
    assert [metric.value for metric in client.get_metric_history(found.info.run_id, "loss")] == pytest.approx(losses)


def test_wandb_offline(run: Any, tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    losses = run(wandb_project="tiny", wandb_mode="offline", wandb_run_id="abc123")
    wandb.teardown()  # `finish` may return before the log is written; this waits for the process that writes it
    (folder,) = (tmp_path / "out" / "wandb").glob("offline-run-*-abc123")
    (file,) = folder.glob("run-abc123.wandb")
    written = _payload_of_log(file.read_bytes())
    found = [float(number) for number in re.findall(rb"(?s)train/loss.{1,4}?([0-9]+\.[0-9]+)", written)]
    assert all(any(loss == pytest.approx(each) for each in found) for loss in losses)


def _payload_of_log(data: bytes) -> bytes:
    """What a LevelDB log holds: records of 7 bytes of header (4 checksum, 2 length, 1 kind) in blocks of 32 KiB.

    A number may be cut in two where a block ends.
    """
    parts, offset = [], 7  # W&B's own header
    while offset < len(data):
        left = 32768 - offset % 32768
        if left < 7:
            offset += left
            continue
        length = int.from_bytes(data[offset + 4 : offset + 6], "little")
        parts.append(data[offset + 7 : offset + 7 + length])
        offset += 7 + length
    return b"".join(parts)


@pytest.mark.parametrize(
    ("place", "is_here"),
    [
        *((place, True) for place in ("", "mlruns", "/a/b", "./a:b", "file:///a", "sqlite:///a", "sqlite+pysqlite:")),
        *((place, False) for place in ("http://h:5000", "HTTPS://[", "databricks", "databricks://me", "databricks-uc")),
        *((place, False) for place in ("postgresql://h/d", "mysql+pymysql://h/d", "arn:aws:sagemaker:us-east-1:1:a")),
    ],
)
def test_whoever_may_not_answer_is_asked_before_the_folder_is_taken(
    place: str, is_here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    assert stays_here("mlflow") is is_here
