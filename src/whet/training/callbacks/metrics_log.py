"""The run's figures as JSON lines, in the output folder."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from whet.core.disk import sync
from whet.core.errors import Problem
from whet.core.log import warn

METRICS = "metrics.jsonl"
_WINDOW_BYTES = 1 << 16


class MetricsLog(TrainerCallback):
    """One object for each logged step (``"kind": "train"``), evaluation ("eval") and finished run ("summary").

    A figure that is no number is written as null. Of a resumed run's file, the lines after the checkpoint go: the
    steps they tell of are done again. Lines that the system refuses to write, as on a full disk, are kept in memory and
    written with the next one: no line is worth a run.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._unwritten: list[str] = []
        self._told = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        path = Path(args.output_dir or ".") / METRICS
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            keep_until(path, state.global_step)
        except OSError as error:
            found = f"what it tells of later steps cannot be taken out ({error.strerror})"
            warn(Problem(str(path), found, "of lines of the same step, the last is of this run"))
        self._path = path

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self._path is None or not logs:
            return
        line = metrics_line(state.global_step, state.max_steps, logs) | {"unix_seconds": time.time()}
        self._unwritten.append(json.dumps(line) + "\n")
        try:
            append("".join(self._unwritten).encode(), self._path)
        except OSError as error:
            if not self._told:
                found = f"its lines cannot be written ({error.strerror}) and are kept in memory"
                warn(Problem(str(self._path), found, "make room there; they are written as soon as they can be"))
            self._told = True
        else:
            self._unwritten.clear()
            self._told = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # A run that resumes from this checkpoint after a power cut has the lines of its steps.
        if self._path is not None and self._path.exists():
            with suppress(OSError):
                sync(self._path)


def append(content: bytes, path: Path) -> None:
    """Append whole, or not at all.

    Raises:
        OSError: it cannot be written; the file is as it was.
    """
    # Opened for each line: a run may end anywhere, and nothing would close the file then. Unbuffered: a write that
    # fails must not be tried again when the file is closed.
    with path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            written = file.write(content)
            if written != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            file.truncate(size)
            raise


def metrics_line(step: int, total_steps: int, logs: dict[str, float]) -> dict[str, Any]:
    """What is written for one call of the trainer's log.

    >>> metrics_line(3, 10, {"loss": float("nan"), "epoch": 0.3})
    {'kind': 'train', 'step': 3, 'total_steps': 10, 'loss': None, 'epoch': 0.3}
    """
    kind = "summary" if "train_runtime" in logs else "train" if "loss" in logs else "eval"
    figures = {name: value if math.isfinite(value) else None for name, value in logs.items()}
    return {"kind": kind, "step": step, "total_steps": total_steps, **figures}


def metrics_in(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics that are whole; what is no line of ours is left out.

    Raises:
        OSError: they cannot be read.
    """
    lines = []
    for text in (folder / METRICS).read_bytes().splitlines():
        with suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int) and "kind" in line:
                lines.append(line)
    return lines


def keep_until(path: Path, step: int) -> None:
    """Drop the lines of later steps, the summary of an earlier end, and a line that was cut off.

    Lines stand in the order of their steps, so they are looked at from the end, up to the first that stays: a run far
    along has hundreds of thousands. The file is cut in place, which needs no room on a full disk.

    A new run, from step 0, keeps nothing of an older one in the same folder.
    """
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = _end_of_kept(file, step)
        file.truncate(end)
        file.seek(max(0, end - 1))
        if file.read(1) not in (b"", b"\n"):
            file.write(b"\n")
        file.flush()
        os.fsync(file.fileno())


def _end_of_kept(file: BinaryIO, step: int) -> int:
    """Bytes of the lines that stay."""
    if step == 0:
        return 0
    end = file.seek(0, os.SEEK_END)
    for begin, line in _lines_from_the_end(file, end):
        if _is_kept(line, step):
            return end
        end = begin
    return 0


def _lines_from_the_end(file: BinaryIO, end: int) -> Iterator[tuple[int, bytes]]:
    """Each line before a place in a file, the last first, with the place where it begins.

    Read, not mapped into memory: FUSE and 9p may refuse that.
    """
    window = _WINDOW_BYTES
    while end:
        start = max(0, end - window)
        file.seek(start)
        content = file.read(end - start)
        rest = len(content)
        # A line that began before the window is read whole with the next one.
        while rest and ((begin := content.rfind(b"\n", 0, rest - 1) + 1) or not start):
            yield start + begin, content[begin:rest]
            rest = begin
        window = 2 * window if rest == len(content) else window
        end = start + rest


def _is_kept(line: bytes, step: int) -> bool:
    try:
        entry = json.loads(line)
        return bool(entry["step"] <= step and entry["kind"] != "summary")
    except (ValueError, KeyError, TypeError, RecursionError):  # cut off, or no line of ours
        return False
