"""Which files of a model's folder hold its weights: those that transformers loads, in its own order of preference.

A folder may hold more than one model's: an earlier one in shards beside a later one in a single file, or safetensors
beside pickles. Everything that reads weights asks here, so that all read the same.
"""

from __future__ import annotations

import json
from pathlib import Path

from whet.core.errors import ArtefactError, Problem

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED_SINGLE, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def weight_files(folder: Path, *, pickled: bool = False) -> list[Path]:
    """The safetensors of a full model, sorted by name; empty where there are none.

    Those that the index names are listed whether they are there or not: it is for the reader to say what that means.

    Args:
        pickled: where there are no safetensors, the files of pickled tensors.

    Raises:
        ArtefactError: the index cannot be read, or names a file outside of the folder.
    """
    pairs = [(SINGLE, INDEX), *([(PICKLED_SINGLE, PICKLED_INDEX)] if pickled else [])]
    for single, index in pairs:  # as transformers 5.23 has it: a single file goes before an index
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return _of_index(folder / index)
    return []


def _of_index(index: Path) -> list[Path]:
    try:
        names = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(index, f"it cannot be read ({type(error).__name__}: {error})") from error
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise _damaged(index, f"it names a file outside of its folder, '{name}'")
    return [index.parent / name for name in names]


def _damaged(index: Path, found: str) -> ArtefactError:
    return ArtefactError(Problem(str(index), found, "write or download the model again, or take another one"))
