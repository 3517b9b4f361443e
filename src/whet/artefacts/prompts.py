"""The fixed texts that every artefact is compared on, as the model's own tokenizer and template write them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

VERSION = 1
"""Of `CONVERSATIONS`: records of different versions do not speak of the same tokens. A change of them changes it."""

CONVERSATIONS: tuple[tuple[str, ...], ...] = (
    ("What is the capital of Italy?", "The capital of Italy is Rome."),
    ("How do I make bread?", "You need flour, water, salt and yeast. First, mix the flour with the water."),
    ("Write a function for the Fibonacci numbers.", "def fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)"),
    ("A train goes 60 miles in 90 minutes. How fast is it?", "90 minutes are 1.5 hours, and 60 / 1.5 = 40 mph."),
    ("Traduis en français : the sea is calm.", "La mer est calme. Übrigens: das Meer ist ruhig. 海は静かです。"),
    ("Name two colours.", "Red and blue.", "Two more?", "Green and yellow."),
    ('Answer as JSON: Ada, born 1815.', '{"name": "Ada", "born": 1815, "tags": []}'),
    ("Repeat: 0 1 2 3 4 5 6 7", "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15"),
)  # fmt: skip
"""User and assistant in turn: facts, code, arithmetic, other scripts, two rounds, JSON, numbers."""

MOST_TOKENS = 128
"""Of one prompt. Its logits are held at once: 40 MB in 16 bits with a vocabulary of 150,000."""


@dataclass(frozen=True)
class Prompts:
    """Token ids of the prompts.

    Attributes:
        ids: of each; at least 2 and at most `MOST_TOKENS`.
        form: "chat template" or "plain text".
    """

    ids: tuple[tuple[int, ...], ...]
    form: str

    @property
    def digest(self) -> str:
        """SHA-256 of the ids, to tell whether two records speak of the same tokens."""
        return hashlib.sha256(repr(self.ids).encode()).hexdigest()


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    template_kwargs: Mapping[str, Any] | None = None,
    most_tokens: int | None = None,
    rows: int | None = None,
) -> Prompts:
    """The prompts through the tokenizer's chat template; as plain text where there is none, or it refuses them.

    Args:
        tokenizer: of the model, with the template of training.
        most_tokens: positions the model has, where they are fewer than `MOST_TOKENS`.
        rows: of the embedding; ids above are left out.
    """
    texts, form = _rendered(tokenizer, template_kwargs or {}), "chat template"
    if texts is None:
        texts, form = ["\n".join(turns) for turns in CONVERSATIONS], "plain text"
    limit = min(most_tokens or MOST_TOKENS, MOST_TOKENS)
    coded = [tokenizer(text, add_special_tokens=form == "plain text").input_ids for text in texts]
    fitting = [tuple(token for token in ids if rows is None or token < rows)[:limit] for ids in coded]
    return Prompts(tuple(fitting), form)


def _rendered(tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]) -> list[str] | None:
    if not tokenizer.chat_template:
        return None
    roles = ("user", "assistant")
    conversations = [
        [{"role": roles[number % 2], "content": text} for number, text in enumerate(turns)] for turns in CONVERSATIONS
    ]
    try:
        return [str(tokenizer.apply_chat_template(each, tokenize=False, **template_kwargs)) for each in conversations]
    except (TemplateError, TypeError, ValueError):
        return None
