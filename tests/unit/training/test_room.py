"""A disk without room: foreseen, waited for before each checkpoint, and never the end of what was saved."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import tiny_model
from tests.tiny_training import make_resolved, make_trainer, random_samples, write_prepared

from whet.core.errors import ConfigError
from whet.data.store import PreparedSet
from whet.training.checkpoint import newest_complete
from whet.training.fit import fit
from whet.training.publishing import seal
from whet.training.room import DiskPlan, Room, foresee, plan_disk, seconds_to_wait, with_overhead
from whet.training.writer import SavingFailed

KEYS: dict[str, Any] = {"micro_batch_size": 2, "max_steps": 4, "save_steps": 2, "eval_strategy": "no"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return write_prepared(tmp_path_factory.mktemp("room") / "prepared", random_samples(16, seed=6))


class Disk:
    """A disk and a clock: each pause takes its time, and somebody makes room in one of them."""

    def __init__(self, free: int, room_after: float = float("inf"), then: int = 10**9) -> None:
        self.seconds, self.paused = 0.0, 0
        self._free, self._room_after, self._then = free, room_after, then

    def clock(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.paused += 1

    def free(self, folder: Path) -> int:
        return self._then if self.seconds >= self._room_after else self._free

    def room(self, wait_seconds: float) -> Room:
        return Room(Path("out"), wait_seconds, clock=self.clock, sleep=self.sleep, free=self.free)


def test_with_room_there_is_no_pause() -> None:
    disk = Disk(free=10**9)
    assert disk.room(600).wait_for(10**6, "it") is None
    assert disk.paused == 0


def test_it_pauses_until_there_is_room_and_says_both(caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk(free=10**5, room_after=60)
    with caplog.at_level(logging.INFO, logger="whet"):
        assert disk.room(600).wait_for(10**6, "the checkpoint of step 4") is None
    assert disk.seconds == 60
    assert [record.message for record in caplog.records] == [
        "the checkpoint of step 4 needs 1.3 MB and out has 0.1 MB free: training pauses until there is room, "
        "10 minutes at most (save_wait_minutes)",
        "there is room again: 1.0 GB",
    ]


def test_it_does_not_wait_for_ever_nor_after_a_signal() -> None:
    disk = Disk(free=10**5)
    assert disk.room(600).wait_for(10**6, "it") == "it needs 1.3 MB and out has 0.1 MB free"
    assert 600 <= disk.seconds < 610
    room = disk.room(600)
    room.is_asked_to_stop = lambda: True
    assert room.wait_for(10**6, "it") is not None
    assert disk.seconds < 610


def test_the_first_rank_does_not_wait_longer_than_the_others_wait_for_it(tmp_path: Path) -> None:
    for keys, seconds in (({}, 600), ({"ddp_timeout": 300}, 150), ({"save_wait_minutes": 20}, 900)):
        alone = make_resolved(tmp_path, **{**KEYS, **keys})
        assert seconds_to_wait(replace(alone, world_size=2)) == seconds
        assert seconds_to_wait(alone) == 60 * alone.config.loop.save_wait_minutes


def test_a_run_without_room_ends_with_what_was_saved(prepared: PreparedSet, tmp_path: Path) -> None:
    resolved = make_resolved(tmp_path, **KEYS)
    trainer = make_trainer(prepared, resolved)
    frees = iter([10**9, 1000])
    trainer.room = Room(tmp_path, free=lambda folder: next(frees))
    with pytest.raises(SavingFailed) as caught:
        fit(trainer, resolved)
    (problem,) = caught.value.problems
    assert problem.where == "step 4"
    assert "it needs 0." in problem.found
    assert problem.found.endswith(f"{tmp_path}/checkpoint-2 is kept")
    assert newest_complete(tmp_path).path == tmp_path / "checkpoint-2"


def test_the_estimate_is_the_size_of_a_checkpoint(prepared: PreparedSet, tmp_path: Path) -> None:
    """AdamW in float32: what is planned is within a percent or the small files of what is there."""
    resolved = make_resolved(tmp_path, **KEYS)
    trainer = make_trainer(prepared, resolved, tiny_model(attention="sdpa", hidden_size=128))
    plan = plan_disk(trainer.model, trainer.args, resolved)
    assert plan.num_checkpoints == 2
    fit(trainer, resolved)
    folder = tmp_path / "checkpoint-4"
    tensors = sum((folder / name).stat().st_size for name in ("model.safetensors", "optimizer.pt"))
    assert tensors == pytest.approx(plan.checkpoint_bytes, rel=0.05)
    all_of_it = sum(path.stat().st_size for path in folder.iterdir())
    assert all_of_it <= with_overhead(plan.checkpoint_bytes)


@pytest.mark.parametrize(
    ("keys", "num"),
    [
        ({"save_total_limit": 1}, 2),
        ({"save_total_limit": 0}, 10),
        ({"save_total_limit": 20}, 10),
        ({"save_total_limit": 3, "save_strategy": "no", "save_steps": None}, 1),
    ],
)
def test_kept_and_one_more_are_counted_where_there_are_so_many(
    prepared: PreparedSet, tmp_path: Path, keys: dict[str, Any], num: int
) -> None:
    resolved = make_resolved(tmp_path, **{**KEYS, "max_steps": 10, "num_epochs": 9.0, "save_steps": 1, **keys})
    trainer = make_trainer(prepared, resolved)
    assert plan_disk(trainer.model, trainer.args, resolved).num_checkpoints == num


@pytest.mark.parametrize(
    ("keys", "resumed_at", "num"),
    [
        ({"save_total_limit": 0, "save_steps": 3}, 3, 3),  # 6, 9, and the last
        ({"save_total_limit": 0, "save_steps": 3}, 10, 1),
        ({"save_total_limit": 0, "save_steps": None, "save_strategy": "epoch", "num_epochs": 5.0}, 4, 3),
        ({"save_total_limit": 3, "save_steps": 1}, 2, 2),  # two of this run are there, those after are set aside
        ({"save_total_limit": 3, "save_steps": 1}, None, 4),  # all are set aside
    ],
)
def test_what_is_on_the_disk_already_is_not_counted_again(
    prepared: PreparedSet, tmp_path: Path, keys: dict[str, Any], resumed_at: int | None, num: int
) -> None:
    resolved = make_resolved(tmp_path, **{**KEYS, "max_steps": 10, **keys})
    trainer = make_trainer(prepared, resolved)
    for step in range(1, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
        seal(tmp_path / f"checkpoint-{step}", step)
    resume_from = tmp_path / f"checkpoint-{resumed_at}" if resumed_at else None
    assert plan_disk(trainer.model, trainer.args, resolved, resume_from).num_checkpoints == num


def test_a_full_disk_is_foreseen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    resolved = make_resolved(tmp_path, **KEYS)
    plan = DiskPlan(num_checkpoints=5, checkpoint_bytes=3 * 10**9, weight_bytes=10**9)
    foresee(plan, resolved, free=lambda folder: 17 * 10**9)
    assert not caplog.records
    foresee(plan, resolved, free=lambda folder: 8 * 10**9)
    assert "5 checkpoints of about 3.0 GB at once and the result need 16.2 GB" in caplog.text
    assert "has 8.0 GB free: the run will pause for room -> save_total_limit: 1 would fit" in caplog.text
    with pytest.raises(ConfigError, match=r"has 900\.0 MB free, and the weights alone need 1\.0 GB -> make room there"):
        foresee(plan, resolved, free=lambda folder: 9 * 10**8)


def test_a_tied_weight_is_written_once_and_counted_once(tmp_path: Path, prepared: PreparedSet) -> None:
    tied = tiny_model(attention="sdpa", tie_word_embeddings=True)
    resolved = make_resolved(tmp_path, **KEYS)
    trainer = make_trainer(prepared, resolved, tied)
    expected = sum(parameter.numel() * 4 for parameter in tied.parameters())
    assert plan_disk(tied, trainer.args, resolved).weight_bytes == expected
    assert torch.equal(tied.lm_head.weight, tied.model.embed_tokens.weight)
