"""At which commit the folder of a config stands, asked of git where there is one."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from whet.core.secrets import redact

_PATIENCE_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Revision:
    """The state of a repository.

    Attributes:
        commit: of what is checked out; None in a repository without one.
        branch: its name; None where none is checked out.
        dirty: whether tracked files differ from the commit; None where git gave no answer in time.
        file_is_committed: whether the file that was asked for is as in the commit; False where git does not know it.
        remote: address of ``origin``, without user and password.
    """

    commit: str | None
    branch: str | None
    dirty: bool | None
    file_is_committed: bool | None
    remote: str | None


def revision_of(file: Path) -> Revision | None:
    """The revision of the folder that holds a file; None outside of a repository or without git."""
    folder = file.parent if str(file.parent) else Path()
    if _git(folder, "rev-parse", "--is-inside-work-tree") != "true":
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    own = _git(folder, "status", "--porcelain", "--ignored", "--", file.name)
    remote = _git(folder, "remote", "get-url", "origin")
    return Revision(
        commit=_git(folder, "rev-parse", "--verify", "HEAD"),
        branch=_git(folder, "symbolic-ref", "--short", "HEAD"),
        dirty=None if changes is None else bool(changes),
        file_is_committed=None if own is None else not own,
        remote=None if remote is None else _without_user(remote),
    )


def _without_user(remote: str) -> str:
    """The address without the part before ``@``, be it a password, a token or a name.

    >>> _without_user("https://oauth2:abc@host/a.git"), _without_user("git@host:a.git")
    ('https://host/a.git', 'git@host:a.git')
    """
    scheme, found, rest = remote.partition("://")
    if not found:
        return redact(remote)
    authority, slash, path = rest.partition("/")
    return redact(f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}")


def _git(folder: Path, *words: str) -> str | None:
    """What git answers; None where it refuses, is not there, or is not done in time. It asks for no password and no
    lock, and runs no hook of the repository."""
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *words],
            capture_output=True, text=True, timeout=_PATIENCE_SECONDS, env=environment, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
