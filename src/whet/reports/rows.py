"""A sample made ready to be looked at: its pieces of text, their labels, whose turn they are, and what is odd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from whet.reports.pieces import REPLACEMENT, Piece, TokenTexts
from whet.reports.turns import Ids, Turn, Whole, first_tokens

#: Below this share of supervised tokens a sample costs far more than it teaches.
LOW_SHARE = 0.02

#: What may be odd about a sample: its key, and what to say of it.
WARNINGS = {
    "no_stop": "no stop token is trained at its end, so the model does not learn to stop there",
    "untrained_end": "text after the last trained token is not trained",
    "cut": "cut at sequence_len",
    "low_share": f"less than {LOW_SHARE:.0%} of its tokens are trained",
    "replacement": "holds replacement characters (U+FFFD): the text was damaged before it came here",
    "near_duplicate": "nearly the same as another row",
    "very_long": "among the longest hundredth of its split, and twice as long as the median",
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
    """

    place: str
    split: str
    number: int
    dataset: int
    length: int
    supervised: int
    texts: tuple[Text, ...]
    warnings: tuple[str, ...]


def labelled_texts(split: Any, number: int) -> list[tuple[str, Ids, npt.NDArray[np.bool_]]]:
    """The lines of tokens of a sample as (title, ids int32[T], targets bool[T]).

    The first token of a sample is no target, as nothing predicts it.
    """
    if hasattr(split, "pair"):
        prompt, chosen, rejected = split.pair(number)
        return [_answer("chosen", prompt, chosen), _answer("rejected", prompt, rejected)]
    ids, supervised = split.tokens(number)
    targets = np.array(supervised, dtype=np.bool_)
    targets[:1] = False
    return [("", ids, targets)]


def _answer(title: str, prompt: Ids, answer: Ids) -> tuple[str, Ids, npt.NDArray[np.bool_]]:
    targets = np.zeros(len(prompt) + len(answer), np.bool_)
    targets[max(1, len(prompt)) :] = True
    return title, np.concatenate([prompt, answer]), targets


def make_text(title: str, ids: Ids, supervised: npt.NDArray[np.bool_], whole: Whole | None, texts: TokenTexts) -> Text:
    """One line of tokens with what its row says of it; ``whole`` counts only if it begins with these ids."""
    kept = len(ids)
    turns: tuple[Turn, ...] = ()
    if whole is not None and whole.begins_with(ids):
        ids, turns = whole.ids, first_tokens(whole.turns, len(whole.ids))
    labels = np.concatenate([supervised, np.zeros(len(ids) - kept, np.bool_)])
    changes = np.flatnonzero(labels[1:] != labels[:-1]) + 1
    starts = accumulate((size for turn in turns for size in (turn.header, turn.body)), initial=0)
    pieces = texts.pieces(ids.tolist(), {*changes.tolist(), *starts, kept})
    return Text(title, tuple(pieces), labels, kept, turns)


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
