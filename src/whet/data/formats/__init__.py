"""Formats: how a row of a dataset becomes a sample. Each is a file, or a line of a table in one, and a line here."""

from __future__ import annotations

from whet.config.config import Config
from whet.config.schema.data import DatasetConfig
from whet.core.registry import Registry
from whet.data.formats.base import Format, MakeFormat
from whet.data.templates.resolve import dataset_place

#: Formats of supervised training. The name is what stands under ``type``, without a ``:style``.
FORMATS = Registry(
    "formats",
    {
        "tokens": "whet.data.formats.tokens:tokens",
        "chat_template": "whet.data.formats.chat:chat_template",
        "chat_template.default": "whet.data.formats.chat:chat_template",
        "sharegpt": "whet.data.formats.chat:sharegpt",
        "completion": "whet.data.formats.text:completion",
        "input_output": "whet.data.formats.text:input_output",
        "alpaca": "whet.data.formats.instruction:instruction",
        "alpaca_chat": "whet.data.formats.instruction:instruction",
        "alpaca_chat.load": "whet.data.formats.instruction:instruction",
        "alpaca_chat.load_concise": "whet.data.formats.instruction:instruction",
        "alpaca_chat.load_qa": "whet.data.formats.instruction:instruction",
        "alpaca_chat.load_camel_ai": "whet.data.formats.instruction:instruction",
        "alpaca_chat.load_no_prompt": "whet.data.formats.instruction:instruction",
        "alpaca_instruct": "whet.data.formats.instruction:instruction",
        "alpaca_instruct.load": "whet.data.formats.instruction:instruction",
        "alpaca_instruct.load_no_prompt": "whet.data.formats.instruction:instruction",
        "alpaca_w_system": "whet.data.formats.instruction:instruction",
        "alpaca_w_system.load": "whet.data.formats.instruction:instruction",
        "alpaca_w_system.load_chat": "whet.data.formats.instruction:instruction",
        "alpaca_w_system.load_instruct": "whet.data.formats.instruction:instruction",
        "alpaca_w_system.load_open_orca": "whet.data.formats.instruction:instruction",
        "alpaca_w_system.load_open_orca_chatml": "whet.data.formats.instruction:instruction",
        "gpteacher": "whet.data.formats.instruction:instruction",
        "oasst": "whet.data.formats.instruction:instruction",
        "jeopardy": "whet.data.formats.instruction:instruction",
        "summarizetldr": "whet.data.formats.instruction:instruction",
        "orcamini": "whet.data.formats.instruction:instruction",
        "metharme": "whet.data.formats.metharme:metharme",
    },
)

#: Formats of preference training (``rl: dpo``).
PREFERENCE_FORMATS = Registry(
    "preference_formats",
    {
        "prompt_pairs": "whet.data.formats.preference:plain",
        "chat_template": "whet.data.formats.preference:chat_template",
        "chat_template.default": "whet.data.formats.preference:chat_template",
        "chat_template.argilla_chat": "whet.data.formats.preference:argilla_chat",
        **{
            f"{style}.{name}": f"whet.data.formats.preference:{name}"
            for style in ("chatml", "llama3")
            for name in ("default", "argilla_chat", "icr", "intel", "prompt_pairs", "ultra")
        },
    },
)


def make_format(dataset: DatasetConfig, config: Config) -> Format:
    """The reader of a dataset's rows.

    Raises:
        ConfigError: no such format, or one of its options is wrong.
    """
    where = config.where((*dataset_place(config, dataset), "type"))
    preference = config.method.rl is not None
    name = (dataset.type or ("prompt_pairs" if preference else "tokens")).partition(":")[0]
    table = PREFERENCE_FORMATS if preference else FORMATS
    make: MakeFormat = table.load(name, where)
    return make(dataset, config)
