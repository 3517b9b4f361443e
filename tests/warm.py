"""One fresh process for all tests of a file: each of its jobs runs in a fork of its own anyway."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from whet.artefacts.fresh import FreshProcess

MAKERS = ("whet.artefacts.prove_saved", "whet.artefacts.merge")
"""Modules that start one."""


@pytest.fixture(scope="module")
def warm() -> Iterator[FreshProcess]:
    """A fresh process, and the one that every command of this file's tests gets."""
    with FreshProcess(adapter=True) as process, pytest.MonkeyPatch.context() as patch:

        @contextmanager
        def the_same(**_: bool) -> Iterator[FreshProcess]:
            yield process

        for maker in MAKERS:
            patch.setattr(f"{maker}.FreshProcess", the_same)
        yield process
