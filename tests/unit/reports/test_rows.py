"""What is odd about a sample, and the lines of tokens of every kind of sample."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from tests.unit.reports.inspections import a_text, piece

from whet.reports.pieces import Piece
from whet.reports.rows import Text, lines_of, odd

STOP = piece(9, "<end>", special=True)
NEWLINE = piece(2, "\n")
STOPS = frozenset({9})


def words(count: int) -> list[Piece]:
    return [piece(10 + number, f" w{number}") for number in range(count)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (a_text([*words(4), STOP, NEWLINE], [2, 3, 4]), []),
        (a_text([*words(4), STOP, NEWLINE], [2, 3]), ["no_stop"]),
        (a_text([*words(4), STOP, *words(2), STOP], [2, 3, 4]), ["untrained_end"]),
        (a_text([*words(4), STOP, *words(2)], [2, 3, 4], kept=5), ["cut"]),
        (a_text([*words(99), STOP], [99]), ["low_share"]),
        (a_text([piece(1, "a\ufffd"), STOP], [1]), ["replacement"]),
        # Half a character at the end of a piece of text is no damage.
        (a_text([Piece((1,), "\ufffd", (b"\xf0",)), STOP], [1]), []),
    ],
)
def test_a_warning_says_what_is_odd_and_nothing_else(text: Text, expected: list[str]) -> None:
    assert odd(text, STOPS, ends_with_row=True) == expected


def test_a_piece_of_a_longer_text_has_no_end_to_learn() -> None:
    assert odd(a_text(words(4), [1, 2, 3]), STOPS, ends_with_row=False) == []


def ids(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(numbers, np.int32)


def test_the_first_token_is_no_target_and_what_was_cut_is_shown() -> None:
    split = SimpleNamespace(tokens=lambda _: (ids(1, 2, 3), np.ones(3, np.bool_)), cut_tokens=lambda _: ids(4, 5))
    (line,) = lines_of(split, 0, is_split=False)
    assert line.ids.tolist() == [1, 2, 3, 4, 5]
    assert line.supervised.tolist() == [False, True, True, False, False]
    assert line.kept == 3
    (piece_of_text,) = lines_of(split, 0, is_split=True)
    assert piece_of_text.ids.tolist() == [1, 2, 3]


def test_a_preference_is_two_lines_of_which_the_answers_are_trained() -> None:
    split = SimpleNamespace(pair=lambda _: (ids(1, 2), ids(3), ids(4, 5)))
    chosen, rejected = lines_of(split, 0, is_split=False)
    assert (chosen.title, chosen.ids.tolist(), chosen.supervised.tolist()) == (
        "chosen",
        [1, 2, 3],
        [False, False, True],
    )
    assert (rejected.title, rejected.ids.tolist()) == ("rejected", [1, 2, 4, 5])


def test_other_kinds_say_in_their_title_what_tokens_do_not() -> None:
    unpaired = SimpleNamespace(answer=lambda _: (ids(1), ids(2), False))
    steps = SimpleNamespace(steps=lambda _: (ids(1, 2, 3), np.array([0, 1, 1], bool), np.array([0, 1, 0], bool)))
    prompts = SimpleNamespace(prompt=lambda _: (ids(1, 2), {"answer": "7"}))
    assert [line.title for line in lines_of(unpaired, 0, is_split=False)] == ["not wanted"]
    assert [line.title for line in lines_of(steps, 0, is_split=False)] == ["steps: right, wrong"]
    (prompt,) = lines_of(prompts, 0, is_split=False)
    assert prompt.title == "answer: 7"
    assert not prompt.supervised.any()
