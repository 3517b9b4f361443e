"""Formats: how a row of a dataset becomes a sample. Each is a file, or a line of a table in one, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from whet.config.config import Config
from whet.config.schema.data import DatasetConfig, PromptFormat
from whet.config.tasks import Task, bare_type, task_of
from whet.config.user_code import code_name, is_importable
from whet.core.registry import Registry
from whet.data.formats.base import Format, MakeFormat, format_identity
from whet.data.formats.composed import TYPES as _COMPOSED
from whet.data.formats.instruction import TYPES as _INSTRUCTIONS
from whet.data.templates.resolve import dataset_place

_HERE = "whet.data.formats"

#: Formats of supervised training. The name is what stands under ``type``, without a ``:style``.
FORMATS = Registry(
    "formats",
    {
        "tokens": f"{_HERE}.tokens:tokens",
        "chat_template": f"{_HERE}.chat:chat_template",
        "chat_template.default": f"{_HERE}.chat:chat_template",
        "messages.chat": f"{_HERE}.chat:chat_template",
        "sharegpt": f"{_HERE}.chat:sharegpt",
        "pygmalion": f"{_HERE}.chat:pygmalion",
        "llama2_chat": f"{_HERE}.chat:llama2_chat",
        "completion": f"{_HERE}.text:completion",
        "pretrain": f"{_HERE}.text:completion",
        "input_output": f"{_HERE}.text:input_output",
        "prompt_completion": f"{_HERE}.text:prompt_completion",
        "metharme": f"{_HERE}.metharme:metharme",
        "_synthetic": f"{_HERE}.synthetic:synthetic",
        **{
            name: f"{_HERE}.{file}:{make}"
            for file, make, types in (
                ("instruction", "instruction", _INSTRUCTIONS),
                ("composed", "composed", _COMPOSED),
            )
            for type_ in types
            for name in dict.fromkeys((type_, type_.removesuffix(".load")))
        },
        "alpaca_w_system": f"{_HERE}.instruction:instruction",
        "creative_acr": f"{_HERE}.composed:composed",
    },
)

#: Formats of preference training (``rl: dpo``, ipo, simpo).
PREFERENCE_FORMATS = Registry(
    "preference_formats",
    {
        "prompt_pairs": f"{_HERE}.preference:plain",
        "chat_template": f"{_HERE}.preference:chat_template",
        "chat_template.default": f"{_HERE}.preference:chat_template",
        "chat_template.argilla": f"{_HERE}.preference:argilla_chat",
        "chat_template.argilla_chat": f"{_HERE}.preference:argilla_chat",
        "passthrough.default": f"{_HERE}.preference:pass_through",
        "zephyr.nectar": f"{_HERE}.preference:nectar",
        **{
            f"{style}.{name}": f"{_HERE}.preference:{name}"
            for style in ("chatml", "llama3")
            for name in ("argilla", "argilla_chat", "default", "icr", "intel", "prompt_pairs", "ultra")
        },
    },
)

#: Formats of ``rl: kto``.
UNPAIRED_FORMATS = Registry(
    "unpaired_formats",
    {
        "prompt_completion": f"{_HERE}.unpaired:plain",
        "passthrough.default": f"{_HERE}.unpaired:pass_through",
        **{
            f"{style}.{name}": f"{_HERE}.unpaired:{make}"
            for style in ("chatml", "llama3")
            for name, make in (
                ("argilla", "argilla"),
                ("argilla_chat", "argilla_chat"),
                ("intel", "intel"),
                ("prompt_pairs", "plain"),
                ("ultra", "plain"),
            )
        },
    },
)

#: Formats of ``rl: orpo``.
ODDS_FORMATS = Registry(
    "odds_formats",
    {
        "prompt_pairs": f"{_HERE}.preference:plain",
        "passthrough.default": f"{_HERE}.preference:pass_through",
        **dict.fromkeys(("chat_template", "chat_template.argilla"), f"{_HERE}.preference:argilla_chat"),
        "chat_template.load": f"{_HERE}.preference:argilla_chat",
    },
)

#: Formats of ``reward_model: true``.
REWARD_FORMATS = Registry(
    "reward_formats",
    {
        "prompt_pairs": f"{_HERE}.preference:plain",
        "bradley_terry.chat_template": f"{_HERE}.preference:bradley_terry",
        "bradley_terry.llama3": f"{_HERE}.preference:bradley_terry",
    },
)

#: Formats of ``process_reward_model: true``.
STEPS_FORMATS = Registry("steps_formats", {"stepwise_supervised": f"{_HERE}.stepwise:stepwise"})

#: Formats of ``rl: grpo`` and gdpo.
PROMPTS_FORMATS = Registry(
    "prompts_formats",
    {"prompt": f"{_HERE}.prompts:prompt", "passthrough.default": f"{_HERE}.prompts:pass_through"},
)

#: Formats of ``rl: ebft``.
FEATURES_FORMATS = Registry(
    "features_formats",
    {
        "prompt": f"{_HERE}.prompts:prompt_and_answer",
        "passthrough.default": f"{_HERE}.prompts:text_and_answer",
        "ebft_opencode.transform": f"{_HERE}.prompts:opencode",
        "ebft_pretrain.transform": f"{_HERE}.text:completion",
        "ebft_strided_structured.transform": f"{_HERE}.text:strided_structured",
        "ebft_strided_chat.transform": f"{_HERE}.chat:chat_template",
        **{
            f"ebft_chat_multiturn.{name}": f"{_HERE}.prompts:multiturn"
            for name in ("transform", "transform_last_turn", "transform_all_turns")
        },
        **{
            f"ebft_reasoning.{name}": f"{_HERE}.prompts:reasoning"
            for name in ("transform", "transform_answer_only", "transform_strided", "transform_strided_answer_only")
        },
    },
)

#: Kind of rows -> its formats.
TABLES: Mapping[Task, Registry] = {
    "supervised": FORMATS,
    "preference": PREFERENCE_FORMATS,
    "unpaired": UNPAIRED_FORMATS,
    "odds": ODDS_FORMATS,
    "reward": REWARD_FORMATS,
    "steps": STEPS_FORMATS,
    "prompts": PROMPTS_FORMATS,
    "features": FEATURES_FORMATS,
}

#: Kind of rows -> the format of a dataset without a ``type``.
UNTYPED: Mapping[Task, str] = {
    "supervised": "tokens",
    "preference": "prompt_pairs",
    "unpaired": "prompt_completion",
    "odds": "prompt_pairs",
    "reward": "prompt_pairs",
    "steps": "stepwise_supervised",
    "prompts": "prompt",
    "features": "prompt",
}

#: Key of what a user's function gives -> the format that reads it, the first that is there; of supervised training.
_READ_AS = Registry(
    "row_formats",
    {
        "input_ids": f"{_HERE}.tokens:tokens",
        "messages": f"{_HERE}.chat:chat_template",
        "conversations": f"{_HERE}.chat:sharegpt",
        "segments": f"{_HERE}.text:input_output",
        "completion": f"{_HERE}.text:prompt_completion",
        "instruction": f"{_HERE}.instruction:alpaca",
        "text": f"{_HERE}.text:completion",
    },
)
_READ_FIRST = ("input_ids", "messages", "conversations", "segments", "completion", "instruction", "text")


def make_format(dataset: DatasetConfig, config: Config, tokenizer: Any = None) -> Format:
    """The reader of a dataset's rows.

    Args:
        dataset: its options.
        config: the config it belongs to.
        tokenizer: for the formats that need one before they can read a row (``_synthetic``, and functions of the
            user's that take one). Without it, such a format can be asked for all but its samples.

    Raises:
        ConfigError: no such format, or one of its options is wrong.
    """
    format_ = _unbound(dataset, config)
    bound = getattr(format_, "bound", None)
    return format_ if bound is None or tokenizer is None else bound(tokenizer)


def _unbound(dataset: DatasetConfig, config: Config) -> Format:
    task = task_of(config)
    if isinstance(dataset.type, PromptFormat):
        from whet.data.formats.own_prompt import own_prompt

        return own_prompt(dataset, config)
    table = TABLES[task]
    name = bare_type(dataset.type or UNTYPED[task], task).partition(":")[0]
    if dataset.type and name not in table:
        code = code_name(dataset.type)
        if code is not None and (code.file or is_importable(code.module, config.file)):
            return _own_code(dataset, config, task, dataset.type)
    if dataset.input_transform and task == "supervised":
        return _own_code(dataset, config, task, dataset.input_transform)
    make: MakeFormat = table.load(name, config.where((*dataset_place(config, dataset), "type")))
    return make(dataset, config)


def _own_code(dataset: DatasetConfig, config: Config, task: Task, name: str) -> Format:
    """A user's function, with the formats that may read what it gives."""
    from whet.data.formats.own_code import own_code

    def made(table: Registry, format_name: str) -> Format:
        make: MakeFormat = table.load(format_name)
        return make(dataset, config)

    if task == "supervised":
        named = {"messages": dataset.field_messages, "text": dataset.field or dataset.text_column}
        read_as = {named.get(key) or key: made(_READ_AS, key) for key in _READ_FIRST}
        return own_code(dataset, config, name, read_as, read_as)
    table, untyped = TABLES[task], UNTYPED[task]
    raw = "passthrough.default" if "passthrough.default" in table else untyped
    return own_code(dataset, config, name, {"": made(table, untyped)}, {"": made(table, raw)})


__all__ = [
    "FEATURES_FORMATS",
    "FORMATS",
    "ODDS_FORMATS",
    "PREFERENCE_FORMATS",
    "PROMPTS_FORMATS",
    "REWARD_FORMATS",
    "STEPS_FORMATS",
    "TABLES",
    "UNPAIRED_FORMATS",
    "UNTYPED",
    "Format",
    "format_identity",
    "make_format",
]
