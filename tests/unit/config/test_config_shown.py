"""A config is shown to people (explain) and to editors (JSON Schema) as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from whet.config import explain, json_schema, make_config
from whet.config.known_keys import ALIASES
from whet.config.schema import SECTIONS, fields

CONFIGS = Path(__file__).parents[2] / "data" / "configs"
BASE: dict[str, Any] = {
    "base_model": "org/m",
    "learning_rate": 1e-4,
    "datasets": [{"path": "org/d", "type": "alpaca", "split": "train"}],
}


def test_every_key_is_explained_once() -> None:
    keys = [row.key for row in explain(make_config(BASE))]
    assert len(keys) == len(set(keys))
    assert {key.split(".")[0] for key in keys} == set(fields())
    assert [key for key in keys if key.startswith("datasets.")] == [
        "datasets.0.path",
        "datasets.0.split",
        "datasets.0.type",
    ]


@pytest.mark.parametrize(
    ("values", "key", "shown"),
    [
        ({"mlflow_tracking_uri": "https://me:hunter2@host/x"}, "mlflow_tracking_uri", "https://***@host/x"),
        (
            {"model_kwargs": {"token": "abc", "subfolder": "x"}},
            "overrides_of_model_kwargs",
            {"token": "***", "subfolder": "x"},
        ),
        ({"model_kwargs": {"a": {"api_key": "abc"}}}, "overrides_of_model_kwargs", {"a": {"api_key": "***"}}),
        ({"wandb_name": "run hf_abcdefghijklmnopqrstuvwx"}, "wandb_name", "run ***"),
        ({"special_tokens": {"pad_token": "<pad>"}}, "special_tokens.pad_token", "<pad>"),
        ({"eot_tokens": ["<e>"]}, "eot_tokens", ("<e>",)),
        ({"tokens": ["<e>"]}, "tokens", ("<e>",)),
    ],
)
def test_secrets_are_masked_and_nothing_else(values: dict[str, Any], key: str, shown: object) -> None:
    assert next(row.value for row in explain(make_config({**BASE, **values})) if row.key == key) == shown


def test_the_schema_is_json_schema_and_names_every_key() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema == json.loads(json.dumps(schema))
    assert set(schema["properties"]) == {*fields(), *ALIASES}
    assert all(entry.get("description") for entry in schema["properties"].values())
    for block in schema["$defs"].values():
        assert all(entry.get("description") for entry in block["properties"].values())


def test_an_editor_agrees_with_us() -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    assert validator.is_valid({**BASE, "sample_packing": None, "bf16": "auto", "model_config": {"a": 1}})
    for wrong in (
        {"learing_rate": 1},
        {"bf16": "atuo"},
        {"seed": -1},
        {"optimizer": "adamww"},
        {"datasets": [{"pth": "x"}]},
    ):
        assert not validator.is_valid({**BASE, **wrong}), wrong
    # fsdp_ prefixes and what changes nothing are ours to forgive, not an editor's to suggest
    text = (CONFIGS / "llama3-8b-qlora.yaml").read_text()
    values = YAML(typ="safe").load(text)
    assert {error.validator for error in validator.iter_errors(values)} == {"additionalProperties"}
    del values["flash_attention"], values["eval_table_size"]
    assert validator.is_valid(values)


def test_every_field_has_one_sentence() -> None:
    for section in SECTIONS.values():
        for name, field in section.model_fields.items():
            assert field.description, name
            assert field.description.endswith(".")
            assert field.description[0].isupper() or field.description.startswith(("`", "flash", "eager")), name
