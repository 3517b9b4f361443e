"""What commands print: tables and samples, for people and for pipes."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from whet.cli.explain import as_yaml
from whet.cli.show_tokens import as_text, as_tokens
from whet.cli.tables import print_rows
from whet.core.printable import printable
from whet.data.tokenise import TokenText

PIECES = [TokenText("Hi", (1,), False), TokenText("é", (2, 3), True), TokenText("<e>", (4,), True)]


def test_without_colours_what_is_trained_is_marked() -> None:
    assert as_text(PIECES, colours=False).plain == "Hi[[é<e>]]"
    assert as_tokens(PIECES, colours=False).plain == "Hi(-100, 1) é(2+3, 2+3) <e>(4, 4) "


def test_with_colours_the_text_is_unchanged_and_styled() -> None:
    shown = as_text(PIECES, colours=True)
    assert shown.plain == "Hié<e>"
    assert [(shown.plain[span.start : span.end], span.style) for span in shown.spans] == [
        ("Hi", "red"),
        ("é<e>", "green"),
    ]


def test_rows_for_a_pipe_are_separated_by_tabs_without_a_header(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(("key", "value"), [("a", "1"), ("b", "two words")])
    assert capsys.readouterr().out == "a\t1\nb\ttwo words\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-4, "0.0001"),
        ("a: b", "a: b"),
        ("a\nb", '"a\\nb"'),
        (MappingProxyType({"a": (1, None)}), '{"a": [1, null]}'),
        (["é"], '["é"]'),
    ],
)
def test_values_are_shown_as_yaml_has_them_on_one_line(value: object, text: str) -> None:
    assert as_yaml(value) == text


def test_a_model_cannot_send_control_characters_to_the_terminal() -> None:
    assert printable("a\x1b]0;x\x07\r\x7f\x9bb\tc\n") == "a␛]0;x␇␍␡␡b\tc\n"
