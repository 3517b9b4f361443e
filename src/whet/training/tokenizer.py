"""The tokenizer of a run: the model's, with the chat template of training on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whet.config import Config
from whet.data.formats import make_format
from whet.data.formats.base import CONFIGURED
from whet.data.templates.resolve import resolve_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def run_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """Whatever is saved with this tokenizer carries the template that rendered the training data.

    Raises:
        ModelError: the tokenizer cannot be loaded.
        ConfigError: the chat template cannot be found.
    """
    from whet.model.tokenizer import load_tokenizer, with_template

    tokenizer = load_tokenizer(config)
    if config.template.chat_template or config.template.chat_template_jinja or _renders_with_it(config, tokenizer):
        return with_template(tokenizer, resolve_template(config, None, tokenizer))
    return tokenizer


def _renders_with_it(config: Config, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether any dataset is rendered with the chat template of the config."""
    datasets = (*config.data.datasets, *config.data.test_datasets)
    return any(make_format(dataset, config, tokenizer).template == CONFIGURED for dataset in datasets)
