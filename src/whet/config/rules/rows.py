"""Rules about the rows of `datasets` and `test_datasets`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from whet.config.config import Config
from whet.config.names import DATASET_TYPES_NOT_YET, STYLED_TYPES, STYLES, TYPES
from whet.config.placeholders import WrongFormat, pieces
from whet.config.rules.base import Place, contributed, shown_place
from whet.config.rules.names import template_problem, variables_problem
from whet.config.schema import DatasetConfig, PromptFormat
from whet.config.tasks import Task, bare_type, method_key, task_of
from whet.config.user_code import code_name, is_importable
from whet.core.errors import Problem
from whet.core.nearest import nearest, suggestion


def row_problems(config: Config) -> list[Problem]:
    """What contradicts itself in the rows of `datasets` and `test_datasets`."""
    return [
        problem
        for place, row in _rows(config)
        for rule in (_type, _template, _jinja, _variables, _shards, _mapping, _text, _transform, _history, _synthetic)
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
    at, task = (*place, "type"), task_of(config)
    if isinstance(row.type, PromptFormat):
        return _prompt_format(config, at, row.type, task)
    name, _, style = bare_type(row.type, task).partition(":")
    if name in TYPES[task]:
        styles = STYLES if name in STYLED_TYPES else ()
        if not style or style in styles:
            return None
        fix = suggestion(style, styles) if styles else f"write {name}"
        return _row_problem(config, at, f"type {name} has no style '{style}'", fix)
    if contributed(registry_kind(task), name):
        return None
    if row.type in DATASET_TYPES_NOT_YET:
        fix = "write the rows as messages, with `type: chat_template`"
        return _row_problem(config, at, f"type {row.type} is not supported yet", fix)
    code = code_name(row.type)
    if code is not None and not code.function:
        return _row_problem(config, at, f"{row.type} is a file", f"name the function in it: {row.type}:my_row")
    if code is not None and (code.file or is_importable(code.module, config.file)):
        return None
    return _no_such_type(config, at, row.type, task)


def is_own_code(type_: str, task: Task) -> bool:
    """Whether a type can only be a function that its writer has named, as against one that whet or a package has."""
    name = bare_type(type_, task).partition(":")[0]
    return name not in TYPES[task] and not contributed(registry_kind(task), name) and code_name(type_) is not None


def _no_such_type(config: Config, at: Place, name: str, task: Task) -> Problem:
    method = method_key(config)
    found = f"there is no type '{name}'" + (f" under {method}" if method else "")
    home = next((other for other, types in TYPES.items() if name.partition(":")[0] in types), None)
    if home is not None and nearest(name, TYPES[task]) is None:
        return _row_problem(config, at, found, f"it is for {_METHOD_OF[home]}")
    return _row_problem(config, at, found, suggestion(name, TYPES[task]))


_METHOD_OF = {
    "supervised": "supervised fine-tuning: leave out rl, or name columns of pairs",
    "preference": "pairs: write rl: dpo",
    "unpaired": "rl: kto",
    "odds": "rl: orpo",
    "reward": "reward_model: true",
    "steps": "process_reward_model: true",
    "prompts": "rl: grpo",
    "features": "rl: ebft",
}
"""Kind of rows -> what to write for it."""


def registry_kind(task: Task) -> str:
    """The registry, and the entry-point group behind ``whet.``, of the formats of a kind of rows."""
    return "formats" if task == "supervised" else f"{task}_formats"


_PAIRS = {
    **dict.fromkeys(("field_system", "field_prompt", "field_chosen", "field_rejected"), ()),
    "prompt_format": ("prompt", "system"),
    "chosen_format": ("chosen",),
    "rejected_format": ("rejected",),
}
_PROMPT_KEYS: dict[str, dict[str, tuple[str, ...]]] = {
    "supervised": {
        **dict.fromkeys(("system_prompt", "field_system", "field_instruction", "field_input", "field_output"), ()),
        "system_format": ("system",),
        "format": ("instruction", "input"),
        "no_input_format": ("instruction",),
    },
    "preference": _PAIRS,
    "odds": _PAIRS,
    "reward": _PAIRS,
    "unpaired": {
        **dict.fromkeys(("field_system", "field_prompt", "field_completion", "field_label"), ()),
        "prompt_format": ("prompt", "system"),
        "completion_format": ("completion",),
    },
}
"""Kind of rows -> the keys of a prompt of one's own -> the places that its text may have; () where it is no format."""


def _prompt_format(config: Config, at: Place, prompt: PromptFormat, task: Task) -> Problem | None:
    """The first key that the method does not read, or format that cannot be filled."""
    keys = _PROMPT_KEYS.get(task)
    if keys is None:
        found = f"a mapping is no type under {method_key(config)}"
        return _row_problem(config, at, found, f"use one of: {', '.join(TYPES[task])}, or a function of your own")
    for key, value in prompt.model_dump(exclude_none=True).items():
        if key not in keys:
            found = f"{key} is not read {f'under {method}' if (method := method_key(config)) else 'without `rl`'}"
            return _row_problem(config, (*at, key), found, f"use {', '.join(keys)}")
        if not keys[key]:
            continue
        try:
            pieces(value, keys[key])
        except WrongFormat as error:
            return _row_problem(config, (*at, key), error.found, error.fix)
    return None


