"""Checkpoints are written one at a time, in the background or at once, and what goes wrong is never lost."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from whet.core.disk import refused_write
from whet.core.errors import ArtefactError, Problem, TrainingStopped
from whet.core.log import warn
from whet.training.checkpoint import checkpoints
from whet.training.publishing import discard, publish, published_name, remove_old, staging

Part = Callable[[Path], None]
"""Writes its files into a checkpoint's folder."""

GIVES_WAY_BY = 10
"""Steps of niceness. On Linux a busy core then gives a tenth of its time to the thread that writes, and more as soon as
training waits for it. The lowest priority would starve it where other ranks wait with all cores at work.

Threads inherit it. GNU's OpenMP (PyTorch's wheels) keeps a team of them for each thread that starts one, so those of
the writer are its own. LLVM's and Intel's (conda) may give them to training later: what writes a part computes nothing
in PyTorch that is worth a team."""


class SavingFailed(TrainingStopped):
    """A checkpoint could not be written; those before it are as they were."""


class WritingAbandoned(Exception):
    """The process is about to end, and a checkpoint is half written."""


class CheckpointWriter:
    """Writes one checkpoint at a time.

    Args:
        output_dir: folder of the checkpoints.
        keep: newest checkpoints that stay, the best not counted; 0 keeps all.

    Attributes:
        last_published: the newest checkpoint of this run that has its name.
        on_published: called with each checkpoint that has got its name, on the first rank, in the thread that writes;
            at transformers' `on_save` it may not have it yet.
    """

    def __init__(self, output_dir: Path, keep: int = 0) -> None:
        self.output_dir, self.keep = output_dir, keep
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._is_abandoned = threading.Event()
        self.last_published: Path | None = None
        self.on_published: list[Callable[[Path], None]] = []

    @property
    def has_failed(self) -> bool:
        """Whether a checkpoint of the background could not be written, and nobody has been told yet."""
        return self._failure is not None

    def write(self, step: int, parts: Sequence[Part], *, best: Path | None = None, background: bool = False) -> None:
        """Write a checkpoint after the one before it, and publish it.

        Args:
            parts: called in the staging folder, one after the other. With ``background`` in another thread, so that
                they hold copies of everything that training changes.
            best: never removed.

        Raises:
            SavingFailed: this one could not be written, or (with ``background``) the one before.
        """
        self.wait()
        job = partial(self._write, step, tuple(parts), best, background)
        if not background:
            job()
            return
        # A daemon: a process that is ended by force shall not wait for it. What it leaves has no checkpoint's name.
        self._thread = threading.Thread(target=self._guarded, args=(job,), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the checkpoint that is being written.

        Raises:
            SavingFailed: it could not be written. Anything else that its parts raised comes as it is.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def abandon(self, seconds: float = 1.0) -> None:
        """Give up what is being written, because the process ends now."""
        self._is_abandoned.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def _guarded(self, job: Callable[[], None]) -> None:
        _give_way()
        try:
            job()
        except WritingAbandoned:
            pass
        except BaseException as failure:  # noqa: BLE001  raised again by `wait`, in the thread that trains
            self._failure = failure

    def _write(self, step: int, parts: Sequence[Part], best: Path | None, background: bool) -> None:
        staged, folder = staging(self.output_dir, step), published_name(self.output_dir, step)
        with self.or_discarded(step):
            staged.mkdir(parents=True, exist_ok=True)  # the ranks' random states are there already
            for part in parts:
                if self._is_abandoned.is_set():
                    raise WritingAbandoned
                part(staged)
            publish(staged, folder, step, beside_training=background)
        self.last_published = folder
        for tell in self.on_published:
            with _not_worth_the_run(f"{folder} is written, but not handed on"):
                tell(folder)
        with _not_worth_the_run(f"{folder} is written, but an older checkpoint cannot be removed"):
            remove_old(self.output_dir, self.keep, newest=step, best=best)

    @contextmanager
    def or_discarded(self, step: int) -> Iterator[None]:
        """What was written of a checkpoint goes again if more of it cannot be written within.

        Raises:
            SavingFailed: the system refused a write.
        """
        try:
            yield
        except BaseException as error:
            discard(staging(self.output_dir, step))
            if (reason := refused_write(error)) is not None:
                raise self.failure(step, reason) from error
            raise

    def failure(self, step: int, reason: str) -> SavingFailed:
        """What ends a run whose checkpoint cannot be written, with what is kept and how to go on."""
        found = f"the checkpoint could not be written: {reason}; {self.kept()}"
        return SavingFailed(Problem(f"step {step}", found, HOW_TO_GO_ON))

    def failure_elsewhere(self, step: int, error: OSError) -> SavingFailed:
        """What ends a run that cannot write another of its files."""
        found = f"{error.filename or self.output_dir} could not be written: {error.strerror}; {self.kept()}"
        return SavingFailed(Problem(f"step {step}", found, HOW_TO_GO_ON))

    def kept(self) -> str:
        """What there is to go on from, in words."""
        there = checkpoints(self.output_dir)
        return f"{there[-1]} is kept" if there else "there is no earlier one"


def _give_way() -> None:
    """Let the threads that train go first: this thread, and those that it starts. Only Linux has that for a thread."""
    if sys.platform == "linux":
        this = threading.get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, this, min(19, os.getpriority(os.PRIO_PROCESS, this) + GIVES_WAY_BY))


@contextmanager
def _not_worth_the_run(what: str) -> Iterator[None]:
    """What fails of the work around a checkpoint that is whole and has its name is said, and training goes on."""
    try:
        yield
    except ArtefactError as error:
        warn(f"{what}: {error}")
    except OSError as error:
        warn(f"{what}: {error.filename or 'the disk'} ({error.strerror or error})")


HOW_TO_GO_ON = (
    "make room there (or write to another disk, or keep fewer: save_total_limit), then the same command with "
    "--resume-from-checkpoint"
)
