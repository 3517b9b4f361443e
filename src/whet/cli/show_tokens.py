"""``whet preprocess --debug``: samples as they will be trained, each token with its label."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.text import Text

from whet.core.printable import printable
from whet.data.samples import Encoded
from whet.data.store import AnySplit, PreparedSet, PromptSplit, Split, StepwiseSplit, UnpairedSplit
from whet.data.tokenise import TokenText, explain_tokens

SUPERVISED_STYLE = "green"
CONTEXT_STYLE = "red"

# Where there are no colours, what is trained stands between these.
SUPERVISED_MARKS = ("[[", "]]")


def print_samples(prepared: PreparedSet, tokenizer: Any, *, count: int, text_only: bool) -> None:
    """Print the first ``count`` training samples on standard output.

    Args:
        text_only: the text alone; otherwise each token as ``text(label, id)``, the label -100 where it is no target.
    """
    console = Console(soft_wrap=True, highlight=False)
    colours = sys.stdout.isatty()
    console.print(_legend(colours))
    for number in range(min(count, len(prepared.train))):
        for title, encoded in _encoded(prepared.train, number):
            pieces = explain_tokens(encoded, tokenizer)
            num_trained = int(encoded.supervised.sum())
            head = f"\n{prepared.train.place(number)}{title}: {len(encoded)} tokens, {num_trained} trained"
            console.print(Text(printable(head), style="bold" if colours else ""))
            console.print(as_text(pieces, colours) if text_only else as_tokens(pieces, colours))


def as_text(pieces: list[TokenText], colours: bool) -> Text:
    """The sample's text; what is trained is coloured, or marked where there are no colours."""
    shown = Text()
    for supervised, run in groupby(pieces, key=lambda piece: piece.supervised):
        text = printable("".join(piece.text for piece in run))
        if colours:
            shown.append(text, style=_style(supervised))
        else:
            shown.append(text.join(SUPERVISED_MARKS) if supervised else text)
    return shown


def as_tokens(pieces: list[TokenText], colours: bool) -> Text:
    """``text(label, id)`` for each token, parts of one character together."""
    shown = Text()
    for piece in pieces:
        ids = "+".join(map(str, piece.ids))
        label = ids if piece.supervised else "-100"
        shown.append(printable(piece.text), style=_style(piece.supervised) if colours else "")
        shown.append(f"({label}, {ids}) ", style="dim" if colours else "")
    return shown


def _legend(colours: bool) -> Text:
    if not colours:
        return Text(f"trained text stands between {' and '.join(SUPERVISED_MARKS)}; a label of -100 is not trained")
    return Text.assemble(("trained", SUPERVISED_STYLE), " and ", ("not trained", CONTEXT_STYLE))


def _style(supervised: bool) -> str:
    return SUPERVISED_STYLE if supervised else CONTEXT_STYLE


def _encoded(split: AnySplit, number: int) -> Iterator[tuple[str, Encoded]]:
    """The sample as lines of tokens; a prompt comes with each of its answers."""
    if isinstance(split, Split):
        yield "", Encoded(*split.tokens(number))
    elif isinstance(split, StepwiseSplit):
        ids, judged, right = split.steps(number)
        yield f", {int(right.sum())} of {int(judged.sum())} judged steps right", Encoded(ids, judged)
    elif isinstance(split, PromptSplit):
        ids, _ = split.prompt(number)
        yield ", prompt", Encoded(ids, np.zeros(len(ids), np.bool_))
    elif isinstance(split, UnpairedSplit):
        prompt, completion, wanted = split.answer(number)
        yield ", wanted" if wanted else ", not wanted", _answered(prompt, completion)
    else:
        prompt, chosen, rejected = split.pair(number)
        yield ", chosen", _answered(prompt, chosen)
        yield ", rejected", _answered(prompt, rejected)


def _answered(prompt: npt.NDArray[np.int32], answer: npt.NDArray[np.int32]) -> Encoded:
    targets = np.concatenate([np.zeros(len(prompt), np.bool_), np.ones(len(answer), np.bool_)])
    return Encoded(np.concatenate([prompt, answer]), targets)
