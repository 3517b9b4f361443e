"""Rows -> token ids and which of them are trained, many rows at a time.

The ids of a text are what its tokenizer says, nothing added and nothing searched for. A token is trained if its first
character is: the ranges of trained characters come with the text (`whet.data.templates.render`), and the tokenizer
says which characters each token stands for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whet.config.config import Config
from whet.config.schema.data import DatasetConfig
from whet.core.errors import RowError
from whet.core.log import warn
from whet.core.types import (
    Conversation,
    Document,
    Preference,
    PreferenceText,
    Prompt,
    Sample,
    Segment,
    Stepwise,
    Tokens,
    Unpaired,
    UnpairedText,
)
from whet.data.formats import make_format
from whet.data.formats.base import CONFIGURED, format_identity
from whet.data.ledger import HISTORY_CHOICE, REWRITTEN
from whet.data.samples import (
    Encoded,
    EncodedPreference,
    EncodedPrompt,
    EncodedSample,
    EncodedStepwise,
    EncodedUnpaired,
    Ids,
)
from whet.data.templates.history import Change, history_change, trained_answers
from whet.data.templates.regions import Span, merged
from whet.data.templates.render import Rendered, Renderer, TrainPolicy
from whet.data.templates.resolve import dataset_place, policy_of, renderer_for, shipped_template
from whet.data.templates.skeleton import Skeletons
from whet.data.templates.traced import Traced, concat
from whet.data.texts import Coded, TextBatch, TextEncoder

Outcome = tuple[EncodedSample, ...] | RowError

#: The answers of a preference are what the assistant says, whatever a dataset trains.
_ANSWERS = TrainPolicy()


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token or, where a character takes several, a group of them, as text; for looking at."""

    text: str
    ids: tuple[int, ...]
    supervised: bool


#: What is left to do for a sample once its texts have ids.
_Finish = Callable[[Coded], EncodedSample | RowError]


