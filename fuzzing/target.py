"""What a target is, and what it may do."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from whet.core.errors import RowError, WhetError
from whet.core.log import indented

Shape = Literal["json", "json lines", "yaml", "template", "safetensors", "bytes"]


@dataclass(frozen=True)
class Target:
    """Something that reads what a stranger wrote.

    Attributes:
        read: gives the bytes to whet; the folder is empty at first, and stays between calls.
        seeds: name -> bytes that are right, or nearly.
        shape: how the bytes are mutated.
        packages: whose branches are counted, beside whet's own. Compiled code cannot be.
        runs: of `make fuzz`, at most.
        has_models: torch is imported, and a call takes milliseconds.
    """

    read: Callable[[Path, bytes], None]
    seeds: Callable[[], Mapping[str, bytes]]
    shape: Shape
    packages: tuple[str, ...] = ()
    runs: int = 20_000
    has_models: bool = False
    words: tuple[str, ...] = field(default=())


@contextmanager
def judged() -> Iterator[None]:
    """Within it, bytes are read, or refused with what was found, what to do, and nothing that drives a terminal."""
    try:
        yield
    except RowError:
        return
    except WhetError as error:
        problems = error.problems
    else:
        return
    assert problems, "an error that tells nothing"
    for problem in problems:
        assert problem.found, f"what was found is not told: {problem!r}"
        assert problem.fix, f"what to do is not told: {problem!r}"
        told = indented(problem)
        assert not any(unicodedata.category(each) == "Cc" and each not in "\n\t" for each in told), repr(told)
