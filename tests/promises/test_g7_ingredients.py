"""G7 resume, for everything in a run that has a memory: stopped after any step, it is the run that was not stopped.

Each case makes three kinds of runs in this process. One saves nothing. One saves after every step, and must not differ:
saving changes nothing. Each of its checkpoints is then resumed with other random states, and must end as the first did:
the documents of every step, losses and all that is logged, weights, optimizer, schedule and random states, bit for bit.

`make survive` resumes every case after every step; here a share of the cases is resumed after one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.promises.test_g7_resume import StopAfter
from tests.resume_cases import CASES, OPTIMIZER_KEYS, SCHEDULER_KEYS, SHARE
from tests.resuming import Bench, same
from tests.tiny_streams import small_chunks

from whet.config.optimizers import unavailable
from whet.data import chunks
from whet.training.callbacks.interrupt import TrainingInterrupted
from whet.training.optimizers import OPTIMIZERS
from whet.training.schedules import SCHEDULERS

EVERYTHING = os.environ.get("SURVIVE") == "all"
REPORT = os.environ.get("RESUME_REPORT")
"""File to which each case that held adds a line, for docs/resuming.md."""
RESUMED_OVER_AND_OVER = (
    "LoRA with dropout",
    "streamed",
    "mixed by weights",
    "logged every 3 steps",
    "ReLoRA, pruned at random",
    "best LoRA at the end",
    "average of the weights, saved between evaluations",
    "DPO with LoRA",
)
OPTIMIZERS_OF_A_KIND = ("adamw_8bit", "adamw_torch_8bit", "galore_adamw", "lomo", "muon")
"""One of each way to be kept; that every one comes back by itself is in tests/contract/test_optimizers.py."""


@pytest.fixture(scope="module", autouse=True)
def _cheap() -> Iterator[None]:
    """Small chunks of streams; torchao's step uncompiled, which would cost far more here and changes no law."""
    defaults = [(each, each.__defaults__) for each in (chunks.chunks_of_stream, chunks.chunks_of_lines)]
    small_chunks()
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")
    for function, before in defaults:
        function.__defaults__ = before


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def resumes_as_if_it_had_not_stopped(bench: Bench, folder: Path, name: str, case: dict[str, Any]) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1}
    saved = bench.run(folder / "saved", **saving, **case)
    steps = max(saved.seen)
    assert steps >= 4
    if "load_best_model_at_end" not in case:  # such a run has to save
        whole = bench.run(folder / "whole", save_strategy="no", **case)
        # Which checkpoint is the best is known to a run that makes checkpoints.
        assert same(whole, saved, seen=True, skip=("state",)) is None, "saving changed the run"
    for step in range(1, steps + 1) if EVERYTHING else (steps // 2,):
        again = folder / f"from-{step}"
        shutil.copytree(folder / "saved", again)
        resumed = bench.run(again, resume=again / f"checkpoint-{step}", **saving, **case)
        assert resumed.seen == {number: saved.seen[number] for number in range(step + 1, steps + 1)}, f"from {step}"
        assert same(saved, resumed) is None, f"from step {step}"
        shutil.rmtree(again)
    if REPORT:
        with Path(REPORT).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, "resumed_after_steps": steps if EVERYTHING else 1}) + "\n")


@pytest.mark.parametrize("name", RESUMED_OVER_AND_OVER if EVERYTHING else ())
def test_a_run_resumed_after_each_of_its_steps_is_the_same_run(bench: Bench, tmp_path: Path, name: str) -> None:
    """Of a resume of a resume of a resume; the last one is after the last step."""
    case = CASES[name]
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
    whole = bench.run(tmp_path / "whole", **saving, **case)
    steps, again, seen = max(whole.seen), tmp_path / "again", {}
    for step in range(steps + 1):
        resume = again / f"checkpoint-{step}" if step else None
        stops = {"callbacks": (StopAfter(step + 1),), "raises": TrainingInterrupted} if step + 1 < steps else {}
        resumed = bench.run(again, resume=resume, **stops, **saving, **case)
        seen |= resumed.seen
    assert seen == whole.seen
    assert same(whole, resumed) is None
    if REPORT:
        with Path(REPORT).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": f"{name}, over and over", "resumed_after_steps": steps}) + "\n")


@pytest.mark.parametrize("name", CASES if EVERYTHING else SHARE)
def test_a_resumed_run_is_the_same_run(bench: Bench, tmp_path: Path, name: str) -> None:
    resumes_as_if_it_had_not_stopped(bench, tmp_path, name, CASES[name])


@pytest.mark.parametrize("name", OPTIMIZERS.names() if EVERYTHING else OPTIMIZERS_OF_A_KIND)
def test_with_every_optimizer(bench: Bench, tmp_path: Path, name: str) -> None:
    if (reason := unavailable(name, "cpu")) is not None:
        pytest.skip(reason)
    case = {"optimizer": name, "size": {"hidden_size": 64}, **OPTIMIZER_KEYS.get(name, {})}
    resumes_as_if_it_had_not_stopped(bench, tmp_path, f"optimizer {name}", case)


@pytest.mark.parametrize("name", SCHEDULERS.names() if EVERYTHING else ("reduce_lr_on_plateau", "one_cycle"))
def test_with_every_schedule(bench: Bench, tmp_path: Path, name: str) -> None:
    case = {"lr_scheduler": name, "num_epochs": 3.0, **SCHEDULER_KEYS.get(name, {})}
    resumes_as_if_it_had_not_stopped(bench, tmp_path, f"schedule {name}", case)
