"""What is secret is hidden wherever it stands, and nothing else is."""

from __future__ import annotations

import html
import io
import json
import logging
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.config import load_config
from whet.core import secrets
from whet.core.errors import ConfigError, Problem
from whet.core.secrets import MASK, is_secret_name, redact, redacted, remember, secrets_of_url

SECRET = "s3cr3tVALUE+/with=signs&more"
HUB = "hf_" + "AbCdEfGhIj" * 3 + "KlMn"


@pytest.mark.parametrize(
    "text",
    [
        "https://me:SECRETSECRET@host/a",
        "s3://AKIAQQQQQQQQQQQQQQQQ:SECRETSECRET@bucket/a.jsonl",
        "https://SECRETSECRETSECRETSECRET@github.com/org/repo",
        "GET https://b.s3.amazonaws.com/a?X-Amz-Credential=SECRET&X-Amz-Date=1&X-Amz-Signature=SECRET failed",
        "https://x.blob.core.windows.net/a?sv=2024&sig=SECRET%2Bx%3D&se=1",
        "https://host/a?access_token=SECRET#top",
        "&amp;token=SECRET&amp;part=2",
        "{'Authorization': 'Bearer SECRET'}",
        "Authorization: Basic SECRETSECRET==",
        "curl -H 'authorization: SECRET'",
        "401 with bearer SECRETSECRETSECRET",
        "DefaultEndpointsProtocol=https;AccountName=me;AccountKey=SECRETSECRET==;EndpointSuffix=x",
        "password='SECRET' was refused",
        '{"api_key": "SECRET"}',
        "http://SECRETSECRETSECRET@host/a.git",
        "X-Api-Key: SECRET",
        "{'x-auth-token': 'SECRET'} PRIVATE-TOKEN: SECRET",
        "Set-Cookie: a=SECRET; b=SECRET",
        "[(b'Authorization', b'Basic SECRETSECRET')]",
        "whet train my.yaml --model-kwargs.hub-token SECRET --api-key 'SECRET SECRET' --seed 7",
        "PGPASSWORD=SECRET my_secret=SECRET WANDB_API_KEY=SECRET refresh_token=SECRET accessToken: SECRET",
        "-----BEGIN RSA PRIVATE KEY-----\nSECRET\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_what_looks_like_a_secret_is_hidden_wherever_it_stands(text: str) -> None:
    assert MASK in redact(text)
    assert "SECRET" not in redact(text)
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "token",
    [
        HUB,
        "sk-" + "a1" * 12,
        "sk-proj-" + "a1" * 12,
        "ghp_" + "a1" * 18,
        "github_pat_" + "a1" * 12,
        "glpat-" + "a1" * 10,
        "AKIA" + "A1" * 8,
        "xoxb-123456789012-abc",
        "AIza" + "a1" * 17,
        "wandb_v1_" + "a1" * 12,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-_",
        f"eyJ{'4NWMi' * 4000}.eyJzdWIiOiIxMjM0In0.abc-_",
    ],
)
def test_a_token_of_a_known_service_is_hidden(token: str) -> None:
    assert redact(f"got '{token}', no") == f"got '{MASK}', no"


@pytest.mark.parametrize(
    "text",
    [
        "line 12, lora_target_modules: 'gate_prj' matches no layer -> did you mean 'gate_proj'?",
        "hf_mlflow_log_artifacts is false; hf_use_auth_token is renamed",
        "pad_token: <|pad|>, eos_token=</s>, 12,000 tokens at https://huggingface.co/org/name",
        "s3://bucket/folder/a.jsonl?versionId=3 of s3://bucket@host",
        "https://host:8080/a?part=1&page=2",
        "sha256 " + "0123456789abcdef" * 4,
        "sk-learn is no package, and Basic programming was taught",
        "--hub-token --seed 7, --special-tokens.pad-token <pad> --eos-token </s>",
        "an authorization, 'for all'; cookies are eaten",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("written", [str, quote, html.escape, json.dumps, repr, lambda value: quote(value, safe="")])
def test_a_known_value_is_hidden_in_each_way_it_is_written(written, monkeypatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", SECRET)
    told = redact(f"before {written(SECRET)} after")
    assert "s3cr3t" not in told
    assert told.startswith("before ")
    assert told.endswith(" after")


@given(st.text(min_size=6, max_size=30).filter(lambda text: len(text.strip()) >= 6), st.text(), st.text())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_remembered_value_never_passes(value: str, before: str, after: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secrets, "_remembered", set())
        remember([value])
        assert value.strip() not in redact(f"{before}{value}{after}") or value.strip() in MASK * 10


def test_of_the_environment_only_what_is_called_a_secret_is_hidden(monkeypatch, tmp_path) -> None:
    (tmp_path / "key.json").write_text("{}")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "/wJalrXUtnFEMI/K7MDENG")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    monkeypatch.setenv("HTTPS_PROXY", "http://me:hunter2hunter2@proxy:3128")
    monkeypatch.setenv("EMPTY_TOKEN", "")
    monkeypatch.setenv("SHORT_TOKEN", "true")
    assert redact(f"eu-central-1 {tmp_path / 'key.json'} true") == f"eu-central-1 {tmp_path / 'key.json'} true"
    assert redact("/wJalrXUtnFEMI/K7MDENG, hunter2hunter2") == f"{MASK}, {MASK}"


def test_a_structure_keeps_its_shape(monkeypatch) -> None:
    monkeypatch.setattr(secrets, "_remembered", {"chunks"})
    facts = {"chunks": ["a chunks", 3, None], "hub_token": "x", "pad_token": "<p>", "seen_tokens": 7, "api_key": [HUB]}
    shown = {"chunks": ["a ***", 3, None], "hub_token": MASK, "pad_token": "<p>", "seen_tokens": 7, "api_key": [MASK]}
    assert redacted(facts) == shown


def test_names_of_tokens_of_a_tokenizer_are_no_secrets() -> None:
    assert not any(
        map(is_secret_name, ("image_token", "bos_token", "eot_tokens", "new_tokens", "prompt_tokens", "key"))
    )
    assert all(map(is_secret_name, ("hf_token", "token", "NEPTUNE_API_TOKEN", "x-api-key", "Authorization", "apikey")))


def test_secrets_of_a_config_are_known_once_it_is_read_even_when_it_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(secrets, "_remembered", set())
    (tmp_path / "a.yaml").write_text(
        "base_model: org/m\nlearning_rate: 1e-4\ndatasets:\n"
        "  - path: s3://box/a.jsonl\n    type: alpaca\n"
        "    storage_options: {secret: planted-one, client_kwargs: {endpoint_url: 'http://u:planted-two@host:1'}}\n"
        "  - {path: 'https://host/b.jsonl?sig=planted%2Bthree', type: alpaca}\n"
        "wandb_api_key: planted-four\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "a.yaml")
    assert "planted" not in str(caught.value)
    assert redact("planted-one planted-two planted+three planted%2Bthree planted-four") == " ".join([MASK] * 5)
    assert redact("http://host:1") == "http://host:1"


def test_urls_without_secrets_have_none() -> None:
    assert list(secrets_of_url("https://host:80/a?part=1, s3://box/a@b and abfs://box@account.dfs.core/a")) == []


def test_an_error_hides_secrets_and_a_log_does() -> None:
    problem = Problem("a.yaml:1", "https://me:hunter2hunter2@host/a cannot be read", "check it")
    assert "hunter2" not in str(ConfigError(problem))
    record = secrets._Record("x", logging.ERROR, "f", 1, "token %s", (HUB,), None)
    stream = io.StringIO()
    logging.StreamHandler(stream).handle(record)
    assert stream.getvalue() == f"token {MASK}\n"
    try:
        raise ValueError(HUB)
    except ValueError as error:
        record = secrets._Record("x", logging.ERROR, "f", 1, "it failed", (), (ValueError, error, error.__traceback__))
    logging.StreamHandler(stream).handle(record)
    assert "ValueError: ***" in stream.getvalue()
    assert "AbCdEf" not in stream.getvalue()
