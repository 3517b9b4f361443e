"""Files that a person puts beside a running training, to get a checkpoint now or to end it cleanly."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from whet.config.resolve import ResolvedRun
from whet.core.log import say, warn

CHECKPOINT_FILE = "axolotl_checkpoint.save"
"""Name in output_dir; Axolotl's, so that what people and scripts write today goes on working."""
STOP_FILE = "whet_stop"
LARGEST = 16
"""Bytes of a file that may ask, and is removed. A path in somebody's YAML shall not remove what matters."""
AT_MOST_EVERY_SECONDS = 1.0
"""A look at a network file system may take milliseconds."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the files ask for."""

    checkpoint: bool = False
    stop: bool = False


class TriggerFiles:
    """Looks for the files every so many steps, and at most once a second; takes away what it has found.

    Args:
        checkpoint, stop: the files.
        check_interval: steps between two looks.
        clock: seconds of a monotonic clock.
    """

    def __init__(
        self, checkpoint: Path, stop: Path, check_interval: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.checkpoint, self.stop = checkpoint, stop
        self._interval, self._clock = check_interval, clock
        self._looked_at = -AT_MOST_EVERY_SECONDS
        self._stuck: set[Path] = set()

    def asked(self, step: int) -> Asked:
        """What is asked for after a step; the files that asked are gone then."""
        now = self._clock()
        if step % self._interval or now - self._looked_at < AT_MOST_EVERY_SECONDS:
            return Asked()
        self._looked_at = now
        found = Asked(self._take(self.checkpoint), self._take(self.stop))
        if found.checkpoint:
            say(f"{self.checkpoint} asks for a checkpoint")
        return found

    def clear(self) -> None:
        """Take away what was left before the run; it was not meant for this one."""
        for path in (self.checkpoint, self.stop):
            if self._take(path):
                warn(f"{path} was there before the run began: it is removed, and asks for nothing")

    def _take(self, path: Path) -> bool:
        if path in self._stuck:
            return False
        try:
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST:
                self._stuck.add(path)
                warn(f"{path} is no empty file, so it is left where it is and asks for nothing")
                return False
            path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            self._stuck.add(path)  # else it would ask again and again
            warn(f"{path} is obeyed once and cannot be removed ({error.strerror}): it asks for nothing more")
        return True


def trigger_files(resolved: ResolvedRun) -> TriggerFiles | None:
    """The files of a run with `dynamic_checkpoint`; None without."""
    section, output_dir = resolved.config.loop.dynamic_checkpoint, Path(resolved.output_dir)
    if section is None or not section.enabled:
        return None
    return TriggerFiles(
        Path(section.trigger_file_path or output_dir / CHECKPOINT_FILE),
        Path(section.stop_file_path or output_dir / STOP_FILE),
        section.check_interval,
    )
