"""Rules about the rows of `datasets` and `test_datasets`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from whet.config.config import Config
from whet.config.names import (
    DATASET_TYPES,
    DATASET_TYPES_NOT_YET,
    PREFERENCE_TYPES,
    PREFERENCE_TYPES_NOT_YET,
    STYLED_TYPES,
    STYLES,
)
from whet.config.rules.base import Place, contributed, shown_place
from whet.config.rules.names import template_problem
from whet.config.schema import DatasetConfig
from whet.core.errors import Problem
from whet.core.nearest import suggestion


def row_problems(config: Config) -> list[Problem]:
    """What contradicts itself in the rows of `datasets` and `test_datasets`."""
    return [
        problem
        for place, row in _rows(config)
        for rule in (_type, _template, _jinja, _shards, _mapping)
        if (problem := rule(config, place, row)) is not None
    ]


def row_remarks(config: Config) -> list[Problem]:
    """Options of rows that their type does not read."""
    return [problem for place, row in _rows(config) if (problem := _unread_option(config, place, row)) is not None]


def _rows(config: Config) -> Iterable[tuple[Place, DatasetConfig]]:
    for key, rows in (("datasets", config.data.datasets), ("test_datasets", config.data.test_datasets)):
        for index, row in enumerate(rows):
            yield (key, index), row


def _row_problem(config: Config, place: Place, found: str, fix: str) -> Problem:
    return Problem(config.where(place), f"{shown_place(place)}: {found}", fix, str(place[0]))


def base_type(name: str) -> str:
    """What stands before the variant of a type.

    >>> base_type("alpaca:chat"), base_type("alpaca_chat.load_qa"), base_type("completion")
    ('alpaca', 'alpaca_chat', 'completion')
    """
    return name.replace(":", ".").split(".")[0]


def _type(config: Config, place: Place, row: DatasetConfig) -> Problem | None:
    if row.type is None:
        return None
    at = (*place, "type")
    if config.method.rl is not None:
        return _preference_type(config, at, row.type)
    name, _, style = row.type.partition(":")
    if name in DATASET_TYPES:
        styles = STYLES if name in STYLED_TYPES else ()
        if not style or style in styles:
            return None
        fix = suggestion(style, styles) if styles else f"write {name}"
        return _row_problem(config, at, f"type {name} has no style '{style}'", fix)
    if contributed("formats", name):
        return None
    if base_type(name) in DATASET_TYPES_NOT_YET:
        fix = "write the rows as messages, with `type: chat_template`"
        return _row_problem(config, at, f"type {row.type} is not supported yet", fix)
    return _row_problem(config, at, f"there is no type '{row.type}'", suggestion(row.type, DATASET_TYPES))


def _preference_type(config: Config, at: Place, name: str) -> Problem | None:
    if name in PREFERENCE_TYPES or contributed("preference_formats", name):
        return None
    if name in PREFERENCE_TYPES_NOT_YET:
        fix = "leave type out and name the columns prompt, chosen and rejected"
        return _row_problem(config, at, f"type {name} is not supported yet", fix)
    found = f"there is no type '{name}' of preference rows"
    return _row_problem(config, at, found, suggestion(name, PREFERENCE_TYPES))


def _template(config: Config, place: Place, row: DatasetConfig) -> Problem | None:
    return template_problem(config, (*place, "chat_template"), row.chat_template)


def _jinja(config: Config, place: Place, row: DatasetConfig) -> Problem | None:
    if row.chat_template == "jinja" and row.chat_template_jinja is None and config.template.chat_template_jinja is None:
        return _row_problem(
            config, (*place, "chat_template"), "there is no chat_template_jinja", "add its text or file"
        )
    if row.chat_template not in (None, "jinja") and row.chat_template_jinja is not None:
        found = f"not used, for chat_template is {row.chat_template}"
        return _row_problem(config, (*place, "chat_template_jinja"), found, "write chat_template: jinja, or remove one")
    return None


def _shards(config: Config, place: Place, row: DatasetConfig) -> Problem | None:
    if row.shards is None:
        if row.shards_idx is None:
            return None
        return _row_problem(config, (*place, "shards_idx"), "shards is not written", "add shards, the number of parts")
    if row.shards_idx is None:
        return _row_problem(config, (*place, "shards"), "shards_idx is not written", "add shards_idx, the part to read")
    if row.shards_idx < row.shards:
        return None
    found = f"{row.shards_idx} is no part of {row.shards}"
    return _row_problem(config, (*place, "shards_idx"), found, f"write a number from 0 to {row.shards - 1}")


def _mapping(config: Config, place: Place, row: DatasetConfig) -> Problem | None:
    mapped = row.message_property_mappings or {}
    for key, name in (("message_field_role", "role"), ("message_field_content", "content")):
        old = getattr(row, key)
        if old is not None and mapped.get(name, old) != old:
            found = f"{old}, and message_property_mappings.{name} is {mapped[name]}"
            return _row_problem(config, (*place, key), found, "keep message_property_mappings alone")
    return None


_CHAT_OPTIONS = (
    "field_messages",
    "field_tools",
    "field_system",
    "field_thinking",
    "template_thinking_key",
    "message_field_role",
    "message_field_content",
    "message_property_mappings",
    "message_field_training",
    "message_field_training_detail",
    "roles",
    "roles_to_train",
    "train_on_eos",
    "train_on_eot",
    "drop_system_message",
    "split_thinking",
    "chat_template",
    "chat_template_jinja",
    "chat_template_kwargs",
)
_READ_BY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_CHAT_OPTIONS, ("chat_template", "sharegpt")),
    "field": ("completion",),
    "conversation": ("sharegpt", "alpaca_chat"),
}


def _unread_option(config: Config, place: Place, row: DatasetConfig) -> Problem | None:
    """The first option that the row's type does not read."""
    if config.method.rl is not None:
        return None
    base = base_type(row.type) if row.type else None
    for name in type(row).model_fields:
        value: Any = getattr(row, name)
        readers = ("rl: dpo",) if name in ("field_chosen", "field_rejected") else _READ_BY.get(name)
        if readers and base not in readers and value not in (None, False):
            reader = f"type {base}" if base else "a row of token ids"
            found = f"{shown_place((*place, name))} changes nothing: {reader} does not read it"
            return Problem(config.where((*place, name)), found, "remove the line", str(place[0]))
    return None
