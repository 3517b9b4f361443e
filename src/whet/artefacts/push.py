"""What `whet push` does: the hub gets the result and what waits for it, trackers get the figures they have missed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from whet.artefacts.hub import RESULT, open_repository, reason, send_waiting
from whet.config import Config
from whet.core.disk import link_leading_out
from whet.core.errors import ArtefactError, ConfigError, Problem
from whet.core.log import say
from whet.core.secrets import redact
from whet.training.callbacks.metrics_log import METRICS, metrics_in
from whet.training.tracking import limit_patience
from whet.training.uploads import Receiver, Upload, UploadQueue

_NOT_A_FIGURE = frozenset({"kind", "step", "total_steps", "unix_seconds"})


def push_waiting(config: Config) -> list[str]:
    """Send everything that can be sent.

    Returns:
        A sentence for each thing.

    Raises:
        ConfigError: nothing says where to, and nothing waits.
        ArtefactError: nothing has been made yet, or somebody does not take what is sent; that stays queued.
    """
    queue = UploadQueue(Path(config.output.output_dir))
    _refuse_links(queue.folder, config)
    lost = [upload for upload in queue.waiting() if upload.to != "hub"]
    if config.output.hub_model_id is None and not lost:
        found, fix = "there is nothing to push: hub_model_id is not set", "name a repository: hub_model_id: you/name"
        raise ConfigError(Problem(config.where("hub_model_id"), found, fix, "hub_model_id"))
    said: list[str] = []
    problems: list[Problem] = []
    if config.output.hub_model_id is not None:
        _to_hub(queue, config, said, problems)
    for upload in lost:
        _to_tracker(upload, queue, config, said, problems)
    if problems:
        for line in said:
            say(line)
        raise ArtefactError(problems)
    return said


def _refuse_links(folder: Path, config: Config) -> None:
    """What a link of a stranger's folder leads to is not the run's to send.

    Raises:
        ArtefactError: one leads out of the folder.
    """
    link = link_leading_out(folder) if folder.is_dir() else None
    if link is not None:
        found = f"output_dir: '{link}' is a link to '{os.readlink(link)}', outside of the folder, and would be sent"
        raise ArtefactError(Problem(config.where("output_dir"), found, "remove the link", "output_dir"))


def _to_hub(queue: UploadQueue, config: Config, said: list[str], problems: list[Problem]) -> None:
    if _has_ended(queue.folder):
        queue.add(RESULT)
    if not any(upload.to == "hub" for upload in queue.waiting()):
        found = f"the run in '{queue.folder}' has not ended, and nothing of it waits to be pushed"
        fix = f"train it: whet train {config.file}"
        problems.append(Problem(config.where("output_dir"), found, fix, "output_dir"))
        return
    try:
        open_repository(config)
    except ArtefactError as error:
        problems.extend(error.problems)
        return
    sent, failure = send_waiting(queue, config, ended=True)
    said += [f"pushed {line}" for line in sent]
    if failure is not None:
        found = f"hub_model_id: '{config.output.hub_model_id}' did not take it ({reason(failure)}); it stays queued"
        problems.append(Problem(config.where("hub_model_id"), found, f"whet push {config.file}", "hub_model_id"))


def _has_ended(folder: Path) -> bool:
    """Whether the folder holds the result of a run, and not only what one has left on its way."""
    has_model = any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
    try:
        return has_model and json.loads((folder / "run.json").read_text(encoding="utf-8"))["outcome"] == "finished"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return has_model


def _to_tracker(upload: Upload, queue: UploadQueue, config: Config, said: list[str], problems: list[Problem]) -> None:
    try:
        what = _TRACKERS[upload.to](upload, queue.folder, config)
    # Any error of a tracker's library is about its server or its address.
    except Exception as error:  # noqa: BLE001
        queue.refused(upload, reason(error))
        found = f"{upload.to} did not take {upload} ({redact(reason(error))}); they stay queued"
        problems.append(Problem(config.where(f"use_{upload.to}"), found, f"whet push {config.file}"))
    else:
        queue.sent(upload)
        said.append(f"pushed {what}")


def _to_mlflow(upload: Upload, folder: Path, config: Config) -> str:
    """Figures from metrics.jsonl into the run that MLflow has begun; what it has already it ignores."""
    limit_patience()
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    uri = config.tracking.mlflow_tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    client = MlflowClient(tracking_uri=uri)
    lines = [line for line in metrics_in(folder) if line["step"] >= upload.step]
    for line in lines:
        figures = {name: value for name, value in line.items() if name not in _NOT_A_FIGURE and value is not None}
        milliseconds = int(line.get("unix_seconds", 0) * 1000)
        metrics = [Metric(name, value, milliseconds, line["step"]) for name, value in figures.items()]
        client.log_batch(upload.source, metrics=metrics)
    client.set_terminated(upload.source)
    return f"{len(lines)} lines of {METRICS}, from step {upload.step}, to mlflow's run {upload.source}"


def _to_wandb(upload: Upload, folder: Path, config: Config) -> str:
    """W&B's own log of the run, which it writes on this machine in any case."""
    log = Path(upload.source).parent
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", str(log)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1])
    return f"{log} to wandb"


_TRACKERS: Mapping[Receiver, Callable[[Upload, Path, Config], str]] = {"mlflow": _to_mlflow, "wandb": _to_wandb}
