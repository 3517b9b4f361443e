"""Files of weights and of states that are pickles: only tensors and plain values are taken from them, never code.

Nothing here makes loading safe; that is done where files are loaded, by torch's restricted unpickler
(``torch.load(weights_only=True)``) or from safetensors. Here its refusal becomes an error that names the file, what it
would have run, and what to do.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from whet.core.errors import ModelError, Problem, WhetError
from whet.core.log import warn

AS_SAFETENSORS = (
    "take a copy with safetensors; or, on a machine with nothing to lose, load it and save it as safetensors"
)

PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_ASKED_FOR = re.compile(r"GLOBAL:? ([\w.]+)")


@contextmanager
def pickles_refused(
    folder: str | Path, where: str, fix: str, *, key: str | None = None, kind: type[WhetError] = ModelError
) -> Iterator[None]:
    """Within it, a file that wants to run code when it is loaded ends with a ``kind`` that says so.

    Args:
        folder: with the files that are loaded, or a name of the hub.
        where: of the error.
        fix: what to do instead.
    """
    try:
        yield
    except pickle.UnpicklingError as error:
        raise kind(Problem(where, _found(Path(folder), str(error)), fix, key)) from error


def warn_of_pickled_weights(folder: str | Path, where: str, key: str) -> None:
    """Say that a model has no safetensors: its weights are read all the same, by torch's restricted unpickler."""
    path = Path(folder)
    if not path.is_dir() or any(path.glob("*.safetensors")) or not any(path.glob("pytorch_model*.bin")):
        return
    found = f"{key}: '{folder}' has pickled weights (pytorch_model*.bin); only tensors are taken from them"
    warn(Problem(where, found, "save the model again with save_pretrained, as safetensors", key))


def refuse_code_in_weights(folder: str | Path, where: str, key: str) -> None:
    """For a check of a model that is not loaded: what loading its pickled weights would end with.

    Raises:
        ModelError: they want to run code.
    """
    path = Path(folder)
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return
    with pickles_refused(path, where, AS_SAFETENSORS, key=key):
        for file in sorted(path.glob("pytorch_model*.bin")):
            names = asked_for(file)
            if names is None:
                torch.load(file, map_location="meta", weights_only=True)  # of before 2020: read to know
            elif names:
                raise pickle.UnpicklingError(f"GLOBAL {names[0]}")


def _found(folder: Path, reason: str) -> str:
    asked = _ASKED_FOR.search(reason)
    wanted = asked[1] if asked else ""
    suspects = {path: asked_for(path) for path in _pickles(folder)}
    named = [path for path, names in suspects.items() if names is not None and wanted in names]
    culprit = next(iter(named or [path for path, names in suspects.items() if names is None]), None)
    file = f"'{culprit}'" if culprit else f"a file of '{folder}'"
    if asked is None:
        return f"{file} cannot be loaded as tensors and plain values"
    return f"{file} is a pickle that would run {asked[1]} when it is loaded; nothing of it was run"


def _pickles(folder: Path) -> list[Path]:
    return sorted(path for pattern in PATTERNS for path in folder.glob(pattern)) if folder.is_dir() else []


def asked_for(path: Path) -> list[str] | None:
    """What a file asks for that the restricted unpickler may not give; told from its opcodes, nothing is run.

    None for a file that is no archive as torch writes them today: only loading it would tell.
    """
    try:
        return list(get_unsafe_globals_in_checkpoint(str(path)))
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError, AttributeError, KeyError):
        return None
