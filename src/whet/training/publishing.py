"""How a checkpoint comes to its name, and how it leaves it.

It is written in ``<output_dir>/_writing/checkpoint-<step>`` (neither we nor transformers take that for a checkpoint,
and no push to the hub takes it along), its bytes go to the disk, its manifest is written, and one rename makes it
``checkpoint-<step>``. What is removed is renamed back into ``_writing`` first. So whatever is called checkpoint-<step>
is whole, at every moment, and what a dead run left behind lies in one place.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from whet.core.disk import replace_text, sync
from whet.record import EARLIER_RUNS, next_folder
from whet.training.checkpoint import (
    MANIFEST,
    VERSION,
    checkpoints,
    digests_of,
    has_a_checkpoint_s_name,
    step_of,
    what_is_wrong,
)

STAGING = "_writing"
_REPLACED, _REMOVED = "replaced-", "removed-"


def staging(output_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step is written."""
    return output_dir / STAGING / f"checkpoint-{step}"


def published_name(output_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step is found."""
    return output_dir / f"checkpoint-{step}"


def seal(folder: Path, step: int, *, beside_training: bool = False) -> None:
    """Bring a checkpoint's bytes to the disk, then write its manifest, by rename.

    Args:
        beside_training: not all cores are ours to hash on.

    Raises:
        OSError: something cannot be written.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    for path in paths:
        sync(path)
    entries = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, digests_of(paths, beside_training=beside_training), strict=True)
    }
    replace_text(folder / MANIFEST, json.dumps({"version": VERSION, "step": step, "files": entries}, indent=1) + "\n")
    for inner in (folder, *filter(Path.is_dir, folder.rglob("*"))):
        sync(inner)


def publish(staged: Path, folder: Path, step: int, *, beside_training: bool = False) -> None:
    """Seal what was written and give it its name; one of whet's that has the name already is replaced.

    What is not whet's (it has come while the run went on) goes to ``_earlier-runs``.

    Raises:
        OSError: something cannot be written.
    """
    seal(staged, step, beside_training=beside_training)
    replaced = staged.with_name(_REPLACED + folder.name)
    if (folder / MANIFEST).is_file():
        _delete(replaced)
        folder.rename(replaced)  # if this process ends here, `finish_publishing` gives the newer one its name
    elif os.path.lexists(folder):
        _move(folder, next_folder(folder.parent / EARLIER_RUNS))
    staged.rename(folder)
    sync(folder.parent)
    _delete(replaced)
    _remove_if_empty(staged.parent)


def discard(staged: Path) -> None:
    """Remove what could not be finished."""
    shutil.rmtree(staged, ignore_errors=True)
    _remove_if_empty(staged.parent)


def finish_publishing(output_dir: Path) -> list[Path]:
    """Give each checkpoint that a dead run had written whole the name that it lacked; returns them.

    Only for the one run that owns the folder: what another one is writing looks the same.
    """
    published = []
    # A checkpoint before the one it was to replace ("checkpoint-7" before "replaced-checkpoint-7").
    for path in _staged(output_dir):
        final = output_dir / path.name.removeprefix(_REPLACED)
        is_wanted = has_a_checkpoint_s_name(final) and not final.exists()  # neither what is removed nor a rehearsal
        if is_wanted and path.is_dir() and what_is_wrong(path) is None:
            path.rename(final)
            published.append(final)
    if published:
        _remove_if_empty(output_dir / STAGING)
        sync(output_dir)
    return published


def clear_leftovers(output_dir: Path) -> list[str]:
    """Remove what a dead run had not finished, and nothing that lacks but its name; returns what was removed."""
    finish_publishing(output_dir)
    staged = _staged(output_dir)
    for path in staged:
        _delete(path)
    _remove_if_empty(output_dir / STAGING)
    if staged:
        sync(output_dir)
    return [path.name for path in staged]


def _staged(output_dir: Path) -> list[Path]:
    folder = output_dir / STAGING
    return sorted(folder.iterdir()) if folder.is_dir() else []


def remove_old(output_dir: Path, keep: int, *, newest: int, best: Path | None = None) -> list[Path]:
    """Remove all but the ``keep`` newest checkpoints up to the one just published; the best is not counted and stays.

    A folder without a manifest is another program's, and neither counted nor removed.

    Args:
        keep: 0 keeps everything.
        newest: step of the checkpoint just published, which is whole for sure; what has a higher one is not this run's.

    Returns:
        What was removed.
    """
    if keep == 0:
        return []
    own = [folder for folder in own_checkpoints(output_dir, newest) if not _is_same(folder, best)]
    old = [folder for folder in own[:-keep] if step_of(folder) != newest]
    for folder in old:
        _remove(folder, output_dir)
    return old


def own_checkpoints(output_dir: Path, up_to: int) -> list[Path]:
    """The checkpoints up to a step that whet has written, the oldest first."""
    return [folder for folder in checkpoints(output_dir) if step_of(folder) <= up_to and (folder / MANIFEST).is_file()]


def last_step_of_run(output_dir: Path, resume_from: Path | None) -> int:
    """The step up to which the folder's checkpoints are of the run that goes on from ``resume_from``.

    -1 where none are: that of a new run, and of one that goes on from another folder, such as that of an earlier run.
    """
    if resume_from is None:
        return -1
    same = (folder for folder in checkpoints(output_dir) if _is_same(folder, resume_from))
    return next(map(step_of, same), -1)


def set_aside(output_dir: Path, newer_than: int = -1, others: Sequence[Path] = ()) -> Path | None:
    """Move what is of an earlier run out of the way of a new one in the same folder.

    A checkpoint is found by its step; one of an earlier run with a higher step would be taken for the newest of this
    one. Nothing is deleted: they go to ``_earlier-runs/<number>/``, where `save_total_limit` does not count them
    (and, by the leading underscore, transformers does not push them to the hub).

    Args:
        newer_than: only checkpoints after this step, for a run that goes on from it.
        others: what else is of that run, in the folder; after the checkpoints.

    Returns:
        The folder they are in now; None when there were none.
    """
    moved = [*(folder for folder in checkpoints(output_dir) if step_of(folder) > newer_than), *others]
    if not moved:
        return None
    place = next_folder(output_dir / EARLIER_RUNS)
    for path in moved:
        _move(path, place)
    return place


def _remove(folder: Path, output_dir: Path) -> None:
    """Out of sight by one rename, then bit by bit: a removal that is cut short leaves nothing that looks whole."""
    doomed = output_dir / STAGING / (_REMOVED + folder.name)
    doomed.parent.mkdir(exist_ok=True)
    _delete(doomed)
    folder.rename(doomed)
    _delete(doomed)
    _remove_if_empty(doomed.parent)


def _delete(path: Path) -> None:
    """Bit by bit, as far as it goes: a file that somebody reads on NFS stays, and the next run removes it.

    Of a link the link alone: what it leads to is somebody's who keeps it elsewhere.
    """
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _move(folder: Path, place: Path) -> None:
    """Into another folder, under its own name; a link that says where it leads from here goes on leading there."""
    place.mkdir(parents=True, exist_ok=True)
    if not folder.is_symlink():
        folder.rename(place / folder.name)
        return
    (place / folder.name).symlink_to(folder.resolve())
    folder.unlink()


def _is_same(folder: Path, other: Path | None) -> bool:
    return other is not None and folder.resolve() == other.resolve()


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # another rank, or the next checkpoint, has something there
        folder.rmdir()
