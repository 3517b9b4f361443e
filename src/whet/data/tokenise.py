"""Rows -> token ids and which of them are trained, many rows at a time.

The ids of a text are what its tokenizer says, nothing added and nothing searched for. A token is trained if its first
character is: the ranges of trained characters come with the text (`whet.data.templates.render`), and the tokenizer
says which characters each token stands for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np

from whet.config.config import Config
from whet.config.schema.data import DatasetConfig
from whet.core.errors import Problem, RowError
from whet.core.types import (
    Conversation,
    Document,
    Preference,
    PreferenceText,
    Prompt,
    Sample,
    Segment,
    Several,
    Stepwise,
    Tokens,
    Unpaired,
    UnpairedText,
)
from whet.data.conversations import ConversationWriter, answered, exploded, refuse_untrained
from whet.data.finishing import (
    Answers,
    AsUnpaired,
    Ends,
    Finish,
    Framed,
    Outcome,
    PromptIds,
    RawAnswers,
    Ready,
    Steps,
    Whole,
    all_or_error,
    as_preference,
)
from whet.data.formats import make_format
from whet.data.formats.base import CONFIGURED, format_identity
from whet.data.samples import Encoded, EncodedSample
from whet.data.templates.control_tokens import missing_tokens
from whet.data.templates.regions import Span, merged
from whet.data.templates.render import Rendered, Renderer, TrainPolicy
from whet.data.templates.resolve import dataset_place, policy_of, renderer_for, shipped_template, template_place
from whet.data.templates.traced import Traced, concat
from whet.data.texts import TextBatch, TextEncoder

CHARS_AT_ONCE = 8_000_000
"""Characters that are encoded together: twice a usual chunk, whose rows may each give many samples."""


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token or, where a character takes several, a group of them, as text; for looking at."""

    text: str
    ids: tuple[int, ...]
    supervised: bool


