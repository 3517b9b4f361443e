"""Rules about the mix of datasets, their order, and how packs are made and dealt."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

from whet.config.config import Config
from whet.config.rules.base import Rule, at, shown_place
from whet.core.errors import Problem
from whet.core.nearest import suggestion


def the_mix_is_described_once(config: Config) -> Problem | None:
    written = list(_mixing_keys(config))
    if len(written) < 2:
        return None
    (first, _), (second, where) = written[:2]
    found = f"{second} is written, and so is {first}"
    return Problem(where, found, "keep one of them", second.partition("[")[0])


def every_dataset_has_a_weight(config: Config) -> Problem | None:
    rows = config.data.datasets
    missing = [index for index, row in enumerate(rows) if row.weight is None]
    if not missing or len(missing) == len(rows):
        return None
    place = ("datasets", missing[0])
    found = f"{shown_place(place)} has no weight, and others have"
    return Problem(config.where(place), found, "write a weight in every row, or in none", "datasets")


def evaluation_is_not_mixed(config: Config) -> Problem | None:
    for index, row in enumerate(config.data.test_datasets):
        for key in ("weight", "epochs"):
            if getattr(row, key) is not None:
                place = ("test_datasets", index, key)
                found = f"{shown_place(place)} is written, and an evaluation sees each row once"
                return Problem(config.where(place), found, "remove the line", "test_datasets")
    return None


def shuffling_is_asked_for_once(config: Config) -> Problem | None:
    data = config.data
    if not (data.curriculum_sampling and data.shuffle_merged_datasets and config.is_set("shuffle_merged_datasets")):
        return None
    found = "curriculum_sampling is true, and so is shuffle_merged_datasets"
    return at(config, "curriculum_sampling", found, "keep one of them")


def a_mix_is_shuffled(config: Config) -> Problem | None:
    written = next(_mixing_keys(config), None)
    if written is None or _shuffles(config):
        return None
    found = f"{written[0]} is written, and {_unshuffled_key(config)} keeps the order of the files"
    return Problem(written[1], found, "keep one of them", written[0].partition("[")[0])


def phases_fill_the_epoch(config: Config) -> Problem | None:
    phases = config.data.phases
    if phases is None:
        return None
    total = math.fsum(phase.share for phase in phases)
    if abs(total - 1) < 1e-6:
        return None
    return at(config, "phases", f"the shares of phases add up to {total:g}", "let them add up to 1")


def phases_name_datasets(config: Config) -> Problem | None:
    known = [name for row in config.data.datasets for name in _names(row.path, row.name)]
    for number, phase in enumerate(config.data.phases or ()):
        place = ("phases", number, "weights")
        if not sum(phase.weights.values()):
            found = f"{shown_place(place)}: every weight is 0"
            return Problem(config.where(place), found, "write a weight above 0 for a dataset", "phases")
        for name in phase.weights:
            # A second dataset of one name is reported with a number.
            if name not in known and re.sub(r"-\d+$", "", name) not in known:
                found = f"{shown_place(place)}: there is no dataset '{name}'"
                return Problem(config.where((*place, name)), found, suggestion(name, known), "phases")
    return None


def phases_say_the_order(config: Config) -> Problem | None:
    if not config.data.phases or config.data.order == "shuffled":
        return None
    found = "order is sequential, and phases say what comes after what"
    return at(config, "order", found, "keep one of them")


def supervised_runs_are_mixed(config: Config) -> Problem | None:
    """The other methods see each row once an epoch, shuffled."""
    if not config.method.rl:
        return None
    written = next(_mixing_keys(config), None)
    if written is None and config.data.order == "sequential":
        written = "order", config.where("order")
    if written is None:
        return None
    found = f"{written[0]} is written, and rl: {config.method.rl} sees each row once, shuffled"
    return Problem(written[1], found, "remove the line", written[0].partition("[")[0])


def ways_of_packing_need_packing(config: Config) -> Problem | None:
    if config.packing.sample_packing:
        return None
    for key in ("sample_packing_sequentially", "sample_packing_balance"):
        if config.value(key):
            return at(config, key, f"{key} is true, and sample_packing is not", "add `sample_packing: true`")
    return None


def packs_of_neighbours_hold_each_sample_once(config: Config) -> Problem | None:
    written = next(_mixing_keys(config), None)
    if not config.packing.sample_packing_sequentially or written is None:
        return None
    found = f"sample_packing_sequentially keeps samples in order, and {written[0]} shows some of them more often"
    return at(config, "sample_packing_sequentially", found, "keep one of them")


def balanced_packs_are_shuffled(config: Config) -> Problem | None:
    if not config.packing.sample_packing_balance or _shuffles(config):
        return None
    found = f"sample_packing_balance deals packs anew, and {_unshuffled_key(config)} keeps their order"
    return at(config, "sample_packing_balance", found, "keep one of them")


def shares_need_a_mix(config: Config) -> Problem | None:
    data = config.data
    if not config.is_set("mixing_by") or data.phases or data.mixing_temperature is not None:
        return None
    if any(row.weight is not None for row in data.datasets):
        return None
    found = "mixing_by changes nothing: no share is asked for"
    return at(config, "mixing_by", found, "add a weight to every row of datasets, or remove the line")


def balanced_steps_have_several_packs(config: Config) -> Problem | None:
    batch = config.batch
    one_pack = batch.micro_batch_size * (batch.gradient_accumulation_steps or 1) == 1 and (batch.batch_size or 1) == 1
    if not config.packing.sample_packing_balance or not one_pack:
        return None
    found = "sample_packing_balance has nothing to balance: a process computes one pack a step"
    return at(config, "sample_packing_balance", found, "add `gradient_accumulation_steps: 4`, or remove the line")


def _mixing_keys(config: Config) -> Iterator[tuple[str, str]]:
    """What is written of weight, epochs, mixing_temperature and phases, and where."""
    rows = config.data.datasets
    for key in ("weight", "epochs"):
        for index, row in enumerate(rows):
            if getattr(row, key) is not None:
                place = ("datasets", index, key)
                yield shown_place(place), config.where(place)
                break
    for key in ("mixing_temperature", "phases"):
        if config.value(key):
            yield key, config.where(key)


def _shuffles(config: Config) -> bool:
    return config.data.shuffle_merged_datasets and not config.data.curriculum_sampling


def _unshuffled_key(config: Config) -> str:
    return "curriculum_sampling: true" if config.data.curriculum_sampling else "shuffle_merged_datasets: false"


def _names(path: str, name: str | tuple[str, ...] | None) -> Iterator[str]:
    """What a dataset may be reported as: ``data/chat.jsonl`` -> ``chat``; ``org/code`` as it is."""
    yield Path(path).name.split(".")[0]
    yield f"{path}/{name if isinstance(name, str) else '+'.join(name)}" if name else path


MIXING_RULES: tuple[Rule, ...] = (
    the_mix_is_described_once,
    every_dataset_has_a_weight,
    evaluation_is_not_mixed,
    shuffling_is_asked_for_once,
    a_mix_is_shuffled,
    phases_fill_the_epoch,
    phases_name_datasets,
    phases_say_the_order,
    supervised_runs_are_mixed,
    ways_of_packing_need_packing,
    packs_of_neighbours_hold_each_sample_once,
    balanced_packs_are_shuffled,
)
MIXING_REMARKS: tuple[Rule, ...] = (shares_need_a_mix, balanced_steps_have_several_packs)
