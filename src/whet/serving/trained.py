"""Where the model is that a run has made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from whet.config import Config
from whet.core.errors import ArtefactError, Problem
from whet.core.log import warn

ADAPTER_FILE = "adapter_config.json"
MODEL_FILE = "config.json"

Kind = Literal["adapter", "full", "base"]


@dataclass(frozen=True, slots=True)
class Trained:
    """A model to load: what it is, and the folder with what was trained (None for the base model as it is)."""

    kind: Kind
    folder: Path | None = None


def find_trained(config: Config, lora_model_dir: Path | None = None, *, takes_untrained: bool = True) -> Trained:
    """The newest result of the config's run: what stands in `output_dir`, else its newest complete checkpoint.

    Args:
        lora_model_dir: an adapter to use instead.
        takes_untrained: whether the command has the option ``--untrained``.

    Raises:
        ArtefactError: the run has left nothing yet, or the folder holds no adapter.
    """
    if lora_model_dir is not None:
        return _adapter_in(lora_model_dir)
    output_dir = Path(config.output.output_dir)
    kind: Kind = "adapter" if config.adapter.adapter and not config.adapter.relora else "full"
    if _holds(output_dir, kind):
        return Trained(kind, output_dir)
    checkpoint = _newest_checkpoint(output_dir)
    if checkpoint is not None and _holds(checkpoint, kind):
        warn(f"the run in '{output_dir}' has not ended; this is its checkpoint {checkpoint.name}")
        return Trained(kind, checkpoint)
    what = "adapter" if kind == "adapter" else "model"
    found = f"there is no trained {what} in '{output_dir}' yet"
    fix = f"train it: whet train {config.file}"
    fix += "; or add --untrained for the base model as it is" if takes_untrained else ""
    raise ArtefactError(Problem(config.where("output_dir"), found, fix, "output_dir"))


def _adapter_in(folder: Path) -> Trained:
    if _holds(folder, "adapter"):
        return Trained("adapter", folder)
    found = f"'{folder}' holds no adapter ({ADAPTER_FILE})"
    raise ArtefactError(Problem("--lora-model-dir", found, "give the folder that a LoRA run wrote", "lora_model_dir"))


def _holds(folder: Path, kind: Kind) -> bool:
    return (folder / (ADAPTER_FILE if kind == "adapter" else MODEL_FILE)).is_file()


def _newest_checkpoint(output_dir: Path) -> Path | None:
    from whet.training.checkpoint import newest_complete

    return newest_complete(output_dir).path if output_dir.is_dir() else None


def as_trained(config: Config, trained: Trained) -> Config:
    """The config with what was trained in the place of what was trained from."""
    if trained.kind == "adapter":
        section = config.adapter.model_copy(update={"lora_model_dir": str(trained.folder)})
        return config.model_copy(update={"adapter": section})
    if trained.kind == "base":
        return config
    # The trained folder's own files say everything that the overrides said.
    changes = {
        "base_model": str(trained.folder),
        "base_model_config": None,
        "revision_of_model": None,
        "overrides_of_model_config": None,
        "reinit_weights": False,
    }
    model = config.model.model_copy(update=changes)
    # Where restarts (`relora`) have left a full model, its adapters are in it.
    return config.model_copy(update={"model": model, "adapter": type(config.adapter)()})
