"""A process that shall not outlive the one that started it."""

from __future__ import annotations

import sys

_PR_SET_PDEATHSIG = 1
"""From Linux's ``<sys/prctl.h>``."""


def signal_at_parents_end(number: int) -> None:
    """Let Linux send this process a signal when the one that started it ends, however that ended.

    Strictly: when the thread of it ends that started this one. Other systems have no such request, and nothing happens.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
