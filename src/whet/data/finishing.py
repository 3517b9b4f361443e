"""What makes samples of texts once these have ids: one class for each way that a sample consists of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whet.core.errors import RowError
from whet.core.types import Document, Stepwise
from whet.data.samples import (
    Encoded,
    EncodedPreference,
    EncodedPrompt,
    EncodedSample,
    EncodedStepwise,
    EncodedUnpaired,
    Ids,
)
from whet.data.texts import Coded

#: What is left to do for a sample once its texts have ids.
Finish = Callable[[Coded], EncodedSample | RowError]

#: What becomes of a row.
Outcome = tuple[EncodedSample, ...] | RowError


@dataclass(frozen=True, slots=True)
class Ends:
    """The tokens that a raw text gets at its ends.

    Attributes:
        bos, eos: the tokenizer's; None where it has none.
        adds_bos: whether the tokenizer puts BOS before a text by itself.
    """

    bos: int | None
    eos: int | None
    adds_bos: bool

    @classmethod
    def of(cls, tokenizer: Any) -> Ends:
        """Those of a tokenizer."""
        bos = tokenizer.bos_token_id
        return cls(bos, tokenizer.eos_token_id, bos is not None and tokenizer("a")["input_ids"][:1] == [bos])

    def put(self, encoded: Encoded, *, bos: bool, eos: bool, train_eos: bool) -> Encoded:
        """With the tokens that a raw text gets at its ends: BOS as this tokenizer does it, EOS if it is not there."""
        ids, supervised = [encoded.input_ids], [encoded.supervised]
        first, last = (ids[0][:1].tolist(), ids[0][-1:].tolist())
        if bos and self.adds_bos and first != [self.bos]:
            ids.insert(0, np.array([self.bos], np.int32))
            supervised.insert(0, np.zeros(1, np.bool_))
        if eos and self.eos is not None and last != [self.eos]:
            ids.append(np.array([self.eos], np.int32))
            supervised.append(np.array([train_eos]))
        return Encoded(np.concatenate(ids), np.concatenate(supervised)) if len(ids) > 1 else encoded


@dataclass(frozen=True, slots=True)
class Ready:
    """A row that came as ids."""

    sample: Encoded

    def __call__(self, coded: Coded) -> EncodedSample | RowError:
        return _with_targets(self.sample)


@dataclass(frozen=True, slots=True)
class Whole:
    """A conversation: its text and nothing else."""

    text: int

    def __call__(self, coded: Coded) -> EncodedSample | RowError:
        if self.text in coded.refused:
            return coded.refused[self.text]
        encoded = Encoded(*coded.sequence(self.text))
        return encoded if coded.num_trained[self.text] else _with_targets(encoded)


@dataclass(frozen=True, slots=True)
class Framed:
    """A raw text, with BOS and EOS."""

    text: int
    document: Document
    ends: Ends

    def __call__(self, coded: Coded) -> EncodedSample | RowError:
        refused = coded.refused.get(self.text)
        if refused is not None:
            return refused
        document = self.document
        ends_trained = bool(document.segments) and document.segments[-1].train
        return _with_targets(
            self.ends.put(
                Encoded(*coded.sequence(self.text)),
                bos=document.add_bos,
                eos=document.add_eos,
                train_eos=ends_trained,
            )
        )


#: Ids of one text, and the tokens at which its answer begins and ends.
_Cut = tuple[Ids, int, int]


@dataclass(frozen=True, slots=True)
class Answers:
    """Conversations that end in an answer, which is what is trained of them; ``join`` makes a sample of them."""

    texts: Sequence[int]
    join: Callable[[Sequence[_Cut]], EncodedSample | RowError]

    def __call__(self, coded: Coded) -> EncodedSample | RowError:
        cuts: list[_Cut] = []
        for number in self.texts:
            if number in coded.refused:
                return coded.refused[number]
            ids, supervised = coded.sequence(number)
            answer = np.flatnonzero(supervised)
            if not len(answer):
                return RowError("no assistant turn", "the chat template does not write the answer")
            cuts.append((ids, int(answer[0]), int(answer[-1]) + 1))
        return self.join(cuts)


@dataclass(frozen=True, slots=True)
class RawAnswers:
    """Raw texts that end in an answer, with where it begins."""

    texts: Sequence[tuple[int, int]]
    ends: Ends
    join: Callable[[Sequence[_Cut]], EncodedSample | RowError]

    def __call__(self, coded: Coded) -> EncodedSample | RowError:
        cuts: list[_Cut] = []
        for number, begin in self.texts:
            if number in coded.refused:
                return coded.refused[number]
            bare = Encoded(*coded.sequence(number))
            ids = self.ends.put(bare, bos=True, eos=True, train_eos=True).input_ids
            before = int(len(ids) > len(bare) and not np.array_equal(ids[: len(bare)], bare.input_ids))
            cuts.append((ids, coded.first_token(number, begin) + before, len(ids)))
        return self.join(cuts)


def as_preference(cuts: Sequence[_Cut]) -> EncodedPreference | RowError:
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
class AsUnpaired:
    """An answer cut off its prompt, and whether it is wanted."""

    label: bool

    def __call__(self, cuts: Sequence[_Cut]) -> EncodedSample | RowError:
        ((ids, begin, end),) = cuts
        if begin >= end:
            return RowError("empty answer", "the answer has no tokens")
        return EncodedUnpaired(ids[:begin], ids[begin:end], self.label)


@dataclass(frozen=True, slots=True)
class Steps:
    """A prompt and the steps of a solution, each encoded alone so that its last token is the separator's own."""

    texts: Sequence[int]
    sample: Stepwise
    ends: Ends

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
        ids, judged, right = np.concatenate(steps)[:most], judged[:most], (right & judged)[:most]
        head = self.ends.put(Encoded(prompt, np.zeros(len(prompt), np.bool_)), bos=True, eos=False, train_eos=False)
        if not judged.any():
            return RowError("nothing to train", "no judged step is left within max_completion_length")
        before = np.zeros(len(head), np.bool_)
        return EncodedStepwise(
            np.concatenate([head.input_ids, ids]), np.concatenate([before, judged]), np.concatenate([before, right])
        )


@dataclass(frozen=True, slots=True)
class PromptIds:
    """A prompt and the row's other columns."""

    text: int
    columns: Mapping[str, Any]

    def __call__(self, coded: Coded) -> EncodedSample | RowError:
        return coded.refused.get(self.text) or EncodedPrompt(coded.sequence(self.text)[0], self.columns)


def all_or_error(samples: Sequence[EncodedSample | RowError]) -> Outcome:
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
