"""A command that is asked to end does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from whet.cli.endings import Ended, ended_by_signals


@pytest.fixture(autouse=True)
def as_a_process_starts() -> Iterator[None]:
    """Whatever an earlier test's libraries made of SIGTERM in this process."""
    answer = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, answer)


def asked_to_end_when_finalised(number: int) -> Iterator[None]:
    try:
        yield
    finally:
        signal.raise_signal(number)


def command(number: int) -> None:
    with ended_by_signals():
        dropped = asked_to_end_when_finalised(number)
        next(dropped)
        del dropped
        threading.Event().wait(30)


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, Ended), (signal.SIGINT, KeyboardInterrupt)])
def test_an_end_asked_for_while_an_object_is_finalised_is_not_lost(number: int, kind: type[BaseException]) -> None:
    """Python drops what is raised there, the answer to a signal too."""
    with pytest.raises(kind) as end:
        command(number)
    assert getattr(end.value, "number", signal.SIGINT) == number
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
