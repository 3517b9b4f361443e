"""Where the run's curves go, beside the terminal and metrics.jsonl."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from whet.config.schema.base import Section


class TrackingSection(Section):
    """Keys about experiment trackers."""

    use_wandb: bool | None = Field(None, description="Report to Weights & Biases; true when wandb_project is set.")
    wandb_project: str | None = Field(None, description="Project of the run.")
    wandb_name: str | None = Field(None, description="Name of the run.")
    wandb_entity: str | None = Field(None, description="Team or user that owns the project.")
    wandb_run_id: str | None = Field(None, description="Id of the run, to go on with one.")
    wandb_mode: Literal["online", "offline", "disabled", "shared"] | None = Field(None, description="Where runs go.")
    wandb_watch: Literal["gradients", "parameters", "all", "false"] | None = Field(None, description="What to record.")
    wandb_log_model: Literal["checkpoint", "end", "false"] | None = Field(None, description="What to upload.")
    use_mlflow: bool | None = Field(None, description="Report to MLflow; true when an mlflow_* key is set.")
    mlflow_tracking_uri: str | None = Field(None, description="Server or folder of the runs.")
    mlflow_experiment_name: str | None = Field(None, description="Experiment of the run.")
    mlflow_run_name: str | None = Field(None, description="Name of the run.")
    hf_mlflow_log_artifacts: bool = Field(False, description="Copy every checkpoint to MLflow.")
    use_tensorboard: bool = Field(False, description="Write TensorBoard files into the output folder.")
