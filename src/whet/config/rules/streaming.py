"""Rules about streams: what needs a length, or all rows at once, cannot be had of one."""

from __future__ import annotations

from whet.config.config import Config
from whet.config.rules.base import Rule, at, first_set, shown_place
from whet.config.tasks import method_key
from whet.core.errors import Problem

_COUNTED = {
    "num_epochs": "write max_steps alone",
    "saves_per_epoch": "write save_steps",
    "evals_per_epoch": "write eval_steps",
}
"""Keys that count epochs -> what to write."""

_NEEDS_ALL_ROWS = (
    "dataset_exact_deduplication",
    "dataset_near_deduplication",
    "shuffle_before_merging_datasets",
    "mixing_temperature",
    "phases",
    "sample_packing_balance",
)


def _named(config: Config) -> str:
    """What asks for the stream, as it is written."""
    return "pretraining_dataset" if config.origin("streaming").kind == "derived" else "streaming: true"


def a_stream_ends_after_max_steps(config: Config) -> Problem | None:
    if not config.data.streaming or config.loop.max_steps is not None:
        return None
    found = f"{_named(config)}, and max_steps is not written: a stream has no length from which to count steps"
    return at(config, "streaming", found, "add `max_steps: 1000`")


def a_stream_has_no_epochs(config: Config) -> Problem | None:
    keys = [key for key in _COUNTED if config.is_set(key)] if config.data.streaming else []
    if not keys:
        return None
    found = f"{' and '.join(keys)} {'is' if len(keys) == 1 else 'are'} written, and a stream ({_named(config)}) has"
    advice = ", ".join(_COUNTED[key] for key in keys)
    return at(config, keys[0], f"{found} no epochs to count", advice)


def a_stream_is_saved_and_evaluated_by_steps(config: Config) -> Problem | None:
    loop = config.loop
    for key, steps in (("save_strategy", "save_steps"), ("eval_strategy", "eval_steps")):
        if config.data.streaming and getattr(loop, key) == "epoch":
            found = f"{key} is epoch, and a stream ({_named(config)}) has no epochs"
            return at(config, key, found, f"write {steps}")
    return None


def a_stream_is_evaluated_on_rows_of_its_own(config: Config) -> Problem | None:
    if not config.data.streaming or not config.data.val_set_size:
        return None
    found = f"val_set_size takes a part of all rows, and nobody knows how many a stream ({_named(config)}) has"
    return at(config, "val_set_size", found, "write test_datasets, which are prepared as always")


def a_stream_is_never_seen_whole(config: Config) -> Problem | None:
    if not config.data.streaming:
        return None
    key = next((key for key in _NEEDS_ALL_ROWS if config.value(key)), None)
    if key is not None:
        found = f"{key} needs all rows at once, and a stream ({_named(config)}) never has them"
        return at(config, key, found, "remove one of them")
    if config.data.eval_overlap != "report" and config.data.test_datasets:
        found = f"eval_overlap: {config.data.eval_overlap} needs all rows at once, and a stream never has them"
        return at(config, "eval_overlap", found, "remove it, or streaming")
    return None


def a_stream_is_mixed_by_weights(config: Config) -> Problem | None:
    if not config.data.streaming:
        return None
    rows = config.data.datasets
    for index, row in enumerate(rows):
        if row.epochs is not None:
            place = ("datasets", index, "epochs")
            found = f"{shown_place(place)}: a stream ({_named(config)}) has no epochs to count"
            return Problem(config.where(place), found, "write a weight in every row", "datasets")
    if config.data.order == "sequential" and any(row.weight is not None for row in rows):
        found = "order: sequential reads each dataset of a stream to its end, and weights mix them"
        return at(config, "order", found, "keep one of them")
    return None


def a_stream_is_for_supervised_training(config: Config) -> Problem | None:
    method = method_key(config)
    if not config.data.streaming or method is None:
        return None
    found = f"streaming is true, and {method} needs all its rows before the first step"
    return at(config, "streaming", found, "remove streaming: the rows are prepared on disk then")


def buffer_needs_a_stream(config: Config) -> Problem | None:
    key = "streaming_multipack_buffer_size"
    if config.data.streaming or not config.is_set(key):
        return None
    return at(config, key, f"{key} changes nothing: streaming is off", "add `streaming: true`, or remove it")


def a_stream_reads_ahead_by_itself(config: Config) -> Problem | None:
    key = first_set(config, ("dataloader_num_workers", "dataset_num_proc", "prepare_with"))
    if not config.data.streaming or key is None or (key != "dataloader_num_workers" and config.data.test_datasets):
        return None
    return at(config, key, f"{key} changes nothing: a stream is read ahead by a thread of the run", "remove it")


STREAMING_RULES: tuple[Rule, ...] = (
    a_stream_ends_after_max_steps,
    a_stream_has_no_epochs,
    a_stream_is_saved_and_evaluated_by_steps,
    a_stream_is_evaluated_on_rows_of_its_own,
    a_stream_is_never_seen_whole,
    a_stream_is_mixed_by_weights,
    a_stream_is_for_supervised_training,
)
STREAMING_REMARKS: tuple[Rule, ...] = (buffer_needs_a_stream, a_stream_reads_ahead_by_itself)
