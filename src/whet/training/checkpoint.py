"""Checkpoints that can be trusted: a manifest is written last, and one without it, or unlike it, is not there.

``checkpoint-<step>/`` holds what transformers writes (weights or adapter, optimizer, scheduler, random states,
``trainer_state.json``) and ``whet-checkpoint.json``: the step, and the size and SHA-256 of every file. How one comes to
its name, and leaves it, is in `whet.training.publishing`. A checkpoint may be a stranger's: whatever its manifest says,
no file outside of the folder is read, and what is wrong is told in one line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whet.core.disk import read_small, sha256
from whet.core.errors import ArtefactError, Problem
from whet.distributed.hardware import num_cpus
from whet.record import EARLIER_RUNS

MANIFEST = "whet-checkpoint.json"
VERSION = 1
"""Of the manifest; one without a number is of the first."""
_MOST_BYTES = 2**26
_FOLDER = re.compile(r"checkpoint-(0|[1-9][0-9]*)")
_STATES = re.compile(r"(optimizer|scheduler|scaler)\.pt|optimizer\.bin|rng_state(_[0-9]+)?\.pth")
_WEIGHTS = (
    *("pytorch_model_fsdp.bin", "model.safetensors", "pytorch_model.bin", "adapter_model.safetensors"),
    *("adapter_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json"),
)
"""In the order in which transformers' trainer looks for them: it reads the first that is there, and no other."""
_STATE = "trainer_state.json"
_BARE = "holds weights and no optimizer (it was saved with save_only_model)"


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A checkpoint that cannot be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """The newest usable checkpoint, or None, and the newer ones that were passed over."""

    path: Path | None
    passed_over: tuple[PassedOver, ...]


def checkpoints(output_dir: Path) -> list[Path]:
    """Checkpoint folders by step, the oldest first; whether they are complete is another question."""
    if not output_dir.is_dir():
        return []
    folders = [path for path in output_dir.iterdir() if path.is_dir() and _FOLDER.fullmatch(path.name)]
    return sorted(folders, key=step_of)


def has_a_checkpoint_s_name(folder: Path) -> bool:
    """Whether a folder is called checkpoint-<step>."""
    return _FOLDER.fullmatch(folder.name) is not None


def step_of(folder: Path) -> int:
    """The step a checkpoint was taken after.

    >>> step_of(Path("out/checkpoint-12"))
    12
    """
    match = _FOLDER.fullmatch(folder.name)
    assert match is not None
    return int(match[1])


def newest_complete(output_dir: Path, *, with_optimizer: bool = False) -> Found:
    """The newest checkpoint that is whole.

    Args:
        with_optimizer: pass over those that `save_only_model` has left, which no run can go on from.
    """
    passed_over: list[PassedOver] = []
    for folder in reversed(checkpoints(output_dir)):
        reason = what_is_wrong(folder)
        if reason is None and with_optimizer and not _has_optimizer(folder):
            reason = f"it {_BARE}"
        if reason is None:
            return Found(folder, tuple(passed_over))
        passed_over.append(PassedOver(folder, reason))
    return Found(None, tuple(passed_over))


def what_is_wrong(folder: Path, *, ending: tuple[str, ...] = ("",)) -> str | None:
    """Why a checkpoint cannot be trusted, or None when it can. Reads every byte of it.

    Args:
        ending: judge only the files whose names end so.
    """
    try:
        manifest = _manifest(folder)
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was not finished, or not written by whet"
    except (ValueError, OSError, RecursionError):
        return f"its {MANIFEST} cannot be read"
    if (reason := _misfit(manifest, folder, ending)) is not None:
        return reason
    files = {name: entry for name, entry in manifest["files"].items() if name.endswith(ending)}
    faults = (_fault_outside(folder, name, entry["bytes"]) for name, entry in files.items())
    if (fault := next(filter(None, faults), None)) is not None:
        return fault
    with _pool() as pool:
        faults_within = pool.map(lambda item: _fault_within(folder, item[0], item[1]["sha256"]), files.items())
        return next(filter(None, faults_within), None)


def _manifest(folder: Path) -> Any:
    """What the manifest says, whatever that is.

    Raises:
        OSError, ValueError, RecursionError: it cannot be read.
    """
    path = folder / MANIFEST
    if path.exists() and not path.is_file():
        raise OSError("a pipe or a device, which may never end")
    return json.loads(read_small(path, _MOST_BYTES))


def _misfit(manifest: Any, folder: Path, ending: tuple[str, ...]) -> str | None:
    """Why a manifest is not that of a folder, the content of files aside."""
    strange = f"its {MANIFEST} is not what whet writes"
    if not isinstance(manifest, dict):
        return strange
    if (version := manifest.get("version", VERSION)) != VERSION:
        return f"its {MANIFEST} is of version {_shown(str(version))}, and this whet knows version {VERSION}"
    step, files = manifest.get("step"), manifest.get("files")
    if not isinstance(step, int) or not isinstance(files, dict) or not files or not all(map(_is_entry, files.items())):
        return strange
    if _FOLDER.fullmatch(folder.name) and step_of(folder) != step:
        return f"it is the checkpoint of step {step}, under another's name"
    found = _read_unknown(folder, files, ending)
    return None if found is None else f"it holds {found}, which its {MANIFEST} does not know"


