"""What is done to a run from inside its process, at a moment that is counted and not timed.

Two clocks tick: ``calls`` (every call that Python makes in the main thread) and ``files`` (every open for writing,
rename, removal, link, folder and fsync inside the run's folder, by any thread; a native write of weights ticks three
times: before it, torn, and after it). Both can be counted within one function alone.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FILE_EVENTS = frozenset(
    {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Fault:
    """One thing that happens.

    Attributes:
        action: kill, power (kill, and what was not synced is torn), a signal's name, fill (the disk), enospc (every
            write from then on fails), raise, or a name of `ACTIONS`.
        clock: "calls", "files", or "" for none.
        within: ``module:function``; the clock ticks while it runs in the main thread. Empty: always.
        at: the tick at which it happens, from 1; 0: never.
        again: the tick of a second one (a second Ctrl-C), 0 for none.
    """

    action: str = "kill"
    clock: str = ""
    within: str = ""
    at: int = 0
    again: int = 0


class Faults:
    """Counts, and does what is asked at the tick it is asked for.

    Args:
        place: folder whose files count.
        phases: functions whose ticks are counted apart, as ``module:function``.
        fault: what to do; counts are kept in any case.
    """

    def __init__(self, place: Path, phases: tuple[str, ...], fault: Fault) -> None:
        self.place, self.fault = str(place), fault
        self.names = list(dict.fromkeys([*phases, *([fault.within] if fault.within else [])]))
        self.counts: dict[str, dict[str, int]] = {name: {"calls": 0, "files": 0} for name in ("", *self.names)}
        self.inside: dict[str, int] = {}
        self.unsynced: dict[str, int] = {}  # path -> bytes of it that are on the disk for sure
        self.full = False
        self.done = False
        self._busy = threading.local()
        self._process = os.getpid()

    def install(self) -> None:
        """From now on, for the rest of this process."""
        sys.addaudithook(self._audit)
        self._watch_native_writes()
        sync = os.fsync

        def fsync(descriptor: Any) -> None:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            path = os.readlink(f"/proc/self/fd/{number}")
            self._file(path)
            sync(descriptor)
            if path in self.unsynced:
                self.unsynced[path] = os.path.getsize(path)
            self._file(path)

        os.fsync = fsync
        for name in self.names:
            self._watch_phase(name)
        self._profile_where_needed()

    def remove(self) -> None:
        sys.setprofile(None)

    def _watch_phase(self, name: str) -> None:
        module, _, function = name.partition(":")
        *path, last = function.split(".")
        owner: Any = importlib.import_module(module)
        for part in path:
            owner = getattr(owner, part)
        original = getattr(owner, last)

        @functools.wraps(original)
        def watched(*arguments: Any, **options: Any) -> Any:
            self.inside[name] = self.inside.get(name, 0) + 1
            self._profile_where_needed()
            try:
                return original(*arguments, **options)
            finally:
                self.inside[name] -= 1
                self._profile_where_needed()

        setattr(owner, last, watched)

    def _profile_where_needed(self) -> None:
        """Calls are counted where they may matter only: it takes as long again as the run itself."""
        fault = self.fault
        needed = not fault.at or (fault.clock == "calls" and (not fault.within or self.inside.get(fault.within)))
        sys.setprofile(self._profile if needed and fault.clock == "calls" else None)

    # -- ticking ------------------------------------------------------------------------------------------------------

    def _profile(self, frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            self._tick("calls")

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & _WRITES)
            if writes and isinstance(path, str | bytes | os.PathLike):
                self._file(os.fsdecode(path), written=True)
        elif event in _FILE_EVENTS:
            self._file(os.fsdecode(arguments[0]) if not isinstance(arguments[0], int) else "")
            if event == "os.rename":
                self._renamed(os.fsdecode(arguments[0]), os.fsdecode(arguments[1]))

    def _renamed(self, old: str, new: str) -> None:
        old, new = os.path.abspath(old), os.path.abspath(new)
        for path in [path for path in self.unsynced if path == old or path.startswith(f"{old}/")]:
            self.unsynced[new + path[len(old) :]] = self.unsynced.pop(path)

    def _file(self, path: str, *, written: bool = False) -> None:
        absolute = os.path.abspath(path)
        if getattr(self._busy, "on", False) or not absolute.startswith(self.place):
            return
        if written:
            self.unsynced.setdefault(absolute, 0)
        self._tick("files")
        if self.full:
            raise OSError(28, os.strerror(28), path)

    def _tick(self, clock: str) -> None:
        for name in ("", *[name for name, depth in self.inside.items() if depth > 0]):
            self.counts[name][clock] += 1
        fault = self.fault
        if clock != fault.clock or (fault.within and not self.inside.get(fault.within)):
            return
        count = self.counts[fault.within][clock]
        if fault.at and count in (fault.at, fault.again) and os.getpid() == self._process:
            self._busy.on = True
            try:
                ACTIONS[fault.action](self)
            finally:
                self._busy.on = False
                self.done = True

    # -- native writers, which Python does not see ---------------------------------------------------------------

    def _watch_native_writes(self) -> None:
        import safetensors.torch
        import torch

        write, save = safetensors.torch.serialize_file, torch.save

        def serialize_file(tensors: Any, filename: Any, *rest: Any, **options: Any) -> None:
            self._native(lambda: write(tensors, filename, *rest, **options), os.fspath(filename), _SAFETENSORS_FULL)

        def torch_save(obj: Any, f: Any, *rest: Any, **options: Any) -> None:
            if isinstance(f, str | os.PathLike):
                self._native(lambda: save(obj, f, *rest, **options), os.fspath(f), _TORCH_FULL)
            else:
                save(obj, f, *rest, **options)

        safetensors.torch.serialize_file, torch.save = serialize_file, torch_save

    def _native(self, write: Callable[[], Any], path: str, complaint: str) -> None:
        try:
            self._file(path, written=True)
        except OSError as error:
            raise RuntimeError(complaint) from error
        write()
        if self.fault.action in ("kill", "power") and self._is_next("files"):
            os.truncate(path, os.path.getsize(path) // 2)  # what a death in the middle of the write leaves
        self._file(path)
        self._file(path)

    def _is_next(self, clock: str) -> bool:
        fault = self.fault
        counting = fault.clock == clock and (not fault.within or self.inside.get(fault.within))
        return bool(counting and self.counts[fault.within][clock] + 1 == fault.at)


_SAFETENSORS_FULL = "Error while serializing: I/O error: No space left on device (os error 28)"
_TORCH_FULL = "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"


def _kill(faults: Faults) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _power(faults: Faults) -> None:
    """The machine goes: of what was written and not synced, half is there."""
    for path, synced in faults.unsynced.items():
        with contextlib.suppress(OSError):
            os.truncate(path, synced + (os.path.getsize(path) - synced) // 2)
    os.kill(os.getpid(), signal.SIGKILL)


def _fill(faults: Faults) -> None:
    """Fill the disk that the place is on, to the last byte."""
    descriptor = os.open(f"{faults.place}/ballast", os.O_WRONLY | os.O_CREAT)
    block = b"\0" * (1 << 16)
    try:
        while True:
            try:
                os.write(descriptor, block)
            except OSError:
                if len(block) == 1:
                    return
                block = block[: max(1, len(block) // 16)]
    finally:
        os.close(descriptor)


def _enospc(faults: Faults) -> None:
    faults.full = True


def _raise(faults: Faults) -> None:
    raise ValueError("a fault of ours, made by a test")


ACTIONS: dict[str, Callable[[Faults], None]] = {
    "kill": _kill,
    "power": _power,
    "fill": _fill,
    "enospc": _enospc,
    "raise": _raise,
    # To the whole process group, as a terminal's Ctrl-C is.
    "SIGINT": lambda faults: os.killpg(0, signal.SIGINT),
    "SIGSTOP": lambda faults: os.kill(os.getpid(), signal.SIGSTOP),
    "SIGTERM": lambda faults: os.kill(os.getpid(), signal.SIGTERM),
    "SIGHUP": lambda faults: os.kill(os.getpid(), signal.SIGHUP),
}


def write_counts(faults: Faults, path: Path) -> None:
    """For the parent, which draws moments from them."""
    path.write_text(json.dumps({**faults.counts, "done": faults.done}))
