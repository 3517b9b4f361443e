"""The data in the page: small, harmless as HTML, and all of what was there."""

from __future__ import annotations

import json

import numpy as np
from tests.unit.reports.inspections import a_row, a_text, an_inspection, piece

from whet.reports.page import page
from whet.reports.payload import as_json, payload
from whet.reports.pieces import Piece
from whet.reports.turns import Turn

MEGABYTE = 1_000_000


def test_a_thousand_rows_of_300_tokens_fit_in_five_megabytes() -> None:
    """With ids as spread over a vocabulary of 150,000 as those of real text (Zipf), and other texts for each."""
    random = np.random.default_rng(0)
    pieces = [piece(number, f" token{number}") for number in range(150_000)]
    rows = []
    for number in range(1000):
        drawn = np.minimum(random.zipf(1.2, 300), 149_999)
        trained = np.flatnonzero(np.arange(300) % 60 >= 25)
        turns = [Turn("user", 3, 22), Turn("assistant", 3, 32)] * 5
        rows.append(a_row(a_text([pieces[at] for at in drawn], trained, turns=turns), number=number))
    assert len(page(an_inspection(rows)).encode()) <= 5 * MEGABYTE


def test_rows_can_be_read_back_from_the_page() -> None:
    smile = Piece((5, 6, 7), "\U0001f642", (b"\xf0", b"\x9f\x99", b"\x82"))
    text = a_text([piece(1, "a"), smile, piece(1, "a"), piece(2, "b")], [1, 2, 3, 5], kept=5)
    data = json.loads(as_json(an_inspection([a_row(text)])))
    (line,) = data["rows"][0]["x"]
    ids = [token for entry in line["p"] for token in (np.atleast_1d(data["tokens"][entry][0]).tolist())]
    labels = [number % 2 == 1 for number, run in enumerate(line["l"]) for _ in range(run)]
    assert ids == [1, 5, 6, 7, 1, 2]
    assert labels == text.supervised.tolist()
    assert line["c"] == 1


def test_a_text_stands_once_however_often_it_is_used() -> None:
    rows = [a_row(a_text([piece(1, "again")] * 50, []), number=number) for number in range(20)]
    assert as_json(an_inspection(rows)).count('"again"') == 1


def test_no_text_can_end_the_script_element_that_holds_it() -> None:
    nasty = ["</script>", "<!--", "<img onerror=x>", "\u2028", "\x00", "\ud800", "]]>"]
    rows = [a_row(a_text([piece(number, text) for number, text in enumerate(nasty[:5])], [1]))]
    text = as_json(an_inspection(rows, name="</script>\ud800"))
    assert "<" not in text
    assert text.isascii()
    assert [token[1] for token in json.loads(text)["tokens"]] == nasty[:5]


def test_the_table_begins_with_what_is_used_most() -> None:
    rows = [a_row(a_text([piece(1, "rare"), *[piece(2, "common")] * 9], [1]))]
    assert [token[1] for token in payload(an_inspection(rows))["tokens"]] == ["common", "rare"]
