"""A sample made ready to be looked at: its pieces of text, their labels, whose turn they are, and what is odd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from whet.reports.pieces import REPLACEMENT, Piece, TokenTexts
from whet.reports.turns import Ids, Turn

#: Below this share of supervised tokens a sample costs far more than it teaches.
LOW_SHARE = 0.02

#: What may be odd about a sample: in few words, and why it matters.
WARNINGS = {
    "no_stop": ("no stop token is trained", "its trained text ends without one, so the model does not learn to stop"),
    "untrained_end": ("goes on after the last answer", "text behind the last trained token is not trained"),
    "cut": ("cut at sequence_len", "the end of its row is not in the sample"),
    "low_share": (f"less than {LOW_SHARE:.0%} trained", "it costs far more than it teaches"),
    "replacement": ("replacement characters", "it holds U+FFFD: the text was damaged before it came here"),
    "near_duplicate": ("nearly repeats another row", "the two of them share at least four fifths of their text"),
    "very_long": ("unusually long", "among the longest hundredth of its split, and more than twice the median"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """One line of tokens of a sample.

    Attributes:
        title: "" or, of a preference, which answer.
        pieces: in order.
        supervised: bool[T], over all tokens; whether each is a target.
        kept: the first so many tokens are in the sample; the rest was cut away.
        turns: whose tokens they are; empty where that is not known.
    """

    title: str
    pieces: tuple[Piece, ...]
    supervised: npt.NDArray[np.bool_]
    kept: int
    turns: tuple[Turn, ...]

    @property
    def num_cut(self) -> int:
        return len(self.supervised) - self.kept


@dataclass(frozen=True, slots=True, eq=False)
class ShownRow:
    """A sample to look at.

    Attributes:
        place: its row in the source.
        split: "train" or "validation".
        number: its number in the split.
        dataset: number of its dataset.
        length, supervised: tokens, and how many are targets.
        texts: one; of a preference two.
        warnings: keys of `WARNINGS`.
        like: place of an earlier row that it nearly repeats, or empty.
    """

    place: str
    split: str
    number: int
    dataset: int
    length: int
    supervised: int
    texts: tuple[Text, ...]
    warnings: tuple[str, ...]
    like: str = ""

    def warned(self, warning: str) -> ShownRow:
        """The row with one more warning."""
        return replace(self, warnings=(*self.warnings, warning))


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """A line of tokens as the prepared set has it.

    Attributes:
        title: "" or what distinguishes it from the sample's other line.
        ids: int32[T]; those that were cut away are the last.
        supervised: bool[T]; the first is False, as nothing predicts the first token.
        kept: the first so many are in the sample.
        is_target: it is text to be learnt, which has an end and a share that is trained.
    """

    title: str
    ids: Ids
    supervised: npt.NDArray[np.bool_]
    kept: int
    is_target: bool = True


def lines_of(split: Any, number: int, *, is_split: bool) -> list[Line]:
    """The lines of tokens of a sample, whatever its kind.

    Args:
        is_split: what lies behind a sample in its row is other samples, and was not cut away.
    """
    if hasattr(split, "pair"):
        prompt, chosen, rejected = split.pair(number)
        return [_answered("chosen", prompt, chosen), _answered("rejected", prompt, rejected)]
    if hasattr(split, "answer"):
        prompt, completion, is_wanted = split.answer(number)
        return [_answered("wanted" if is_wanted else "not wanted", prompt, completion)]
    if hasattr(split, "steps"):
        ids, judged, right = split.steps(number)
        verdicts = ", ".join("right" if each else "wrong" for each in right[judged])
        return [Line(f"steps: {verdicts}", ids, judged, len(ids), is_target=False)]
    if hasattr(split, "prompt"):
        ids, columns = split.prompt(number)
        title = "; ".join(f"{name}: {value}" for name, value in columns.items())
        return [Line(title, ids, np.zeros(len(ids), np.bool_), len(ids), is_target=False)]
    ids, supervised = split.tokens(number)
    rest = np.zeros(0, np.int32) if is_split else split.cut_tokens(number)
    targets = np.concatenate([supervised, np.zeros(len(rest), np.bool_)])
    targets[:1] = False
    return [Line("", np.concatenate([ids, rest]), targets, len(ids))]


def _answered(title: str, prompt: Ids, answer: Ids) -> Line:
    targets = np.zeros(len(prompt) + len(answer), np.bool_)
    targets[max(1, len(prompt)) :] = True
    return Line(title, np.concatenate([prompt, answer]), targets, len(targets))


def make_text(line: Line, turns: Sequence[Turn], texts: TokenTexts) -> Text:
    """A line of tokens as pieces of text."""
    changes = np.flatnonzero(line.supervised[1:] != line.supervised[:-1]) + 1
    pieces = texts.pieces(line.ids.tolist(), {*changes.tolist(), line.kept})
    return Text(line.title, tuple(pieces), line.supervised, line.kept, tuple(turns))


def odd(text: Text, stops: frozenset[int], *, ends_with_row: bool) -> list[str]:
    """The warnings that one line of tokens gives rise to.

    Args:
        stops: ids of tokens that end a turn or a text.
        ends_with_row: False for a piece of a longer text, which has no end to learn.
    """
    found = []
    trained = np.flatnonzero(text.supervised)
    if len(trained) and ends_with_row and not text.num_cut:
        last = int(trained[-1])
        ids = [token for piece in text.pieces for token in piece.ids]
        if ids[last] not in stops:
            found.append("no_stop")
        if _says_something(text.pieces, last + 1):
            found.append("untrained_end")
    if text.num_cut:
        found.append("cut")
    if len(trained) < LOW_SHARE * text.kept:
        found.append("low_share")
    if any(REPLACEMENT in piece.text and REPLACEMENT.encode() in b"".join(piece.parts) for piece in text.pieces):
        found.append("replacement")
    return found


def _says_something(pieces: Sequence[Piece], begin: int) -> bool:
    """Whether there are words from token ``begin`` on: more than white space and tokens of the template."""
    at = 0
    for piece in pieces:
        if at >= begin and not piece.special and piece.text.strip():
            return True
        at += len(piece.ids)
    return False