def _text(config: Config, place: Place, row: DatasetConfig) -> Problem | None:
    if row.field is None or row.text_column in (None, row.field):
        return None
    found = f"{row.text_column}, and field is {row.field}"
    return _row_problem(config, (*place, "text_column"), found, "keep one of them")


def _transform(config: Config, place: Place, row: DatasetConfig) -> Problem | None:
    if row.input_transform is None:
        return None
    at, code = (*place, "input_transform"), code_name(row.input_transform)
    if code is None or not code.function:
        return _row_problem(config, at, f"'{row.input_transform}' is no function", "write my_file.py:my_function")
    if code.file is None and not is_importable(code.module, config.file):
        fix = "write my_file.py:my_function, or type: sharegpt for from/value messages"
        return _row_problem(config, at, f"there is no module '{code.module}'", fix)
    return None


def _history(config: Config, place: Place, row: DatasetConfig) -> Problem | None:
    if not (row.explode_turns and row.keep_history):
        return None
    return _row_problem(config, (*place, "keep_history"), "true, and so is explode_turns", "keep one of them")


def _synthetic(config: Config, place: Place, row: DatasetConfig) -> Problem | None:
    if (row.path == "synthetic") != (row.type == "_synthetic"):
        found, fix = (
            ("path is synthetic", "type: _synthetic")
            if row.path == "synthetic"
            else ("type is _synthetic", "path: synthetic")
        )
        return _row_problem(config, (*place, "type"), found, f"write {fix} with it")
    if row.max_input_id is not None and row.max_input_id <= (
        low := 100 if row.min_input_id is None else row.min_input_id
    ):
        found = f"{row.max_input_id} is not above min_input_id, {low}"
        return _row_problem(config, (*place, "max_input_id"), found, "raise it")
    return None


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


def _variables(config: Config, place: Place, row: DatasetConfig) -> Problem | None:
    return variables_problem(config, (*place, "chat_template_kwargs"), row.chat_template_kwargs)


def _shards(config: Config, place: Place, row: DatasetConfig) -> Problem | None:
    if row.shards is None:
        if row.shards_idx is None:
            return None
        return _row_problem(config, (*place, "shards_idx"), "shards is not written", "add shards, the number of parts")
    if row.shards_idx is None:
        fix = f"add `shards_idx: 0`, the part to read (0 to {row.shards - 1})"
        return _row_problem(config, (*place, "shards"), "shards_idx is not written", fix)
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
    "explode_turns",
    "keep_history",
    "chat_template",
    "chat_template_jinja",
    "chat_template_kwargs",
)
_SYNTHETIC_OPTIONS = ("length", "sequence_length", "min_input_id", "max_input_id", "seed")
_STEP_OPTIONS = ("step_separator", "max_completion_length", "train_on_last_step_only")
_READ_BY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_CHAT_OPTIONS, ("chat_template", "sharegpt", "messages", "pygmalion", "llama2_chat")),
    **dict.fromkeys(_SYNTHETIC_OPTIONS, ("_synthetic",)),
    **dict.fromkeys(_STEP_OPTIONS, ("stepwise_supervised",)),
    "field": ("completion", "pretrain"),
    "text_column": ("completion", "pretrain"),
    "input_transform": ("messages",),
    "conversation": ("sharegpt", "alpaca_chat"),
    "field_chosen": (),
    "field_rejected": (),
}
"""Option -> the families of types that read it, where not every type does."""
_HISTORY_OPTIONS = ("explode_turns", "keep_history")
_NEVER_SUPERVISED = (
    *_SYNTHETIC_OPTIONS,
    *_HISTORY_OPTIONS,
    "field",
    "text_column",
    "input_transform",
    "conversation",
)
"""What only supervised types read, but for those of `rl: ebft` that are as supervised ones."""


def _unread_option(config: Config, place: Place, row: DatasetConfig) -> Problem | None:
    """The first option that the row's type does not read."""
    task = task_of(config)
    if task == "supervised":
        name = None if row.type is None else "a mapping" if isinstance(row.type, PromptFormat) else row.type
        base = base_type(bare_type(name, task)) if name else None
        if name is not None and name.partition(":")[0] not in TYPES[task] and name != "a mapping":
            return None  # code of the user's own, or a wrong type
        reader = f"type {base}" if base else "a row of token ids"
        unread = {key for key, readers in _READ_BY.items() if base not in readers}
    else:
        reader = method_key(config) or ""
        of_features = (*_HISTORY_OPTIONS, "field", "text_column")
        read = _STEP_OPTIONS if task == "steps" else of_features if task == "features" else ()
        unread = {*_NEVER_SUPERVISED, *_STEP_OPTIONS} - {*read}
    for name in type(row).model_fields:
        value: Any = getattr(row, name)
        if name in unread and value not in (None, False):
            found = f"{shown_place((*place, name))} changes nothing: {reader} does not read it"
            return Problem(config.where((*place, name)), found, "remove the line", str(place[0]))
    return None
