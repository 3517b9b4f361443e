"""The YAML's keys as JSON Schema (draft 2020-12), for editors that complete and check."""

from __future__ import annotations

from typing import Any

from whet.config.known_keys import ALIASES
from whet.config.names import (
    ADAPTERS,
    ATTENTION,
    CHAT_TEMPLATES,
    METHODS,
    METHODS_PREPARED,
    OPTIMIZERS,
    SCHEDULERS,
    TYPES,
)
from whet.config.schema import SECTIONS

_NAMES: dict[str, tuple[str, ...]] = {
    "adapter": ADAPTERS,
    "lr_scheduler": SCHEDULERS,
    "optimizer": OPTIMIZERS,
    "rl": (*METHODS, *METHODS_PREPARED),
}
_EXAMPLES: dict[str, tuple[str, ...]] = {
    "attn_implementation": ATTENTION,
    "chat_template": (*CHAT_TEMPLATES, "tokenizer_default", "jinja"),
}


def json_schema() -> dict[str, Any]:
    """The schema of a whole file: flat keys, each with its type, default and sentence.

    Keys left empty are allowed everywhere, as in the YAML.
    """
    properties: dict[str, Any] = {}
    definitions: dict[str, Any] = {}
    for section in SECTIONS.values():
        schema = section.model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(schema.get("$defs", {}))
        properties.update(schema["properties"])
    for block in definitions.values():
        block["properties"] = {name: _presented(name, entry) for name, entry in block["properties"].items()}
    if "DatasetConfig" in definitions:
        definitions["DatasetConfig"]["properties"]["type"]["examples"] = [
            *dict.fromkeys(name for types in TYPES.values() for name in types)
        ]
    properties = {name: _presented(name, entry) for name, entry in properties.items()}
    for alias, name in ALIASES.items():
        properties[alias] = {**properties[name], "description": f"Another spelling of {name}."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "whet",
        "description": "One YAML file, one fine-tuned language model.",
        "type": "object",
        "properties": properties,
        "required": ["base_model", "datasets", "learning_rate"],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _presented(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """An entry with its names and without Pydantic's titles; empty is allowed."""
    shown = {key: value for key, value in entry.items() if key != "title"}
    about: dict[str, Any] = {key: shown.pop(key) for key in ("description", "default") if key in shown}
    if name in _NAMES:
        shown = {"enum": [*_NAMES[name], None]}
    elif "anyOf" not in shown:
        shown = {"anyOf": [shown, {"type": "null"}]}
    elif {"type": "null"} not in shown["anyOf"]:
        shown = {"anyOf": [*shown["anyOf"], {"type": "null"}]}
    if name in _EXAMPLES:
        shown["examples"] = list(_EXAMPLES[name])
    return {**about, **shown}