def _read_unknown(folder: Path, files: Mapping[str, object], ending: tuple[str, ...]) -> str | None:
    """A file that a resumed run would read, and that is of another checkpoint: the manifest does not know it.

    What somebody has made of a checkpoint beside it, weights in another form for one, is not read and does not matter.
    """
    there = sorted(path.name for path in folder.iterdir())
    weights = next((name for name in _WEIGHTS if name in there or name in files), None)
    read = [name for name in there if name == weights or _STATES.fullmatch(name)]
    return next((name for name in read if name not in files and name.endswith(ending)), None)


def _fault_outside(folder: Path, name: str, num_bytes: int) -> str | None:
    """What is wrong with a file, as far as that is seen without reading it."""
    path, shown = folder / name, _shown(name)
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            return f"its {MANIFEST} names '{shown}', which is no file of it"
        if not path.is_file():
            return f"{shown} is missing"
        found = path.stat().st_size
    except OSError as error:
        return f"{shown} cannot be read ({error.strerror})"
    except (RuntimeError, ValueError):  # links in a circle (before Python 3.13), letters that no file name can have
        return f"{shown} cannot be read"
    return None if found == num_bytes else f"{shown} has {found:,} bytes and should have {num_bytes:,}"


def _fault_within(folder: Path, name: str, digest: str) -> str | None:
    try:
        found = sha256(folder / name)
    except OSError as error:  # a bad sector, a stale handle of NFS: this checkpoint is lost, those before it are not
        return f"{_shown(name)} cannot be read ({error.strerror})"
    return None if found == digest else f"the content of {_shown(name)} has changed"


def _shown(name: str) -> str:
    """A stranger's word on one line of a terminal, which it cannot command."""
    plain = name if name.isprintable() else ascii(name)[1:-1]
    return plain if len(plain) <= 120 else f"{plain[:117]}..."


def _is_entry(item: tuple[object, object]) -> bool:
    name, entry = item
    if not isinstance(name, str) or "\0" in name or not isinstance(entry, dict):
        return False
    return isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)


def checkpoint_to_resume(
    asked: bool | str | None, output_dir: str, where: str
) -> tuple[Path | None, Sequence[PassedOver]]:
    """The checkpoint a run goes on from.

    Args:
        asked: a folder, or True for the newest whole one of ``output_dir``; None and False for a new run.
        where: the place to name in an error.

    Returns:
        The folder, or None for a new run; and checkpoints that were passed over, to be told to the user.

    Raises:
        ArtefactError: there is no whole checkpoint, or it is not one that a run can go on from.
    """
    if not asked:
        return None, ()
    if asked is True:
        found = newest_complete(Path(output_dir))
        if found.path is None:
            reasons = "".join(f"; {item.path.name}: {item.reason}" for item in found.passed_over)
            fix = "leave out resume_from_checkpoint"
            if aside := _newest_aside(Path(output_dir)):
                fix += f", or name one of an earlier run in this folder: {aside}"
            raise ArtefactError(Problem(where, f"{output_dir} holds no complete checkpoint{reasons}", fix))
        _refuse_bare_weights(found.path, where)
        return found.path, found.passed_over
    folder = Path(asked)
    if not folder.is_dir():
        raise ArtefactError(Problem(where, f"there is no folder {asked}", _those_in(Path(output_dir))))
    if not (folder / _STATE).is_file():
        raise ArtefactError(
            Problem(where, f"{asked} has no {_STATE}, so it is no checkpoint", "name a checkpoint-<step> folder")
        )
    _refuse_bare_weights(folder, where)
    reason = what_is_wrong(folder)
    if reason is not None and (folder / MANIFEST).is_file():
        raise ArtefactError(Problem(where, f"{asked} is damaged: {reason}", "name another checkpoint"))
    return folder, [PassedOver(folder, "it was not written by whet and is taken unverified")] if reason else []


def _those_in(output_dir: Path) -> str:
    """What to do for somebody who has named a checkpoint that is not there."""
    there = ", ".join(str(folder) for folder in checkpoints(output_dir))
    return f"name one of {there}" if there else f"name a checkpoint-<step> folder; {output_dir} holds none"


def earlier_runs(output_dir: Path) -> list[Path]:
    """Where the checkpoints of earlier runs in a folder have been put, the last first."""
    places = [path for path in (output_dir / EARLIER_RUNS).glob("[0-9]*") if path.name.isdecimal()]
    return sorted(places, key=lambda path: int(path.name), reverse=True)


def _newest_aside(output_dir: Path) -> Path | None:
    """The newest whole checkpoint that a new run in the folder, one that was not meant perhaps, has put aside."""
    return next((path for place in earlier_runs(output_dir) if (path := newest_complete(place).path)), None)


def _refuse_bare_weights(folder: Path, where: str) -> None:
    """transformers would go on from weights alone without a word, with a new optimizer at the old step."""
    if _has_optimizer(folder):
        return
    found = f"{folder} {_BARE}"
    fix = "write it as base_model (or lora_model_dir) of a new run in another output_dir"
    raise ArtefactError(Problem(where, found, fix))


def _has_optimizer(folder: Path) -> bool:
    return any(folder.rglob("*optim*"))


def steps_done(checkpoint: Path) -> int:
    """Steps of the run that a checkpoint is of, by its own word; 0 where it says nothing."""
    try:
        step = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))["global_step"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0
    return step if isinstance(step, int) else 0


def digests_of(paths: Sequence[Path], *, beside_training: bool = False) -> list[str]:
    """SHA-256 of each file, several at a time; beside training on half of the cores at most."""
    with _pool(2 if beside_training else 1) as pool:
        return list(pool.map(sha256, paths))


def _pool(share_of_cores: int = 1) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=max(1, min(8, num_cpus() // share_of_cores)))
