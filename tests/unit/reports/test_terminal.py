"""Rows in the terminal: colours where there are some, marks where there are none, nothing to obey."""

from __future__ import annotations

from io import StringIO

from rich.console import Console
from tests.unit.reports.inspections import a_row, a_text, an_inspection, piece

from whet.data.ledger import Ledger
from whet.reports.inspection import Inspection
from whet.reports.terminal import print_inspection
from whet.reports.turns import Turn


def inspection() -> Inspection:
    pieces = [piece(9, "<s>", special=True), piece(1, "Hi\x1b[31m"), piece(2, " there"), piece(3, " gone")]
    text = a_text(pieces, [2], kept=3, turns=[Turn("user", 1, 1), Turn("assistant", 0, 2)])
    ledger = Ledger("chat", read=2, kept=1, samples=1)
    ledger.drop("not valid JSON", "chat.jsonl:7", "unexpected end")
    return an_inspection([a_row(text, warnings=["cut"])], ledger=ledger)


def printed(colours: bool) -> str:
    file = StringIO()
    console = Console(file=file, width=120, force_terminal=colours, color_system="truecolor" if colours else None)
    print_inspection(inspection(), console)
    return file.getvalue()


def test_without_colours_what_is_trained_stands_between_marks() -> None:
    text = printed(colours=False)
    assert "<s>Hi‹ESC›[31m[[ there]]~~ gone~~" in text
    assert "\x1b" not in text


def test_with_colours_the_text_is_unchanged_and_nothing_of_a_row_is_obeyed() -> None:
    text = printed(colours=True)
    assert "[[" not in text
    assert "\x1b[32m there" in text
    assert "\x1b[31m" not in text


def test_tables_tell_of_roles_warnings_and_what_was_dropped() -> None:
    text = printed(colours=False)
    assert "chat.jsonl:1  (chat, train)  3 tokens, 33% trained" in text
    assert "! cut at sequence_len: the end of its row is not in the sample" in text
    for words in ("assistant", "template", "dropped: not valid JSON", "chat.jsonl:7", "a.jsonl:2"):
        assert words in text