class SampleEncoder:
    """Reads, renders and tokenises the rows of one dataset.

    Args:
        dataset: its options.
        config: the config it belongs to.
        tokenizer: a fast tokenizer of transformers.

    Attributes:
        cuts_long_rows: samples are raw text; one of more than ``sequence_len`` tokens is cut with `Encoded.chunks`.

    Raises:
        ConfigError, DataError: the format, the chat template or the tokenizer cannot be used.
    """

    def __init__(self, dataset: DatasetConfig, config: Config, tokenizer: Any) -> None:
        self._format = make_format(dataset, config)
        self.cuts_long_rows: bool = self._format.cuts_long_rows
        self._policy = policy_of(config, dataset)
        self._explodes, self._keeps_history = dataset.explode_turns, dataset.keep_history
        self._where = config.where((*dataset_place(config, dataset), "type"))
        self._vocabulary = len(tokenizer)
        self._renderer: Renderer | None = None
        if self._format.template is not None:
            where = config.where((*dataset_place(config, dataset), "conversation"))
            own = None if self._format.template == CONFIGURED else shipped_template(self._format.template, where)
            self._renderer = renderer_for(config, dataset, tokenizer, own)
            self._skeletons = Skeletons(self._renderer, self._policy, self._refuse_rewritten)
        self._texts = TextEncoder(tokenizer, self._renderer.control if self._renderer else ())
        self._bos, self._eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._adds_bos = _adds_bos(tokenizer)
        self._warned = False

    def identity(self) -> dict[str, str]:
        """What decides, beside the options that were read and whet's code, what becomes of a row."""
        template = self._renderer.template.text if self._renderer else ""
        hashed = hashlib.sha256(template.encode()).hexdigest()[:32] if template else ""
        return {"template": hashed, "format": format_identity(self._format)}

    @property
    def engine(self) -> str:
        """What turns texts into ids, and why; empty before the first row."""
        return self._texts.engine

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """What becomes of each row, in order: its samples, or the reason why there are none."""
        batch = self._texts.batch()
        prepared = [self._prepared(row, batch) for row in rows]
        self._check_one(prepared, batch)
        coded = self._texts.encode(batch)
        return [
            row if isinstance(row, RowError) else _all_or_error([finish(coded) for finish in row.finishes])
            for row in prepared
        ]

    def encode_rows(self, rows: Sequence[Mapping[str, Any]]) -> list[EncodedSample | RowError]:
        """As `encode`, one after the other: a row may give several samples."""
        return [
            sample
            for outcome in self.encode(rows)
            for sample in ((outcome,) if isinstance(outcome, RowError) else outcome)
        ]

    def _check_one(self, prepared: Sequence[_Prepared | RowError], batch: TextBatch) -> None:
        """One render of every batch is compared with transformers' own: training on another text must not happen."""
        if self._renderer is not None:
            for row in prepared:
                if isinstance(row, _Prepared) and row.conversation is not None:
                    self._renderer.check(row.conversation, batch.texts[row.text])
                    return

    def _prepared(self, row: Mapping[str, Any], batch: TextBatch) -> _Prepared | RowError:
        try:
            sample = self._format.read(row)
            if isinstance(sample, Conversation):
                return self._prepared_conversation(sample, batch)
            return _Prepared([self._finish_of(sample, batch)])
        except RowError as error:
            return error

    # -- conversations -----------------------------------------------------------------------------------------------

    def _prepared_conversation(self, conversation: Conversation, batch: TextBatch) -> _Prepared:
        self._refuse_untrained(conversation)
        parts = self._exploded(conversation) if self._explodes else [conversation]
        numbers = [self._add(part, batch) for part in parts]
        return _Prepared([_Whole(number) for number in numbers], parts[0], numbers[0])

    def _exploded(self, conversation: Conversation) -> list[Conversation]:
        """A conversation for each trained answer, which is its last turn and all that is trained of it."""
        turns = conversation.turns
        return [
            Conversation(
                (*(turn._replace(train=False, details=()) for turn in turns[:at]), turns[at]._replace(train=True)),
                conversation.tools,
            )
            for at in trained_answers(conversation, self._policy)
        ]

    def _add(self, conversation: Conversation, batch: TextBatch) -> int:
        found = self._skeletons.find(conversation)
        if found is not None:
            return batch.fill(*found)
        assert self._renderer is not None
        rendered = self._renderer.render(conversation, self._policy)
        renderer, policy = self._renderer, self._policy
        self._refuse_rewritten(conversation, rendered, lambda part: renderer.render(part, policy))
        return batch.add(rendered)

    def _refuse_untrained(self, conversation: Conversation) -> None:
        turns = conversation.turns
        if not any(self._policy.trains(turn.role) if turn.train is None else turn.train for turn in turns):
            if any(detail.train for turn in turns for detail in turn.details):
                return
            wanted = " or ".join(sorted(self._policy.roles or ()))
            roles = ", ".join(dict.fromkeys(turn.role for turn in turns))
            raise RowError(f"no {wanted} turn", f"its turns are of: {roles}" if roles else "it has no turns")

    def _refuse_rewritten(
        self, conversation: Conversation, rendered: Rendered, render: Callable[[Conversation], Rendered]
    ) -> None:
        if self._explodes or self._keeps_history or len(conversation.turns) < 3:
            return
        change, number = history_change(conversation, rendered, self._policy, render)
        if change is Change.TEXTS:
            raise RowError(REWRITTEN, f"message {number} is rendered otherwise when it is the last")
        if change is Change.WORDS and not self._warned:
            self._warned = True
            warn(f"{self._where}: the chat template writes other words around an answer when it is the last; {HISTORY_CHOICE}")

    # -- other samples -----------------------------------------------------------------------------------------------

    def _finish_of(self, sample: Sample, batch: TextBatch) -> _Finish:
        """Add the texts of a sample to the batch; returns what makes the encoded sample of their ids."""
        if isinstance(sample, Tokens):
            return _Ready(self._checked_tokens(sample))
        if isinstance(sample, Document):
            return _Framed(batch.add(rendered_document(sample)), sample, self)
        if isinstance(sample, Preference):
            answers = (sample.chosen, sample.rejected)
            texts = [self._rendered((*sample.prompt, *answer), sample.tools) for answer in answers]
            return _Answers([(batch.add(text), text) for text in texts], len(sample.prompt), _preference)
        if isinstance(sample, PreferenceText):
            pairs = [_raw_answer(sample.prompt, answer) for answer in (sample.chosen, sample.rejected)]
            return _RawAnswers([(batch.add(text), at) for text, at in pairs], self, _preference)
        if isinstance(sample, Unpaired):
            text = self._rendered((*sample.prompt, *sample.completion), sample.tools)
            return _Answers([(batch.add(text), text)], len(sample.prompt), _Unpaired(sample.label))
        if isinstance(sample, UnpairedText):
            text, at = _raw_answer(sample.prompt, sample.completion)
            return _RawAnswers([(batch.add(text), at)], self, _Unpaired(sample.label))
        if isinstance(sample, Stepwise):
            texts = [sample.prompt, *(step + sample.separator for step in sample.steps)]
            return _Steps([batch.add(_plain(text)) for text in texts], sample, self)
        return self._finish_of_prompt(sample, batch)

    def _finish_of_prompt(self, sample: Prompt, batch: TextBatch) -> _Finish:
        columns = dict(sample.columns) | ({} if sample.answer is None else {"answer": sample.answer})
        if sample.text is not None:
            return _PromptIds(batch.add(_plain(sample.text)), columns)
        assert self._renderer is not None
        return _PromptIds(batch.add(self._renderer.prompt(sample.turns, sample.tools)), columns)

    def _rendered(self, turns: Sequence[Any], tools: Sequence[Any] | None) -> Rendered:
        assert self._renderer is not None, "a format that gives conversations says which template they need"
        return self._renderer.render(Conversation(tuple(turns), tools), _ANSWERS)

    def _checked_tokens(self, sample: Tokens) -> Encoded:
        size = self._vocabulary
        wrong = next((token for token in sample.input_ids if not 0 <= token < size), None)
        if wrong is not None:
            raise RowError("unknown token id", f"{wrong} is not below {size}, the size of the tokenizer's vocabulary")
        return Encoded(np.array(sample.input_ids, np.int32), np.array(sample.supervised, np.bool_))

    def framed(self, encoded: Encoded, *, bos: bool, eos: bool, train_eos: bool) -> Encoded:
        """With the tokens that a raw text gets at its ends: BOS as this tokenizer does it, EOS if it is not there."""
        ids, supervised = [encoded.input_ids], [encoded.supervised]
        first, last = (ids[0][:1].tolist(), ids[0][-1:].tolist())
        if bos and self._adds_bos and first != [self._bos]:
            ids.insert(0, np.array([self._bos], np.int32))
            supervised.insert(0, np.zeros(1, np.bool_))
        if eos and self._eos is not None and last != [self._eos]:
            ids.append(np.array([self._eos], np.int32))
            supervised.append(np.array([train_eos]))
        return Encoded(np.concatenate(ids), np.concatenate(supervised)) if len(ids) > 1 else encoded


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A row whose texts wait for their ids; a conversation and its text, where there is one, to be compared."""

    finishes: Sequence[_Finish]
    conversation: Conversation | None = None
    text: int = 0


@dataclass(frozen=True, slots=True)
class _Ready:
    sample: Encoded

    def __call__(self, coded: Coded) -> EncodedSample | RowError:
        return _with_targets(self.sample)


@dataclass(frozen=True, slots=True)
class _Whole:
    """A conversation: its text and nothing else."""

    text: int

    def __call__(self, coded: Coded) -> EncodedSample | RowError:
        if self.text in coded.refused:
            return coded.refused[self.text]
        encoded = Encoded(*coded.sequence(self.text))
        return encoded if coded.num_trained[self.text] else _with_targets(encoded)


@dataclass(frozen=True, slots=True)
class _Framed:
    """A raw text, with BOS and EOS."""

    text: int
    document: Document
    encoder: SampleEncoder

    def __call__(self, coded: Coded) -> EncodedSample | RowError:
        refused = coded.refused.get(self.text)
        if refused is not None:
            return refused
        document = self.document
        ends_trained = bool(document.segments) and document.segments[-1].train
        return _with_targets(
            self.encoder.framed(
                Encoded(*coded.sequence(self.text)),
                bos=document.add_bos,
                eos=document.add_eos,
                train_eos=ends_trained,
            )
        )


#: Ids of one text, and the tokens at which its answer begins and ends.
_Cut = tuple[Ids, int, int]


@dataclass(frozen=True, slots=True)
class _Answers:
    """Conversations that end in an answer; ``join`` makes a sample of them, each cut where the answer begins."""

    texts: Sequence[tuple[int, Rendered]]
    first: int
    join: Callable[[Sequence[_Cut]], EncodedSample | RowError]

    def __call__(self, coded: Coded) -> EncodedSample | RowError:
        cuts: list[_Cut] = []
        for number, rendered in self.texts:
            if number in coded.refused:
                return coded.refused[number]
            ids, _ = coded.sequence(number)
            answer = [region for region in rendered.regions if region.message >= self.first]
            if not answer or answer[0].message != self.first:
                return RowError("no assistant turn", "the chat template does not write the answer")
            end = max(region.stop.end if region.stop else region.end for region in answer)
            cuts.append((ids, coded.first_token(number, answer[0].begin), coded.first_token(number, end)))
        return self.join(cuts)


@dataclass(frozen=True, slots=True)
class _RawAnswers:
    """Raw texts that end in an answer, with where it begins."""

    texts: Sequence[tuple[int, int]]
    encoder: SampleEncoder
    join: Callable[[Sequence[_Cut]], EncodedSample | RowError]

    def __call__(self, coded: Coded) -> EncodedSample | RowError:
        cuts: list[_Cut] = []
        for number, begin in self.texts:
            if number in coded.refused:
                return coded.refused[number]
            bare = Encoded(*coded.sequence(number))
            ids = self.encoder.framed(bare, bos=True, eos=True, train_eos=True).input_ids
            before = int(len(ids) > len(bare) and not np.array_equal(ids[: len(bare)], bare.input_ids))
            cuts.append((ids, coded.first_token(number, begin) + before, len(ids)))
        return self.join(cuts)


def _preference(cuts: Sequence[_Cut]) -> EncodedPreference | RowError:
    """Both conversations cut where the answer begins.

    The first token that differs between them belongs to the answer even where it begins in the prompt's last
    characters; a template that writes the prompt differently for each answer is refused.
    """
    (chosen, chosen_begin, chosen_end), (rejected, rejected_begin, rejected_end) = cuts
    if np.array_equal(chosen[:chosen_end], rejected[:rejected_end]):
        return RowError("answers are equal", "chosen and rejected are the same tokens, so nothing is to be preferred")
    begin = min(chosen_begin, rejected_begin)
    same = chosen[:begin] == rejected[:begin]
    shared = begin if same.all() else int(np.argmin(same))
    if shared < begin - 1:
        return RowError("prompts differ", "the chat template writes the prompt differently for the two answers")
    return EncodedPreference(chosen[:shared], chosen[shared:chosen_end], rejected[shared:rejected_end])


@dataclass(frozen=True, slots=True)
class _Unpaired:
    label: bool

    def __call__(self, cuts: Sequence[_Cut]) -> EncodedSample | RowError:
        ((ids, begin, end),) = cuts
        if begin >= end:
            return RowError("empty answer", "the answer has no tokens")
        return EncodedUnpaired(ids[:begin], ids[begin:end], self.label)


@dataclass(frozen=True, slots=True)
class _Steps:
    """A prompt and the steps of a solution, each encoded alone so that its last token is the separator's own."""

    texts: Sequence[int]
    sample: Stepwise
    encoder: SampleEncoder

    def __call__(self, coded: Coded) -> EncodedSample | RowError:
        for text in self.texts:
            if text in coded.refused:
                return coded.refused[text]
        prompt, *steps = (coded.sequence(text)[0] for text in self.texts)
        if any(not len(step) for step in steps):
            return RowError("empty step", "a step of the solution has no tokens")
        judged = np.zeros(sum(map(len, steps)), dtype=np.bool_)
        right = np.zeros_like(judged)
        ends = np.cumsum([len(step) for step in steps]) - 1
        right[ends] = self.sample.labels
        judged[ends[-1:] if self.sample.last_only else ends] = True
        most = self.sample.max_completion_length
        ids, judged, right = (part[:most] for part in (np.concatenate(steps), judged, right & judged))
        empty = np.zeros(0, np.bool_)
        head = self.encoder.framed(Encoded(prompt, np.zeros(len(prompt), np.bool_)), bos=True, eos=False, train_eos=False)
        if not judged.any():
            return RowError("nothing to train", "no judged step is left within max_completion_length")
        before = np.concatenate([empty, np.zeros(len(head), np.bool_)])
        return EncodedStepwise(
            np.concatenate([head.input_ids, ids]), np.concatenate([before, judged]), np.concatenate([before, right])
        )


@dataclass(frozen=True, slots=True)
class _PromptIds:
    text: int
    columns: Mapping[str, Any]

    def __call__(self, coded: Coded) -> EncodedSample | RowError:
        return coded.refused.get(self.text) or EncodedPrompt(coded.sequence(self.text)[0], self.columns)


def _all_or_error(samples: Sequence[EncodedSample | RowError]) -> Outcome:
    kept: list[EncodedSample] = []
    for sample in samples:
        if isinstance(sample, RowError):
            return sample
        kept.append(sample)
    return tuple(kept)


def _with_targets(encoded: Encoded) -> Encoded | RowError:
    if not encoded.supervised.any():
        return RowError("nothing to train", f"none of its {len(encoded)} tokens is trained")
    return encoded


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


def _adds_bos(tokenizer: Any) -> bool:
    """Whether this tokenizer puts a BOS before a text by itself."""
    if tokenizer.bos_token_id is None:
        return False
    return bool(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])


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
