"""The hub: its repository opened before anything is trained, given checkpoints as they are made, and the result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from whet.config.resolve import ResolvedRun

if TYPE_CHECKING:
    from transformers import Trainer

    from whet.artefacts.hub import HubUploads


def open_repository(resolved: ResolvedRun) -> HubUploads | None:
    """What gives files to the repository of `hub_model_id`, which is opened now; on the first rank alone.

    Raises:
        ArtefactError: it cannot be opened.
    """
    if resolved.config.output.hub_model_id is None or resolved.hardware.rank != 0:
        return None
    from whet.artefacts.hub import HubUploads, open_repository

    open_repository(resolved.config)
    return HubUploads(resolved.config, Path(resolved.output_dir))


def push_checkpoints(uploads: HubUploads | None, trainer: Trainer) -> None:
    """Give the hub each checkpoint that `hub_strategy` asks for, when it is published."""
    if uploads is not None:
        trainer.checkpoints.on_published.append(uploads.checkpoint)


def push(uploads: HubUploads | None) -> None:
    """The saved result to the hub, where `hub_model_id` asks for it; a hub that is gone leaves it queued."""
    if uploads is not None:
        uploads.finish()
