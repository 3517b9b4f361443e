"""Where an answer ends: the token ids after which nothing more is generated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from jinja2 import TemplateError

_PROBE = "WHETANSWER"


def stop_ids(tokenizer: Any, generation_eos: int | Sequence[int] | None, eot_tokens: Iterable[str] = ()) -> list[int]:
    """Every id that ends a turn, sorted.

    Three sources are united: what the model's generation config says, the tokenizer's end of sequence, and the token
    with which the chat template closes an assistant turn (``<|im_end|>`` is seldom the first two for a model that was
    only pre-trained).

    Args:
        tokenizer: with the chat template of training.
        generation_eos: ``generation_config.eos_token_id``.
        eot_tokens: the config's own end-of-turn tokens; those the tokenizer does not hold as one token are left out.
    """
    found: set[int] = set()
    if generation_eos is not None:
        found.update([generation_eos] if isinstance(generation_eos, int) else generation_eos)
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    vocabulary = tokenizer.get_vocab()
    found.update(vocabulary[token] for token in eot_tokens if token in vocabulary)
    turn_end = template_turn_end(tokenizer)
    if turn_end is not None:
        found.add(turn_end)
    return sorted(found)


def template_turn_end(tokenizer: Any) -> int | None:
    """The first control token behind the content of an assistant turn.

    None where the template writes none, or does not render a question and its answer (it is not a chat's, then).
    """
    if not tokenizer.chat_template:
        return None
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except TemplateError:
        return None
    behind = text.rpartition(_PROBE)[2]
    special = set(tokenizer.all_special_ids)
    return next((token for token in tokenizer(behind, add_special_tokens=False)["input_ids"] if token in special), None)
