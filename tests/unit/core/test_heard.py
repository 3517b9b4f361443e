"""What is warned of is taken down, once with its number, and shown as it was before."""

from __future__ import annotations

import io
import logging
import threading
import warnings
from collections.abc import Iterator

import pytest

from whet.core.heard import MOST_WARNINGS, Heard, hearing


@pytest.fixture
def library() -> Iterator[logging.Logger]:
    """The logger of a library whose terminal shows errors alone."""
    logger = logging.getLogger("a_library")
    handler = logging.StreamHandler(io.StringIO())
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.ERROR)
    yield logger
    logger.removeHandler(handler)


def test_a_warning_is_kept_once_with_its_number(library: logging.Logger) -> None:
    with hearing(Heard(), ("a_library",)) as heard:
        for _ in range(3):
            logging.getLogger("a_library.part").warning("the %s is old", "thing")
        library.info("nobody wants to know")
        library.error("and broken")
    library.warning("after the end")
    told = [(each.source, each.text, each.count) for each in heard.told()]
    assert told == [("a_library.part", "the thing is old", 3), ("a_library", "and broken", 1)]
    terminal = library.handlers[0]
    assert isinstance(terminal, logging.StreamHandler)
    assert terminal.stream.getvalue() == "and broken\n", "what the terminal did not show, it does not show now"
    assert library.level == logging.ERROR
    assert not library.isEnabledFor(logging.WARNING)


def test_python_warnings_are_kept_and_shown() -> None:
    with warnings.catch_warnings(record=False), pytest.MonkeyPatch.context() as patch:
        shown: list[str] = []
        warnings.simplefilter("always")
        patch.setattr(warnings, "showwarning", lambda message, *_, **__: shown.append(str(message)))
        with hearing(Heard(), ()) as heard:
            warnings.warn("old way", DeprecationWarning, stacklevel=1)
    assert shown == ["old way"]
    assert [(each.source, each.text) for each in heard.told()] == [("DeprecationWarning", "old way")]


def test_there_is_a_limit_and_it_is_said() -> None:
    calls: list[int] = []
    heard = Heard(lambda heard: calls.append(len(heard.told())))
    for number in range(MOST_WARNINGS + 5):
        heard.add("x", f"warning {number}")
    assert len(calls) == MOST_WARNINGS
    last = heard.told()[-1]
    assert (last.text, last.count) == ("further warnings, not kept", 5)


def test_secrets_are_not_kept() -> None:
    heard = Heard()
    heard.add("x", "could not reach https://me:hunter2@host/")
    assert heard.told()[0].text == "could not reach https://***@host/"


def test_a_thread_that_still_notes_a_warning_keeps_no_other_from_warning() -> None:
    """The record of a run notes what is heard under its lock, and warns under it when it cannot be written."""
    logger = logging.getLogger("a_library")
    is_noting, is_over = threading.Event(), threading.Event()

    def note(heard: Heard) -> None:
        if threading.current_thread() is notes:
            is_noting.set()
            is_over.wait()

    notes = threading.Thread(target=lambda: logger.warning("of the one"), daemon=True)
    warns = threading.Thread(target=lambda: logger.warning("of the other"), daemon=True)
    with hearing(Heard(note), ("a_library",)) as heard:
        notes.start()
        assert is_noting.wait(10)
        warns.start()
        warns.join(10)
        was_kept = warns.is_alive()
        is_over.set()
        notes.join()
    assert not was_kept
    assert [each.text for each in heard.told()] == ["of the one", "of the other"]
