"""The tokenizer: it loads, can pad and end, and its ids fit the model."""

from __future__ import annotations

from collections.abc import Iterator

from whet.checks.base import Subject
from whet.core.errors import Problem
from whet.model.load import checked_architecture, load_model_config
from whet.model.tokenizer import highest_id


def check(subject: Subject) -> Iterator[str | Problem]:
    """The tokenizer's special tokens, and whether the embedding must grow."""
    tokenizer = subject.tokenizer
    yield (
        f"{len(tokenizer):,} tokens; end of text {_shown(tokenizer.eos_token)}, "
        f"padding {_shown(tokenizer.pad_token)}, beginning {_shown(tokenizer.bos_token)}"
    )
    if tokenizer.eos_token is None:
        where = subject.config.where("special_tokens")
        found = "the tokenizer has no end-of-text token, so a trained model would never stop"
        yield Problem(where, found, "write special_tokens: {eos_token: ...}", "special_tokens")
    rows = checked_architecture(subject.config, load_model_config(subject.config)).vocab_size
    needed = highest_id(tokenizer) + 1
    if needed > rows:
        yield f"the embedding grows from {rows:,} to {needed:,} rows"


def _shown(token: str | None) -> str:
    return "none" if token is None else f"'{token}'"
