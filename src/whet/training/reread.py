"""``python -m whet.training.reread FOLDER``: read a checkpoint in a process that knows nothing of its run.

It prints one JSON object: for each file, the digests of what is in it. Nothing is read that needs pickle.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch


def digest(value: Any) -> str:
    """SHA-256 of nested values: tensors by type, shape and bytes, anything else by how it is written."""
    found = hashlib.sha256()
    _add(found, value)
    return found.hexdigest()


def digests_of(folder: Path) -> dict[str, dict[str, str]]:
    """Of each file with weights or states: the digest of each entry, by name."""
    from safetensors.torch import load_file

    found: dict[str, dict[str, str]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            found[name] = {key: digest(tensor) for key, tensor in load_file(path).items()}
        elif path.suffix in (".pt", ".pth"):
            found[name] = {"": digest(_loaded(path))}
        elif path.suffix == ".json":
            found[name] = {"": digest(json.loads(path.read_text(encoding="utf-8")))}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    (folder,) = sys.argv[1:] if arguments is None else arguments
    sys.stdout.write(json.dumps(digests_of(Path(folder))))
    return 0


def _loaded(path: Path) -> Any:
    """States, by PyTorch's reader that runs no code of the file."""
    try:
        with torch.serialization.safe_globals(_of_numpy()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        if "torchao.optim" not in str(error) or "torchao.optim" in sys.modules:
            raise
    import_module("torchao.optim")  # as the run has; with it PyTorch knows the classes of its states
    return _loaded(path)


def _add(found: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        found.update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
        if hasattr(value, "__tensor_flatten__"):  # it holds others, as torchao's states in 8 bits do
            for name in value.__tensor_flatten__()[0]:
                found.update(f"part {name}".encode())
                _add(found, getattr(value, name))
            return
        flat = value.detach().as_subclass(torch.Tensor).cpu().contiguous()
        found.update(flat.reshape(-1).view(torch.uint8).numpy().data if flat.numel() else b"")
    elif isinstance(value, dict):
        for key, item in value.items():
            found.update(f"key {key!r}".encode())
            _add(found, item)
    elif isinstance(value, list | tuple):
        found.update(f"list {len(value)}".encode())
        for item in value:
            _add(found, item)
    else:
        found.update(repr(value).encode())


def _of_numpy() -> list[Any]:
    """What NumPy's random state is made of."""
    import _codecs

    multiarray = import_module("numpy._core.multiarray")
    return [multiarray._reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32)), _codecs.encode]


if __name__ == "__main__":
    raise SystemExit(main())