class SampleEncoder:
    """Reads, renders and tokenises the rows of one dataset.

    Args:
        dataset: its options.
        config: the config it belongs to.
        tokenizer: a fast tokenizer of transformers.
        today: the day that a template is told which asks for it.

    Attributes:
        cuts_long_rows: samples are raw text; one of more than ``sequence_len`` tokens is cut with `Encoded.chunks`.
        missing_tokens: what to tell of tokens that the template writes and the tokenizer lacks.

    Raises:
        ConfigError, DataError: the format, the chat template or the tokenizer cannot be used.
    """

    def __init__(self, dataset: DatasetConfig, config: Config, tokenizer: Any, today: date | None = None) -> None:
        self._format = make_format(dataset, config, tokenizer)
        self.cuts_long_rows: bool = self._format.cuts_long_rows
        self._policy = policy_of(config, dataset)
        self._explodes = dataset.explode_turns
        place = dataset_place(config, dataset)
        self._vocabulary = len(tokenizer)
        self._renderer: Renderer | None = None
        self.missing_tokens: Problem | None = None
        if self._format.template is not None:
            where = config.where((*place, "conversation"))
            own = None if self._format.template == CONFIGURED else shipped_template(self._format.template, where)
            self._renderer = renderer_for(config, dataset, tokenizer, own, today)
            text, named = self._renderer.template.text, where if own else template_place(config, dataset)
            self.missing_tokens = missing_tokens(text, tokenizer, named)
            keeps = dataset.keep_history or dataset.explode_turns
            self._writer = ConversationWriter(
                self._renderer, self._policy, keeps_history=keeps, where=config.where((*place, "type"))
            )
            self._answers = ConversationWriter(self._renderer, TrainPolicy(), keeps_history=True, where="")
        self._texts = TextEncoder(tokenizer, self._renderer.control if self._renderer else ())
        self._ends = Ends.of(tokenizer)

    def identity(self) -> dict[str, str]:
        """What decides, beside the options that were read and whet's code, what becomes of a row."""
        template = self._renderer.template.text if self._renderer else ""
        hashed = hashlib.sha256(template.encode()).hexdigest()[:32] if template else ""
        date = self._renderer.date if self._renderer else ""
        return {"template": hashed, "format": format_identity(self._format), "date": date}

    @property
    def engine(self) -> str:
        """What turns texts into ids, and why; empty before the first row."""
        return self._texts.engine

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """What becomes of each row, in order: its samples, or the reason why there are none."""
        outcomes: list[Outcome] = []
        waiting: list[Sequence[Finish] | RowError] = []
        batch = self._texts.batch()
        for row in rows:
            waiting.append(self._prepared(row, batch))
            if batch.num_chars > CHARS_AT_ONCE:
                outcomes += self._finished(waiting, batch)
                waiting, batch = [], self._texts.batch()
        return outcomes + self._finished(waiting, batch)

    def _finished(self, waiting: Sequence[Sequence[Finish] | RowError], batch: TextBatch) -> list[Outcome]:
        """The samples of rows whose texts are in a batch."""
        if self._renderer is not None:
            self._writer.check(batch)
        coded = self._texts.encode(batch)
        return [
            row if isinstance(row, RowError) else all_or_error([finish(coded) for finish in row]) for row in waiting
        ]

    def encode_rows(self, rows: Sequence[Mapping[str, Any]]) -> list[EncodedSample | RowError]:
        """As `encode`, one after the other: a row may give several samples."""
        return [
            sample
            for outcome in self.encode(rows)
            for sample in ((outcome,) if isinstance(outcome, RowError) else outcome)
        ]

    def _prepared(self, row: Mapping[str, Any], batch: TextBatch) -> Sequence[Finish] | RowError:
        """What is left to do for a row once the texts that are added to the batch have ids."""
        try:
            sample = self._format.read(row)
            if isinstance(sample, Conversation):
                refuse_untrained(sample, self._policy)
                parts = exploded(sample, self._policy) if self._explodes else [sample]
                return [Whole(self._writer.add(part, batch)) for part in parts]
            if isinstance(sample, Several):
                return [self._finish_of(part, batch) for part in sample.samples]
            return [self._finish_of(sample, batch)]
        except RowError as error:
            return error

    def _finish_of(self, sample: Sample, batch: TextBatch) -> Finish:
        """Add the texts of a sample to the batch; returns what makes the encoded sample of their ids."""
        if isinstance(sample, Conversation):
            refuse_untrained(sample, self._policy)
            return Whole(self._writer.add(sample, batch))
        if isinstance(sample, Tokens):
            return Ready(self._checked_tokens(sample))
        if isinstance(sample, Document):
            return Framed(batch.add(rendered_document(sample)), sample, self._ends)
        if isinstance(sample, Preference):
            pair = [answered(sample.prompt, answer, sample.tools) for answer in (sample.chosen, sample.rejected)]
            return Answers([self._answers.add(conversation, batch) for conversation in pair], as_preference)
        if isinstance(sample, PreferenceText):
            pairs = [_raw_answer(sample.prompt, answer) for answer in (sample.chosen, sample.rejected)]
            return RawAnswers([(batch.add(text), at) for text, at in pairs], self._ends, as_preference)
        if isinstance(sample, Unpaired):
            whole = answered(sample.prompt, sample.completion, sample.tools)
            return Answers([self._answers.add(whole, batch)], AsUnpaired(sample.label))
        if isinstance(sample, UnpairedText):
            text, at = _raw_answer(sample.prompt, sample.completion)
            return RawAnswers([(batch.add(text), at)], self._ends, AsUnpaired(sample.label))
        if isinstance(sample, Stepwise):
            pieces = [sample.prompt, *(step + sample.separator for step in sample.steps)]
            return Steps([batch.add(_plain(piece)) for piece in pieces], sample, self._ends)
        assert isinstance(sample, Prompt), f"a format gave {type(sample).__name__}, which is no sample"
        return self._finish_of_prompt(sample, batch)

    def _finish_of_prompt(self, sample: Prompt, batch: TextBatch) -> Finish:
        columns = dict(sample.columns) | ({} if sample.answer is None else {"answer": sample.answer})
        if sample.text is not None:
            return PromptIds(batch.add(_plain(sample.text)), columns)
        assert self._renderer is not None
        return PromptIds(batch.add(self._renderer.prompt(sample.turns, sample.tools)), columns)

    def _checked_tokens(self, sample: Tokens) -> Encoded:
        size = self._vocabulary
        wrong = next((token for token in sample.input_ids if not 0 <= token < size), None)
        if wrong is not None:
            raise RowError("unknown token id", f"{wrong} is not below {size}, the size of the tokenizer's vocabulary")
        return Encoded(np.array(sample.input_ids, np.int32), np.array(sample.supervised, np.bool_))


def rendered_document(document: Document) -> Rendered:
    """A raw text as one string, with the ranges of its trained segments.

    Traced segments are a row's own text in a prompt of ours: control tokens are refused in them.
    """
    spans = []
    at = 0
    for segment in document.segments:
        if segment.train:
            spans.append(Span(at, at + len(segment.text)))
        at += len(segment.text)
    text = concat([segment.text for segment in document.segments])
    runs = text.runs if isinstance(text, Traced) else ()
    return Rendered(str.__str__(text), merged(spans), merged(Span(run.begin, run.end) for run in runs))


def _raw_answer(prompt: str, answer: str) -> tuple[Rendered, int]:
    """A prompt with its answer as one raw text, and where the answer begins."""
    return rendered_document(Document((Segment(prompt, False), Segment(answer, True)))), len(prompt)


def _plain(text: str) -> Rendered:
    return rendered_document(Document((Segment(text, False),)))


def explain_tokens(encoded: Encoded, tokenizer: Any) -> list[TokenText]:
    """The sample as pieces of text with their labels, for a person to look at.

    Tokens that are parts of one character come together.
    """
    return list(_pieces(encoded.input_ids.tolist(), encoded.supervised.tolist(), tokenizer))


def _pieces(ids: list[int], labels: list[bool], tokenizer: Any) -> Iterator[TokenText]:
    group: list[int] = []
    for at, token in enumerate(ids):
        group.append(token)
        text = tokenizer.decode(group, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if text.endswith("\ufffd") and len(group) < 8 and at + 1 < len(labels) and labels[at + 1] == labels[at]:
            continue
        yield TokenText(text, tuple(group), labels[at])
        group = []
