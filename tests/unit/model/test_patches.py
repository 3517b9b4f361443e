"""Changes of other libraries do what they say, and are still needed."""

from __future__ import annotations

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tests.models import tiny_tokenizer

from whet.core.sandbox import Limits, TooLarge, TooSlow, budget
from whet.model.patches import bound_templates

MESSAGES = [{"role": "user", "content": "hello"}]
FOR_EVER = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def test_transformers_renders_within_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    before = tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    monkeypatch.setattr(budget, "LIMITS", Limits(steps=10_000))
    bound_templates()
    bound_templates()
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False) == before
    with pytest.raises(TooSlow):
        tokenizer.apply_chat_template(MESSAGES, tokenize=False, chat_template=FOR_EVER)
    for text in ("{{ 'a' * 10**10 }}", "{{ {'a': 1}|tojson(indent=10**9) }}"):
        with pytest.raises(TooLarge):
            tokenizer.apply_chat_template(MESSAGES, tokenize=False, chat_template=text)


def test_jinja_has_no_such_limits_of_its_own() -> None:
    """The patch may go when it has."""
    assert len(ImmutableSandboxedEnvironment().from_string("{{ 'a' * 10**8 }}").render()) == 10**8
