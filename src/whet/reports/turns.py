"""Whose turn each token of a sample is.

A prepared set keeps tokens; who said them stands in the row. The row is read and rendered again by the parts that
prepared it, and what comes out is believed only where its tokens are those of the sample, so a file that has changed
since shows no wrong roles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from whet.config import Config, DatasetConfig
from whet.core.errors import RowError
from whet.core.types import Conversation, Preference, Prompt, Sample, Several, Unpaired
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


class RowReader:
    """Reads the rows of one dataset as the preparation did.

    Args:
        dataset: its options.
        config: the config it belongs to.
        tokenizer: a fast tokenizer of transformers.

    Attributes:
        stops: ids of the tokens that end a turn or a text.
        is_split: long rows are cut into several samples, so that one need not begin or end with its row.
        has_turns: its rows are messages.
    """

    def __init__(self, dataset: DatasetConfig, config: Config, tokenizer: Any) -> None:
        self._format = make_format(dataset, config, tokenizer)
        self._tokenizer = tokenizer
        self._renderer: Renderer | None = None
        self.is_split: bool = self._format.cuts_long_rows
        if self._format.template is not None:
            where = config.where((*dataset_place(config, dataset), "conversation"))
            own = None if self._format.template == CONFIGURED else shipped_template(self._format.template, where)
            self._renderer = renderer_for(config, dataset, tokenizer, own)
        self.has_turns = self._renderer is not None
        names = list(self._renderer.stops) if self._renderer else []
        self.stops = frozenset({*tokenizer.convert_tokens_to_ids(names), tokenizer.eos_token_id} - {None})

    def turns(self, row: Mapping[str, Any], ids: Ids) -> tuple[Turn, ...]:
        """Whose turn each of these ids is; empty where they are not what the row gives.

        Args:
            ids: int32[T], of a sample of this row: all of them, or the first of a conversation that ends in an answer.
        """
        if self._renderer is None:
            return ()
        try:
            sample = self._format.read(row)
            for conversation in _conversations(sample):
                turns = self._turns_of(conversation, ids, is_prompt=isinstance(sample, Prompt))
                if turns:
                    return turns
        except RowError:
            return ()
        return ()

    def _turns_of(self, conversation: Conversation, ids: Ids, *, is_prompt: bool) -> tuple[Turn, ...]:
        """The turns of ids that begin the render of a conversation; a prompt's ids go on with its generation prompt."""
        assert self._renderer is not None
        rendered = self._renderer.render(conversation, TrainPolicy())
        coded = self._tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        common = min(len(coded["input_ids"]), len(ids)) if is_prompt else len(ids)
        if coded["input_ids"][:common] != ids[:common].tolist():
            return ()
        begins = np.array(coded["offset_mapping"], np.int64).reshape(-1, 2)[:, 0]
        turns = turns_of(rendered, [turn.role for turn in conversation.turns], begins)
        rest = (Turn("", len(ids) - common, 0),) if common < len(ids) else ()
        return (*first_tokens(turns, common), *rest)


def _conversations(sample: Sample) -> Iterator[Conversation]:
    """The conversations that a row may have given, longer ones first: the ids of one may begin another's."""
    if isinstance(sample, Several):
        for one in sample.samples:
            yield from _conversations(one)
    if isinstance(sample, Conversation):
        yield sample
        for end in range(len(sample.turns) - 1, 0, -1):  # an answer may be a sample of its own (explode_turns)
            if sample.turns[end - 1].role == "assistant":
                yield Conversation(sample.turns[:end], sample.tools)
    if isinstance(sample, Prompt) and sample.turns:
        yield Conversation(sample.turns, sample.tools)
    if isinstance(sample, Preference):
        for answer in (sample.chosen, sample.rejected):
            yield Conversation((*sample.prompt, *answer), sample.tools)
    if isinstance(sample, Unpaired):
        yield Conversation((*sample.prompt, *sample.completion), sample.tools)


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
