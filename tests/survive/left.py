"""Who is left of a command: processes that it started, and that outlive it."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path


def left_of(session: int, seconds: float) -> list[str]:
    """Command lines of the processes of a session that have not ended in so many seconds."""
    until = time.monotonic() + seconds
    return [said for pid, said in _members(session) if not _ends(pid, until)]


def _members(session: int) -> list[tuple[int, str]]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, *_, owner = (process / "stat").read_text().rpartition(")")[2].split()[:4]
            said = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # it has ended meanwhile
            continue
        if int(owner) == session and state not in ("Z", "X"):
            found.append((int(process.name), said))
    return found


def _ends(pid: int, until: float) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], max(0.0, until - time.monotonic()))[0])
    finally:
        os.close(descriptor)
