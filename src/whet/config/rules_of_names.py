"""Rules about names of things that other layers build, and about the rows of datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from whet.config.config import Config
from whet.config.names import (
    ADAPTERS,
    ATTENTION,
    ATTENTION_NOT_YET,
    ATTENTION_SHORT,
    CHAT_TEMPLATES,
    CHAT_TEMPLATES_NOT_YET,
    DATASET_TYPE_VARIANTS,
    DATASET_TYPES,
    DATASET_TYPES_NOT_YET,
    DPO_LOSSES,
    LORA_STARTS,
    LORA_STARTS_NOT_YET,
    METHODS,
    METHODS_NOT_YET,
    OPTIMIZERS,
    OPTIMIZERS_NOT_YET,
    PREFERENCE_TYPES,
    PREFERENCE_TYPES_NOT_YET,
    SCHEDULERS,
)
from whet.config.schema import DatasetConfig
from whet.core.errors import Problem
from whet.core.nearest import suggestion

Place = tuple[str | int, ...]


def _at(config: Config, key: str, found: str, fix: str) -> Problem:
    return Problem(config.where(key), found, fix, key)


def the_method_exists(config: Config) -> Problem | None:
    name = config.method.rl
    if name is None or name in METHODS:
        return None
    if name in METHODS_NOT_YET:
        return _at(config, "rl", f"rl: {name} is not supported yet", "write rl: dpo, or leave it out")
    return _at(config, "rl", f"rl: there is no method '{name}'", suggestion(name, METHODS))


def the_optimizer_exists(config: Config) -> Problem | None:
    name = config.optimizer.optimizer
    if name in OPTIMIZERS:
        return None
    if name in OPTIMIZERS_NOT_YET:
        return _at(config, "optimizer", f"optimizer: {name} is not supported yet", OPTIMIZERS_NOT_YET[name])
    return _at(config, "optimizer", f"optimizer: there is no '{name}'", suggestion(name, OPTIMIZERS))


def the_scheduler_exists(config: Config) -> Problem | None:
    name = config.optimizer.lr_scheduler
    if name in SCHEDULERS:
        return None
    return _at(config, "lr_scheduler", f"lr_scheduler: there is no '{name}'", suggestion(name, SCHEDULERS))


def the_adapter_exists(config: Config) -> Problem | None:
    name = config.adapter.adapter
    if name is None or name in ADAPTERS:
        return None
    return _at(config, "adapter", f"adapter: there is no '{name}'", suggestion(name, ADAPTERS))


def the_adapter_start_exists(config: Config) -> Problem | None:
    name = config.adapter.peft_init_lora_weights
    if name is None or isinstance(name, bool) or name in LORA_STARTS or name.startswith("pissa_niter_"):
        return None
    key = "peft_init_lora_weights"
    if name in LORA_STARTS_NOT_YET:
        return _at(config, key, f"{key}: {name} is not supported yet", "write pissa, or true")
    return _at(config, key, f"{key}: there is no '{name}'", suggestion(name, (*LORA_STARTS, "true", "false")))


def the_attention_exists(config: Config) -> Problem | None:
    name = config.attention.attn_implementation
    if name is None or name in ATTENTION or "/" in name:
        return None
    key = "attn_implementation"
    if name in ATTENTION_SHORT:
        return _at(
            config, key, f"{key}: '{name}' is short for {ATTENTION_SHORT[name]}", f"write {ATTENTION_SHORT[name]}"
        )
    if name in ATTENTION_NOT_YET:
        return _at(config, key, f"{key}: {name} is not supported yet", "write sdpa, or remove the line")
    return _at(config, key, f"{key}: there is no '{name}'", suggestion(name, ATTENTION))


def the_losses_exist(config: Config) -> Problem | None:
    for name in config.method.dpo_loss_type or ():
        if name not in DPO_LOSSES:
            return _at(config, "dpo_loss_type", f"dpo_loss_type: there is no '{name}'", suggestion(name, DPO_LOSSES))
    return None


def the_template_exists(config: Config) -> Problem | None:
    return _template_problem(config, ("chat_template",), config.template.chat_template)


def _template_problem(config: Config, place: Place, name: str | None) -> Problem | None:
    if name in (None, "jinja", "tokenizer_default"):
        return None
    shown = _shown(place)
    bare = name.removeprefix("tokenizer_default_fallback_")
    if bare in CHAT_TEMPLATES:
        return None
    where, key = config.where(place), str(place[0])
    if bare in CHAT_TEMPLATES_NOT_YET:
        return Problem(
            where,
            f"{shown}: the template {bare} is not shipped",
            "write tokenizer_default, or jinja with its text",
            key,
        )
    names = (*CHAT_TEMPLATES, "tokenizer_default", "jinja")
    return Problem(where, f"{shown}: there is no template '{name}'", suggestion(bare, names), key)


NAME_RULES: tuple[Callable[[Config], Problem | None], ...] = (
    the_method_exists,
    the_optimizer_exists,
    the_scheduler_exists,
    the_adapter_exists,
    the_adapter_start_exists,
    the_attention_exists,
    the_losses_exist,
    the_template_exists,
)


# Rows of datasets


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


def _shown(place: Place) -> str:
    return str(place[0]) if len(place) == 1 else f"{place[0]}[{place[1]}]" + (f".{place[2]}" if len(place) > 2 else "")


def _row_problem(config: Config, place: Place, found: str, fix: str) -> Problem:
    return Problem(config.where(place), f"{_shown(place)}: {found}", fix, str(place[0]))


def base_type(name: str) -> str:
    """What stands before the variant of a type.

    >>> base_type("alpaca:chat"), base_type("alpaca_chat.load_qa"), base_type("completion")
    ('alpaca', 'alpaca_chat', 'completion')
    """
    return name.replace(":", ".").split(".")[0]


def _type(config: Config, place: Place, row: DatasetConfig) -> Problem | None:
    at = (*place, "type")
    if row.type is None:
        return None
    if config.method.rl is not None:
        if row.type in PREFERENCE_TYPES:
            return None
        if row.type in PREFERENCE_TYPES_NOT_YET or base_type(row.type) in PREFERENCE_TYPES_NOT_YET:
            found = f"type {row.type} is not supported yet"
            return _row_problem(config, at, found, "leave type out and name the columns prompt, chosen and rejected")
        return _row_problem(
            config, at, f"there is no preference type '{row.type}'", suggestion(row.type, PREFERENCE_TYPES)
        )
    base = base_type(row.type)
    if base in DATASET_TYPES:
        variant = row.type.removeprefix(base)
        variants = DATASET_TYPE_VARIANTS[base]
        if not variant or variant in variants:
            return None
        full = [base, *(base + known for known in variants)]
        return _row_problem(config, at, f"type {base} has no variant '{variant[1:]}'", suggestion(row.type, full))
    if base in DATASET_TYPES_NOT_YET:
        return _row_problem(
            config, at, f"type {row.type} is not supported yet", "write the rows as messages: chat_template"
        )
    return _row_problem(config, at, f"there is no type '{row.type}'", suggestion(base, DATASET_TYPES))


def _template(config: Config, place: Place, row: DatasetConfig) -> Problem | None:
    return _template_problem(config, (*place, "chat_template"), row.chat_template)


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
    "conversation": ("sharegpt", "alpaca", "alpaca_chat", "alpaca_w_system"),
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
            found = f"changes nothing: {f'type {base}' if base else 'a row of token ids'} does not read it"
            return _row_problem(config, (*place, name), found, "remove the line")
    return None
