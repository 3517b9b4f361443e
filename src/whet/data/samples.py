"""Encoded samples: token ids with what is known of them, one class for each kind of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson

Kind = Literal["tokens", "preference", "unpaired", "stepwise", "prompts"]
Ids = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A sample for supervised training.

    Attributes:
        input_ids: int32[T].
        supervised: bool[T]; whether the token is a target.
    """

    input_ids: Ids
    supervised: Flags

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_supervised(self) -> int:
        """Targets; the first token, which nothing predicts, is none."""
        return int(np.count_nonzero(self.supervised[1:]))

    def chunks(self, size: int) -> list[Encoded]:
        """The sample in pieces of at most ``size`` tokens; the last one may be shorter."""
        cuts = range(0, len(self), size)
        return [Encoded(self.input_ids[at : at + size], self.supervised[at : at + size]) for at in cuts]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPreference:
    """A prompt and two answers, int32 each; ``prompt_ids + chosen_ids`` are the ids of the whole first conversation."""

    prompt_ids: Ids
    chosen_ids: Ids
    rejected_ids: Ids

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and the longer answer."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))

    @property
    def num_supervised(self) -> int:
        return len(self.chosen_ids) + len(self.rejected_ids)


@dataclass(frozen=True, slots=True, eq=False)
class EncodedUnpaired:
    """A prompt and an answer, int32 each, and whether the answer is wanted."""

    prompt_ids: Ids
    completion_ids: Ids
    label: bool

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def num_supervised(self) -> int:
        return len(self.completion_ids)


@dataclass(frozen=True, slots=True, eq=False)
class EncodedStepwise:
    """A solution whose steps are judged.

    Attributes:
        input_ids: int32[T].
        supervised: bool[T], True at the last token of each judged step.
        right: bool[T], the judgement there; False elsewhere.
    """

    input_ids: Ids
    supervised: Flags
    right: Flags

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_supervised(self) -> int:
        return int(np.count_nonzero(self.supervised))


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPrompt:
    """A prompt to be answered in training.

    Attributes:
        prompt_ids: int32[T], up to where the answer begins.
        columns: the row's other columns and, as ``answer``, the reference answer; for reward functions.
    """

    prompt_ids: Ids
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids)

    @property
    def num_supervised(self) -> int:
        return 0


EncodedSample = Encoded | EncodedPreference | EncodedUnpaired | EncodedStepwise | EncodedPrompt

KINDS: Mapping[Kind, tuple[type, tuple[str, ...]]] = {
    "tokens": (Encoded, ("input_ids", "supervised")),
    "preference": (EncodedPreference, ("prompt_ids", "chosen_ids", "rejected_ids")),
    "unpaired": (EncodedUnpaired, ("prompt_ids", "completion_ids")),
    "stepwise": (EncodedStepwise, ("input_ids", "supervised", "right")),
    "prompts": (EncodedPrompt, ("prompt_ids",)),
}
"""Kind -> its class, and those of its attributes that are arrays."""

_KIND_OF = {made: kind for kind, (made, _) in KINDS.items()}


def kind_of(sample: EncodedSample) -> Kind:
    """The kind of a sample."""
    return _KIND_OF[type(sample)]


def sequences(sample: EncodedSample) -> tuple[npt.NDArray[Any], ...]:
    """The arrays of a sample, in the order of `KINDS`."""
    return tuple(getattr(sample, name) for name in KINDS[_KIND_OF[type(sample)]][1])


def extra(sample: EncodedSample, *, sort_keys: bool = False) -> bytes:
    """What a sample has beside arrays, as JSON; empty for kinds that have nothing more."""
    if isinstance(sample, EncodedUnpaired):
        return b"true" if sample.label else b"false"
    if isinstance(sample, EncodedPrompt):
        options = orjson.OPT_NON_STR_KEYS | (orjson.OPT_SORT_KEYS if sort_keys else 0)
        return orjson.dumps(dict(sample.columns), option=options, default=str)
    return b""


def digest(sample: EncodedSample) -> bytes:
    """16 bytes that are equal for equal samples."""
    if type(sample) is Encoded:  # as below, and quicker: both arrays have one length, which the sum of bytes tells
        quick = blake2b(_buffer(sample.input_ids), digest_size=16)
        quick.update(_buffer(sample.supervised))
        return quick.digest()
    made = blake2b(extra(sample, sort_keys=True), digest_size=16)
    for sequence in sequences(sample):
        made.update(len(sequence).to_bytes(8, "little"))
        made.update(_buffer(sequence))
    return made.digest()


def _buffer(array: npt.NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).data
