"""G7 resume, with another value of a key: what is said to change nothing changes nothing, and what changes the run is
never let through in silence (`whet.config.effects`)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.resume_cases import DROPOUT, LORA
from tests.resuming import Bench, Outcome, same
from tests.tiny_training import make_resolved

from whet.config.differences import differences
from whet.config.effects import Effect, effect_of
from whet.config.facts import RunFacts, facts_of
from whet.core.errors import ArtefactError

EVERYTHING = os.environ.get("SURVIVE") == "all"
SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}

NOTHING: dict[str, Any] = {
    "dataloader_num_workers": 1,
    "dataloader_prefetch_factor": 3,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "eval_on_start": True,
    "eval_batch_size": 2,
    "eval_sample_packing": False,
    "logging_steps": 2,
    "save_strategy": "no",
    "save_steps": None,
    "save_total_limit": 1,
    "save_first_step": True,
    "gc_collect_steps": 1,
    "torch_empty_cache_steps": 1,
    "loss_watchdog_threshold": 1e6,
    "loss_watchdog_patience": 2,
    "dynamic_checkpoint": {"enabled": True},
}
"""Another value of many keys whose effect is said to be none."""

RUN: dict[str, Any] = {**LORA, "lora_dropout": 0.1, "size": DROPOUT, "neftune_noise_alpha": 5.0}
"""A run that draws random numbers in every step."""
PLAIN: dict[str, Any] = LORA
"""One that draws none."""
RUNS = {"plain": PLAIN, "drawn": RUN}

ROUNDING: dict[str, dict[str, Any]] = {
    "lora_qkv_kernel": {"lora_qkv_kernel": False},
    "lora_mlp_kernel": {"lora_mlp_kernel": False},
    "lora_o_kernel": {"lora_o_kernel": False},
    "chunked_cross_entropy": {"chunked_cross_entropy": True, "chunked_cross_entropy_num_chunks": 3},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "pad_to_multiple_of": {"pad_to_multiple_of": 64},
    "pad_to_sequence_len": {"pad_to_sequence_len": True},
    "attn_implementation": {"attn_implementation": "eager"},
    "activation_offloading": {"activation_offloading": True},
    "tiled_mlp": {"tiled_mlp": True, "tiled_mlp_num_shards": 2},
}
"""Another value of keys that are said to change the last digits alone."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def whole(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Outcome]]:
    """Runs with a checkpoint after every step."""
    folder = tmp_path_factory.mktemp("whole")
    return {kind: (folder / kind, bench.run(folder / kind, **SAVING, **run)) for kind, run in RUNS.items()}


def resumed(bench: Bench, folder: Path, again: Path, run: dict[str, Any], changes: dict[str, Any]) -> Outcome:
    shutil.copytree(folder, again)
    return bench.run(again, resume=again / "checkpoint-3", **{**SAVING, **run, **changes})


def facts(keys: dict[str, Any]) -> RunFacts:
    return facts_of(make_resolved(Path("out"), **{name: value for name, value in keys.items() if name != "size"}))


def is_refused(run: dict[str, Any], changes: dict[str, Any]) -> bool:
    return any(change.is_other_run for change in differences(facts(run), facts({**run, **changes})))


def losses(outcome: Outcome) -> list[float]:
    return [line["loss"] for line in outcome.told if line["kind"] == "train"]


def test_what_has_no_effect_has_none(bench: Bench, whole: dict[str, tuple[Path, Outcome]], tmp_path: Path) -> None:
    assert {effect_of(key).effect for key in NOTHING} == {Effect.NONE}
    folder, expected = whole["drawn"]
    found = resumed(bench, folder, tmp_path / "again", RUN, NOTHING)
    assert same(expected, found, skip=("told", "state")) is None
    assert found.seen == {step: expected.seen[step] for step in found.seen}


def test_groups_of_parameters_that_were_others_are_an_error_in_words(bench: Bench, tmp_path: Path) -> None:
    """`weight_decay` may be changed where it is named; from or to 0, norms and matrices are no longer one group."""
    message = r"checkpoint-3: its optimizer has parameters in other groups .* -> write the old values, or begin a new"
    bench.run(tmp_path / "run", **SAVING)
    with pytest.raises(ArtefactError, match=message):
        resumed(bench, tmp_path / "run", tmp_path / "again", {}, {"weight_decay": 0.0})


@pytest.mark.parametrize("name", ROUNDING if EVERYTHING else ("pad_to_multiple_of",))
@pytest.mark.parametrize("kind", RUNS if EVERYTHING else ("plain",))
def test_what_changes_the_last_digits_changes_no_more(
    bench: Bench, whole: dict[str, tuple[Path, Outcome]], tmp_path: Path, name: str, kind: str
) -> None:
    """Or it is refused: where random numbers are drawn, some keys decide which. None is refused that could go on."""
    changes, run = ROUNDING[name], RUNS[kind]
    assert {effect_of(key).effect for key in changes} == {Effect.ROUNDING}
    folder, expected = whole[kind]
    found = resumed(bench, folder, tmp_path / "again", run, changes)
    assert is_refused(run, changes) == (losses(found) != pytest.approx(losses(expected), abs=2e-4))


def test_what_decides_which_random_numbers_are_drawn_is_refused_where_some_are() -> None:
    """That it decides it is tried above, under SURVIVE=all."""
    found = {name: (is_refused(PLAIN, changes), is_refused(RUN, changes)) for name, changes in ROUNDING.items()}
    assert not any(plain for plain, _ in found.values())
    assert found["pad_to_multiple_of"] == (False, True)
