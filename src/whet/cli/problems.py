"""How problems look on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from whet.core.errors import Problem
from whet.core.log import indented
from whet.core.printable import printable
from whet.core.secrets import redact

MOST_TOLD = 100
"""Problems that are printed; nobody mends more at once."""


def print_problems(problems: Sequence[Problem], kind: str = "error: ") -> None:
    """One ``error:`` line for each problem (``kind``: how it begins), and their number when there are several.

    Ranks other than the first say which they are: they meet the same mistakes, as a rule.
    """
    rank = int(os.environ.get("RANK", "0"))
    speaker = f"rank {rank}: " if rank else ""
    for problem in problems[:MOST_TOLD]:
        print_error_line(f"{speaker}{kind}{indented(problem)}")
    if len(problems) > 1:
        rest = f", the first {MOST_TOLD} above" if len(problems) > MOST_TOLD else ""
        print_error_line(f"{speaker}{len(problems):,} errors{rest}")


def print_error_line(line: str) -> None:
    """One line on standard error, without what is secret in it; nobody is told where that cannot be written."""
    with suppress(OSError, ValueError):
        sys.stderr.write(printable(redact(line)) + "\n")
