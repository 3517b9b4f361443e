"""Which markers of the shipped templates are meant to be one token each, and which a tokenizer does not have.

A model that was trained with a template has its markers as tokens. In another model's tokenizer they are ordinary text
of several tokens: each turn grows longer, the model has never seen the text, and the end of an answer is no single
token that generation could stop at. Nothing fails, so it is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from whet.core.errors import Problem
from whet.data.templates.resolve import shipped_template

_CHATML = ("<|im_start|>", "<|im_end|>")
_GEMMA = ("<start_of_turn>", "<end_of_turn>")
_MISTRAL = ("[INST]", "[/INST]")
_PHI_3 = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")

CONTROL_TOKENS: Mapping[str, tuple[str, ...]] = {
    "alpaca": (),
    "chatml": _CHATML,
    "cohere": (
        *("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        *("<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
    ),
    "deepseek_v2": (),
    "deepseek_v3": ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
    "exaone": ("[|endofturn|]",),
    "gemma": _GEMMA,
    "gemma3": _GEMMA,
    "gemma3n": _GEMMA,
    "llama2": (),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "llama4": ("<|header_start|>", "<|header_end|>", "<|eot|>"),
    "metharme": (),
    "mistral_v1": (),
    "mistral_v2v3": _MISTRAL,
    "mistral_v3_tekken": _MISTRAL,
    "mistral_v7_tekken": ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", *_MISTRAL),
    "phi_3": _PHI_3,
    "phi_35": _PHI_3,
    "qwen3": _CHATML,
    "qwen_25": _CHATML,
}
"""Shipped template -> the tokens it writes into plain conversations; BOS and EOS are the tokenizer's own, whatever it
is. Those of tools are left out: a model without tools has none. Empty: its markers are text, or words, by design."""


def missing_tokens(template: str, tokenizer: Any, where: str) -> Problem | None:
    """What to tell where a template is a shipped one and the tokenizer lacks tokens of it; None where it has them all.

    Args:
        template: Jinja text; a shipped one is known by it, whichever key or dataset type named it.
        tokenizer: of transformers.
        where: place of the template's key in the config.
    """
    name = _names().get(template, "")
    missing = [token for token in CONTROL_TOKENS.get(name, ()) if not _is_one_token(token, tokenizer)]
    if not missing:
        return None
    named, listed = ", ".join(f"'{token}'" for token in missing), ", ".join(f'"{token}"' for token in missing)
    are, them = ("are no tokens", "them") if len(missing) > 1 else ("is no token", "it")
    found = (
        f"the chat template {name} writes {named}, which {are} of this tokenizer: the model reads {them} as "
        "ordinary text of several tokens"
    )
    fix = f"add {them} (`tokens: [{listed}]`), or choose the template that this model knows"
    return Problem(where, found, fix, "chat_template")


@cache
def _names() -> Mapping[str, str]:
    """Jinja text of each template that has tokens -> its name."""
    return {shipped_template(name): name for name, tokens in CONTROL_TOKENS.items() if tokens}


def _is_one_token(text: str, tokenizer: Any) -> bool:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return len(ids) == 1 and (ids[0] != tokenizer.unk_token_id or text == tokenizer.unk_token)
