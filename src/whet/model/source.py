"""Where a model or tokenizer comes from: a folder on this machine, or an id on the Hugging Face hub."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from whet.config import Config
from whet.core.errors import ModelError, Problem


def locate(name: str, config: Config, key: str) -> str:
    """The folder that ``name`` means, else ``name`` itself as a hub id.

    A relative folder is looked for in the working directory, then beside the YAML file.

    Raises:
        ModelError: the name can only be a folder, and there is none.
    """
    candidates = [Path(name).expanduser(), Path(config.file).parent / name]
    for folder in candidates:
        if folder.is_dir():
            return str(folder)
    where = config.where(key)
    for candidate in candidates:
        if candidate.is_file():
            raise ModelError(Problem(where, f"{key}: '{name}' is a file", "give the folder that holds it", key))
    if _can_only_be_a_folder(name):
        raise ModelError(Problem(where, f"{key}: there is no folder '{name}'", _advice(candidates[0]), key))
    return name


def cannot_load(name: str, source: str, what: str, error: Exception, config: Config, key: str) -> ModelError:
    """The error for a ``source`` from which transformers could not load ``what`` ("a tokenizer")."""
    where = config.where(key)
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if Path(source).is_dir():
        files = ", ".join(sorted(entry.name for entry in Path(source).iterdir())[:8]) or "nothing"
        return ModelError(
            Problem(where, f"{key}: the folder '{name}' holds no {what} that can be loaded ({first_line})",
                    f"it holds {files}; give the folder that transformers' save_pretrained wrote", key)
        )  # fmt: skip
    near = _advice(Path(name).expanduser())
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        found = f"{key}: '{name}' is no folder here, and the hub is switched off (HF_HUB_OFFLINE) and has no copy of it"
        if not near.endswith("?"):
            near = f"write its folder, or run `hf download {name}` where there is a network,"
        return ModelError(Problem(where, found, f"{near} or unset HF_HUB_OFFLINE", key))
    found = f"{key}: '{name}' is no folder here, and the hub gives no {what} for it ({first_line})"
    separator = "" if near.endswith("?") else ","
    return ModelError(Problem(where, found, f"{near}{separator} or check the id, the network and `hf auth login`", key))


def _can_only_be_a_folder(name: str) -> bool:
    """A hub id is ``name`` or ``owner/name``; a first part that is a folder here makes the rest one too."""
    parts = name.split("/")
    return (
        name.startswith(("/", ".", "~"))
        or len(parts) > 2
        or "\\" in name
        or (len(parts) == 2 and Path(parts[0]).is_dir())
    )


def _advice(missing: Path) -> str:
    """Folders that are nearly the missing one, by walking down as far as the path exists."""
    existing = missing.parent
    while not existing.is_dir():
        existing = existing.parent
    wanted = missing.relative_to(existing).parts[0] if missing != existing else missing.name
    folders = sorted(entry.name for entry in existing.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    close = difflib.get_close_matches(wanted, folders, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(f"'{existing / name}'" for name in close) + "?"
    return f"'{existing}' holds {', '.join(folders[:8])}" if folders else f"there is no folder in '{existing}'"
