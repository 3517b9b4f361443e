"""A sample as its row has it: all of its tokens, those that were cut away included, and whose turn each one is.

The row is read and rendered again by the parts that prepared it. What comes out is believed only where its tokens are
those of the prepared sample, so a file that has changed since shows no wrong roles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from whet.config import Config, DatasetConfig
from whet.core.errors import RowError
from whet.core.types import Conversation, Document, Preference, Tokens
from whet.data.formats import make_format
from whet.data.formats.base import CONFIGURED
from whet.data.templates.render import Rendered, Renderer, TrainPolicy
from whet.data.templates.resolve import dataset_place, renderer_for, shipped_template

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Turn:
    """Neighbouring tokens of one message.

    Attributes:
        role: of the message; "" for text that is no message's.
        header: tokens that the template wrote before it.
        body: tokens of the message itself, with its stop token and the white space after that.
    """

    role: str
    header: int
    body: int


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """A sample before any limit.

    Attributes:
        ids: int32[T], of the whole row.
        turns: in order; their tokens are T in all. Empty where the row has no turns.
    """

    ids: Ids
    turns: tuple[Turn, ...] = ()

    def begins_with(self, ids: Ids) -> bool:
        return len(ids) <= len(self.ids) and np.array_equal(self.ids[: len(ids)], ids)


class RowReader:
    """Reads the rows of one dataset as the preparation did.

    Args:
        dataset: its options.
        config: the config it belongs to.
        tokenizer: a fast tokenizer of transformers.

    Attributes:
        stops: ids of the tokens that end a turn or a text.
        is_split: long rows are cut into several samples, so that one need not begin or end with its row.
    """

    def __init__(self, dataset: DatasetConfig, config: Config, tokenizer: Any) -> None:
        self._format = make_format(dataset, config)
        self._tokenizer = tokenizer
        self._renderer: Renderer | None = None
        self.is_split = self._format.cuts_long_rows
        if self._format.template is not None:
            where = config.where((*dataset_place(config, dataset), "conversation"))
            own = None if self._format.template == CONFIGURED else shipped_template(self._format.template, where)
            self._renderer = renderer_for(config, dataset, tokenizer, own)
        names = tuple(self._renderer.stops) if self._renderer else ()
        self.stops = frozenset({*tokenizer.convert_tokens_to_ids(list(names)), tokenizer.eos_token_id} - {None})

    def read(self, row: Mapping[str, Any]) -> tuple[Whole, ...]:
        """Every text of the row: one, or two for a preference; none where it cannot be read so."""
        try:
            sample = self._format.read(row)
            if isinstance(sample, Tokens):
                return (Whole(np.array(sample.input_ids, np.int32)),)
            if isinstance(sample, Document):
                return (self._document(sample),)
            if isinstance(sample, Conversation):
                return (self._conversation(sample),)
            if isinstance(sample, Preference):
                conversations = (Conversation((*sample.prompt, *answer), sample.tools) for answer in _answers(sample))
                return tuple(self._conversation(each, ends_with_answer=True) for each in conversations)
        except RowError:
            return ()
        return ()

    def _document(self, document: Document) -> Whole:
        ids, _ = self._encode("".join(str(segment.text) for segment in document.segments))
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        if document.add_bos and bos is not None and self._adds_bos() and ids[:1].tolist() != [bos]:
            ids = np.concatenate([np.array([bos], np.int32), ids])
        if document.add_eos and eos is not None and ids[-1:].tolist() != [eos]:
            ids = np.concatenate([ids, np.array([eos], np.int32)])
        return Whole(ids)

    def _adds_bos(self) -> bool:
        return bool(self._tokenizer("a")["input_ids"][:1] == [self._tokenizer.bos_token_id])

    def _conversation(self, conversation: Conversation, *, ends_with_answer: bool = False) -> Whole:
        assert self._renderer is not None, "a format that gives conversations says which template they need"
        rendered = self._renderer.render(conversation, TrainPolicy())
        ids, begins = self._encode(rendered.text)
        turns = turns_of(rendered, [turn.role for turn in conversation.turns], begins)
        if not ends_with_answer or not rendered.regions:
            return Whole(ids, turns)
        last = rendered.regions[-1]
        end = _token_at(begins, last.stop.end if last.stop else last.end)
        return Whole(ids[:end], first_tokens(turns, end))

    def _encode(self, text: str) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Ids, and the first character of each token."""
        coded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = np.array(coded["offset_mapping"], np.int64).reshape(-1, 2)
        return np.array(coded["input_ids"], np.int32), offsets[:, 0]


def _answers(sample: Preference) -> tuple[Any, Any]:
    return sample.chosen, sample.rejected


def turns_of(rendered: Rendered, roles: Sequence[str], begins: npt.NDArray[np.int64]) -> tuple[Turn, ...]:
    """The turns of a rendered conversation, in tokens.

    Args:
        rendered: the text with its regions.
        roles: of each message.
        begins: int64[T], first character of each token.
    """
    turns: list[Turn] = []
    at = 0
    for number, region in enumerate(rendered.regions):
        begin = _token_at(begins, region.begin)
        stop = region.stop.end if region.stop else region.end
        following = rendered.regions[number + 1].begin if number + 1 < len(rendered.regions) else len(rendered.text)
        while stop < following and rendered.text[stop].isspace():
            stop += 1
        end = _token_at(begins, stop)
        if max(begin, at) < end:
            turns.append(Turn(roles[region.message], max(begin, at) - at, end - max(begin, at)))
            at = end
    if at < len(begins) and turns:
        turns.append(Turn("", len(begins) - at, 0))
    return tuple(turns)


def first_tokens(turns: Sequence[Turn], count: int) -> tuple[Turn, ...]:
    """The turns of the first ``count`` tokens.

    >>> first_tokens([Turn("user", 2, 3), Turn("assistant", 2, 9)], 8)
    (Turn(role='user', header=2, body=3), Turn(role='assistant', header=2, body=1))
    """
    found = []
    for turn in turns:
        header = min(turn.header, count)
        body = min(turn.body, count - header)
        if header + body:
            found.append(Turn(turn.role, header, body))
        count -= header + body
    return tuple(found)


def _token_at(begins: npt.NDArray[np.int64], character: int) -> int:
    """The first token that begins at the character or after it."""
    return int(np.searchsorted(begins, character, side="left"))
