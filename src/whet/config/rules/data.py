"""Rules about data, packing, the template and the tokenizer."""

from __future__ import annotations

from whet.config.config import Config
from whet.config.rules.base import Rule, at
from whet.core.errors import Problem


def there_is_something_to_train_on(config: Config) -> Problem | None:
    if config.data.datasets:
        return None
    return at(config, "datasets", "datasets is missing", "add `datasets:` with a row `- path: ...` and `type: ...`")


def evaluation_rows_come_from_one_place(config: Config) -> Problem | None:
    if not (config.data.val_set_size and config.data.test_datasets):
        return None
    return at(config, "val_set_size", "val_set_size and test_datasets are both written", "keep one of them")


def val_set_size_is_a_share_or_a_count(config: Config) -> Problem | None:
    size = config.data.val_set_size
    if size < 1 or (size >= 2 and size.is_integer()):
        return None
    return at(
        config, "val_set_size", f"val_set_size is {size:g}", "write a share below 1, or a whole number of rows from 2"
    )


def min_sample_fits_the_sequence(config: Config) -> Problem | None:
    data = config.data
    if data.min_sample_len <= data.sequence_len:
        return None
    return at(
        config,
        "min_sample_len",
        f"min_sample_len {data.min_sample_len} is above sequence_len {data.sequence_len}: no sample is left",
        "lower it",
    )


def a_part_of_the_rows_has_a_number(config: Config) -> Problem | None:
    num, index = config.data.dataset_shard_num, config.data.dataset_shard_idx
    if num is None:
        if index is None:
            return None
        found = "dataset_shard_idx is written, and dataset_shard_num is not"
        return at(config, "dataset_shard_idx", found, "add dataset_shard_num, the number of parts")
    if index is None:
        found = "dataset_shard_num is written, and dataset_shard_idx is not"
        return at(config, "dataset_shard_num", found, "add dataset_shard_idx, the part to read")
    if index < num:
        return None
    found = f"dataset_shard_idx {index} is no part of {num}"
    return at(config, "dataset_shard_idx", found, f"write a number from 0 to {num - 1}")


def padding_fits_the_sequence(config: Config) -> Problem | None:
    multiple, length = config.packing.pad_to_multiple_of, config.data.sequence_len
    if multiple is None or not config.packing.pad_to_sequence_len or length % multiple == 0:
        return None
    return at(
        config,
        "pad_to_multiple_of",
        f"pad_to_sequence_len pads to {length}, which is no multiple of pad_to_multiple_of {multiple}",
        "keep one of the two",
    )


def workers_before_prefetching(config: Config) -> Problem | None:
    if config.data.dataloader_prefetch_factor is None or config.data.dataloader_num_workers:
        return None
    return at(
        config,
        "dataloader_prefetch_factor",
        "dataloader_prefetch_factor is written, and no worker builds batches",
        "add `dataloader_num_workers: 2`",
    )


def jinja_comes_with_its_text(config: Config) -> Problem | None:
    template = config.template
    if template.chat_template == "jinja" and template.chat_template_jinja is None:
        return at(
            config,
            "chat_template",
            "chat_template is jinja, and there is no chat_template_jinja",
            "add its text or file",
        )
    if template.chat_template not in (None, "jinja") and template.chat_template_jinja is not None:
        return at(
            config,
            "chat_template_jinja",
            f"chat_template_jinja would not be used: chat_template is {template.chat_template}",
            "write chat_template: jinja, or remove one of the two",
        )
    return None


def the_tokenizer_is_a_fast_one(config: Config) -> Problem | None:
    if config.tokenizer.tokenizer_use_fast:
        return None
    return at(
        config,
        "tokenizer_use_fast",
        "tokenizer_use_fast is false, and slow tokenizers do not say which characters a token stands for",
        "remove the line",
    )


def new_tokens_have_a_text(config: Config) -> Problem | None:
    if all(token.strip() for token in config.tokenizer.tokens or ()):
        return None
    return at(config, "tokens", "tokens: a token is empty", "write its text, or remove it")


DATA_RULES: tuple[Rule, ...] = (
    there_is_something_to_train_on,
    evaluation_rows_come_from_one_place,
    val_set_size_is_a_share_or_a_count,
    min_sample_fits_the_sequence,
    a_part_of_the_rows_has_a_number,
    padding_fits_the_sequence,
    workers_before_prefetching,
    jinja_comes_with_its_text,
    the_tokenizer_is_a_fast_one,
    new_tokens_have_a_text,
)
