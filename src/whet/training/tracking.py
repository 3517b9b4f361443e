"""W&B, MLflow and TensorBoard: transformers reports to them and reads their settings from the environment."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path

from whet.config.resolve import ResolvedRun
from whet.core.errors import ConfigError, Problem
from whet.core.secrets import redact

_SCHEME = re.compile(r"([a-z][a-z0-9.-]*)(?:\+[a-z0-9.-]+)?:")  # sqlite+pysqlite: is one of SQLite
_SWITCHES = {"wandb": "use_wandb", "mlflow": "use_mlflow", "tensorboard": "use_tensorboard"}


# MLflow's client asks 8 times in 4 minutes, and waits 2 minutes for each answer. The end of a run is not so patient:
# what a server has not taken is sent by `whet push`.
_MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


def limit_patience() -> None:
    """A server that is not there is asked again twice, in seconds; the user's environment may say otherwise."""
    for name, value in _MLFLOW_PATIENCE.items():
        os.environ.setdefault(name, value)


def tracker_environment(resolved: ResolvedRun) -> dict[str, str]:
    """The variables that carry the config's tracker keys."""
    tracking = resolved.config.tracking
    values = {
        "WANDB_PROJECT": tracking.wandb_project,
        "WANDB_NAME": None if tracking.wandb_name is None else redact(tracking.wandb_name),
        "WANDB_ENTITY": tracking.wandb_entity,
        "WANDB_RUN_ID": tracking.wandb_run_id,
        "WANDB_RESUME": "allow" if tracking.wandb_run_id else None,
        "WANDB_MODE": tracking.wandb_mode,
        "WANDB_WATCH": tracking.wandb_watch,
        "WANDB_LOG_MODEL": tracking.wandb_log_model,
        "MLFLOW_TRACKING_URI": tracking.mlflow_tracking_uri,
        "MLFLOW_EXPERIMENT_NAME": tracking.mlflow_experiment_name,
        "HF_MLFLOW_LOG_ARTIFACTS": "TRUE" if tracking.hf_mlflow_log_artifacts else None,
    }
    return {name: value for name, value in values.items() if value is not None}


def places_of_trackers(resolved: ResolvedRun) -> dict[str, str]:
    """Where trackers write when neither the config nor the user's environment says: into the output folder."""
    output = Path(resolved.output_dir).absolute()
    places = {
        "tensorboard": {"TENSORBOARD_LOGGING_DIR": str(output / "runs")},
        "wandb": {"WANDB_DIR": str(output)},
        "mlflow": {"MLFLOW_TRACKING_URI": f"sqlite:///{output / 'mlflow.db'}"},
    }
    return {name: value for tracker in resolved.report_to for name, value in places[tracker].items()}


def stays_here(tracker: str) -> bool:
    """Whether a tracker, after `prepare_tracking`, writes to this machine alone and asks nobody."""
    if tracker == "mlflow":
        place = os.environ.get("MLFLOW_TRACKING_URI", "").strip().lower()
        scheme = _SCHEME.match(place)
        # A path, a file or a file of SQLite; servers, databases and what a plugin of MLflow adds are asked.
        return scheme[1] in ("file", "sqlite") if scheme else not place.startswith("databricks")
    return tracker == "tensorboard" or os.environ.get("WANDB_MODE") in ("offline", "disabled")


def prepare_tracking(resolved: ResolvedRun) -> None:
    """Put the tracker keys where transformers looks for them: into the environment of this process.

    Raises:
        ConfigError: a tracker is asked for whose package is not installed.
    """
    missing = [name for name in resolved.report_to if find_spec(name) is None]
    if missing:
        raise ConfigError(
            Problem(
                resolved.config.where(_SWITCHES[name]),
                f"the package {name} is not installed",
                f"pip install {name}",
                _SWITCHES[name],
            )
            for name in missing
        )
    os.environ.update(tracker_environment(resolved))
    if "mlflow" in resolved.report_to:
        limit_patience()
    for name, place in places_of_trackers(resolved).items():
        os.environ.setdefault(name, place)
    if "wandb" in resolved.report_to:
        Path(os.environ["WANDB_DIR"]).mkdir(parents=True, exist_ok=True)
