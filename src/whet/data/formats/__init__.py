"""Formats: how a row of a dataset becomes a sample. One file a kind, one line each in the table."""

from __future__ import annotations

from whet.config.config import Config
from whet.config.schema.data import DatasetConfig
from whet.core.registry import Registry
from whet.data.formats.base import CONFIGURED, Format, MakeFormat
from whet.data.templates.resolve import dataset_place

FORMATS = Registry(
    "formats",
    {
        "chat_template": "whet.data.formats.chat:chat_template",
        "chat_template.default": "whet.data.formats.chat:chat_template",
        "sharegpt": "whet.data.formats.chat:sharegpt",
    },
)


def make_format(dataset: DatasetConfig, config: Config) -> Format:
    """The reader of a dataset's rows.

    Raises:
        ConfigError: no such format.
    """
    name = (dataset.type or "tokens").partition(":")[0]
    make: MakeFormat = FORMATS.load(name, config.where((*dataset_place(config, dataset), "type")))
    return make(dataset, config)


def uses_chat_template(config: Config) -> bool:
    """Whether any dataset of the config is rendered with the chat template of the config."""
    datasets = (*config.data.datasets, *config.data.test_datasets)
    return any(make_format(dataset, config).template == CONFIGURED for dataset in datasets)
