"""Which template a config names, and what is said of one that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.configs import config_with
from tests.tiny_tokenizers import byte_level_tokenizer, tiny_tokenizer

from whet.core.errors import ConfigError
from whet.data.templates.resolve import policy_of, renderer_for, resolve_template, shipped, shipped_template

PLAIN = byte_level_tokenizer(["<s>", "</s>", "<pad>"])


def test_a_name_is_a_shipped_template() -> None:
    config = config_with(chat_template="llama3")
    assert resolve_template(config, None, PLAIN) == shipped_template("llama3")


def test_a_dataset_may_have_its_own() -> None:
    config = config_with({"chat_template": "gemma3"}, chat_template="llama3")
    assert resolve_template(config, config.data.datasets[0], PLAIN) == shipped_template("gemma3")


@pytest.mark.parametrize("name", [None, "tokenizer_default", "tokenizer_default_fallback_chatml"])
def test_the_tokenizers_own_template_comes_first(name: str | None) -> None:
    assert resolve_template(config_with(chat_template=name), None, tiny_tokenizer("llama3")) == shipped_template(
        "llama3"
    )


def test_the_fallback_is_used_where_the_tokenizer_has_none() -> None:
    config = config_with(chat_template="tokenizer_default_fallback_chatml")
    assert resolve_template(config, None, PLAIN) == shipped_template("chatml")


def test_without_any_template_the_error_lists_them() -> None:
    with pytest.raises(ConfigError, match="has no chat template of its own -> set chat_template to one of: alpaca, ch"):
        resolve_template(config_with(), None, PLAIN)


def test_a_template_may_be_written_in_the_config_or_in_a_file(tmp_path: Path) -> None:
    text = "{{ messages[0].content }}"
    (tmp_path / "mine.jinja").write_text(text)
    for jinja in (text, str(tmp_path / "mine.jinja")):
        config = config_with(chat_template="jinja", chat_template_jinja=jinja)
        assert resolve_template(config, None, PLAIN) == text


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"chat_template": "chatmll"}, "'chatmll' is not a chat template -> did you mean 'chatml'?"),
        ({"chat_template": "jamba"}, "the chat template 'jamba' is not shipped yet -> use the model's own"),
        ({"chat_template": "jinja"}, "chat_template is 'jinja' but chat_template_jinja is empty"),
        ({"chat_template": "jinja", "chat_template_jinja": "no.jinja"}, "there is no file 'no.jinja'"),
    ],
)
def test_a_template_that_is_not_there_is_refused(keys: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_template(config_with(**keys), None, PLAIN)
    assert message in str(caught.value)


def test_every_shipped_template_is_listed() -> None:
    assert {"alpaca", "chatml", "llama3", "gemma3", "mistral_v7_tekken", "qwen3", "phi_35"} <= set(shipped())


def test_an_eot_token_of_several_tokens_is_refused() -> None:
    config = config_with({}, eot_tokens=("<|eot|>",), chat_template="chatml")
    with pytest.raises(ConfigError, match=r"'<\|eot\|>' is not one token of this tokenizer"):
        renderer_for(config, config.data.datasets[0], PLAIN)


def test_the_datasets_options_make_the_policy() -> None:
    config = config_with({"roles_to_train": ("user",), "train_on_eos": "last"})
    policy = policy_of(config, config.data.datasets[0])
    assert (policy.roles, policy.train_on_eos, policy.train_on_eot) == (frozenset({"user"}), "last", "last")
    config = config_with({}, train_on_inputs=True)
    assert policy_of(config, config.data.datasets[0]).roles is None
