"""Tokens that a shipped template counts on are told where a tokenizer lacks them, and text by design is not."""

from __future__ import annotations

import re

import pytest
from tests.tiny_tokenizers import byte_level_tokenizer, tiny_renderer, tiny_tokenizer

from whet.data.templates.control_tokens import CONTROL_TOKENS, missing_tokens
from whet.data.templates.resolve import shipped, shipped_template

PLAIN = byte_level_tokenizer(["<s>", "</s>", "<pad>"])
TALK = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
TEXT_BY_DESIGN = {"metharme"}
"""Templates whose markers only look like tokens."""


def test_every_shipped_template_is_in_the_table() -> None:
    assert set(CONTROL_TOKENS) == set(shipped())


@pytest.mark.parametrize("name", shipped())
def test_the_table_has_the_tokens_that_the_template_writes(name: str) -> None:
    written = tiny_renderer(name).template.render(TALK[1:] if name == "gemma" else TALK)[0]  # it knows no system
    assert [token for token in CONTROL_TOKENS[name] if token not in written] == []
    if name not in TEXT_BY_DESIGN:
        ends = tiny_tokenizer(name).special_tokens_map.values()
        like_tokens = set(re.findall(r"<\|[^|<>]+\|>|<｜[^｜]+｜>|<(?:start|end)_of_turn>", written))
        assert like_tokens - {*CONTROL_TOKENS[name], *ends} == set()


@pytest.mark.parametrize("name", shipped())
def test_a_tokenizer_without_the_tokens_is_told_of_and_one_with_them_is_not(name: str) -> None:
    tokens = CONTROL_TOKENS[name]
    problem = missing_tokens(shipped_template(name), PLAIN, "a.yaml:3:1")
    assert (problem is None) == (not tokens)
    if problem is not None:
        assert problem.found.startswith(f"the chat template {name} writes ")
        assert all(f"'{token}'" in problem.found and f'"{token}"' in problem.fix for token in tokens)
    assert missing_tokens(shipped_template(name), byte_level_tokenizer(["<pad>", *tokens]), "") is None


def test_the_warning_names_the_missing_tokens_alone_and_the_cure() -> None:
    some = byte_level_tokenizer(["<pad>", "<|start_header_id|>", "<|end_header_id|>"])
    problem = missing_tokens(shipped_template("llama3"), some, "a.yaml:3:1")
    assert str(problem) == (
        "a.yaml:3:1: the chat template llama3 writes '<|eot_id|>', which is no token of this tokenizer: the model "
        'reads it as ordinary text of several tokens -> add it (`tokens: ["<|eot_id|>"]`), or choose the template that '
        "this model knows"
    )


def test_a_template_of_the_users_own_is_not_judged() -> None:
    assert missing_tokens("{{ messages[0].content }}<|eot_id|>", PLAIN, "") is None


def test_a_token_that_is_read_as_unknown_is_missing() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "word": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    assert missing_tokens(shipped_template("chatml"), tokenizer, "") is not None
