"""Whether an encoded sample is kept as it is, cut, split or dropped. Pure: no files, no counting."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from whet.data.ledger import NOTHING_LEFT, TOO_LONG, TOO_SHORT
from whet.data.tokenise import Encoded, EncodedPreference

Strategy = Literal["drop", "truncate", "raise", "split"]
UNSUPERVISED = "nothing to train"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a sample must keep to.

    Attributes:
        most: tokens a sample may have.
        fewest: tokens it must have.
        strategy: what becomes of a longer one; "split" makes several samples of it (plain text), "raise" drops it here
            and lets the preparation end with an error.
    """

    most: int
    fewest: int
    strategy: Strategy


@dataclass(frozen=True, slots=True)
class Kept:
    """The samples a row gives, how many tokens it had, and what was done to it (empty: nothing)."""

    samples: tuple[Encoded | EncodedPreference, ...]
    tokens: int
    done: str = ""


@dataclass(frozen=True, slots=True)
class Dropped:
    """Why a row gives none. ``bad`` rows could never be used, whatever the limits."""

    reason: str
    tokens: int
    detail: str
    bad: bool = False


def admit(sample: Encoded | EncodedPreference, limits: Limits) -> Kept | Dropped:
    """Apply the limits to one sample."""
    if isinstance(sample, EncodedPreference):
        return _admit_preference(sample, limits)
    tokens = num_tokens(sample)
    if tokens < limits.fewest:
        return _dropped(TOO_SHORT, tokens)
    if num_supervised(sample) == 0:
        return Dropped(UNSUPERVISED, tokens, f"{tokens} tokens, none of them a target", bad=True)
    if tokens <= limits.most:
        return Kept((sample,), tokens)
    if limits.strategy == "split":
        pieces = [
            piece for piece in sample.chunks(limits.most) if len(piece) >= limits.fewest and num_supervised(piece)
        ]
        return Kept(tuple(pieces), tokens, "split at sequence_len") if pieces else _dropped(NOTHING_LEFT, tokens)
    if limits.strategy == "truncate":
        piece = sample.chunks(limits.most)[0]
        if len(piece) < limits.fewest or num_supervised(piece) == 0:
            return _dropped(NOTHING_LEFT, tokens)
        return Kept((piece,), tokens, "cut at sequence_len")
    return _dropped(TOO_LONG, tokens)


def num_tokens(sample: Encoded | EncodedPreference) -> int:
    """Tokens of a sample; of a preference, those of the prompt and the longer answer."""
    if isinstance(sample, EncodedPreference):
        return len(sample.prompt_ids) + max(len(sample.chosen_ids), len(sample.rejected_ids))
    return len(sample)


def num_supervised(sample: Encoded | EncodedPreference) -> int:
    """Targets of a sample; the first token, which nothing predicts, is none."""
    if isinstance(sample, EncodedPreference):
        return len(sample.chosen_ids) + len(sample.rejected_ids)
    return int(sample.supervised[1:].sum())


def _admit_preference(sample: EncodedPreference, limits: Limits) -> Kept | Dropped:
    tokens = num_tokens(sample)
    if tokens < limits.fewest:
        return _dropped(TOO_SHORT, tokens)
    if tokens <= limits.most:
        return Kept((sample,), tokens)
    if limits.strategy != "truncate":
        return _dropped(TOO_LONG, tokens)
    room = limits.most - len(sample.prompt_ids)
    if room < 1:
        return _dropped(NOTHING_LEFT, tokens)
    cut = replace(sample, chosen_ids=sample.chosen_ids[:room], rejected_ids=sample.rejected_ids[:room])
    return Kept((cut,), tokens, "cut at sequence_len")


def _dropped(reason: str, tokens: int) -> Dropped:
    return Dropped(reason, tokens, f"{tokens} tokens")
