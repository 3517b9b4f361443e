"""A run begins when nothing refuses it any more, and writes nothing into its folder before."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.tiny_training import make_resolved, make_trainer, random_samples, write_prepared
from transformers import TrainerCallback

from whet.core.errors import ArtefactError, TrainingStopped
from whet.training.callbacks import trackers
from whet.training.callbacks.interrupt import TrainingInterrupted
from whet.training.callbacks.trackers import guard_trackers
from whet.training.fit import fit
from whet.training.saving import PublishingTrainer


class Server(TrainerCallback):
    """Stands for a tracker that asks somebody."""

    def __init__(self, order: list[str], fails: bool = False) -> None:
        self.order, self.fails = order, fails

    def on_train_begin(self, *_: object, **__: object) -> None:
        if self.fails:
            raise ConnectionError("nobody is there")
        self.order.append("server")


class Signalled(Server):
    """A signal comes while it answers."""

    def on_train_begin(self, *words: object, **options: object) -> None:
        super().on_train_begin()
        signal.raise_signal(signal.SIGTERM)


class Files(Server):
    """Stands for one that writes files."""

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.order.append("files")


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    kinds = {
        Server: ("wandb", "use_wandb"),
        Signalled: ("wandb", "use_wandb"),
        Files: ("tensorboard", "use_tensorboard"),
    }
    monkeypatch.setattr(trackers, "_KINDS", kinds)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    prepared = write_prepared(tmp_path / "prepared", random_samples(4))
    resolved = make_resolved(tmp_path / "out", micro_batch_size=2, max_steps=1, save_strategy="no")

    def built(*callbacks: TrainerCallback) -> Any:
        trainer = make_trainer(prepared, resolved)
        trainer.callback_handler.callbacks[1:1] = callbacks
        guard_trackers(trainer, resolved)
        return trainer, resolved

    return built


def test_the_folder_is_taken_when_the_trackers_have_answered_and_before_they_write(build: Any, tmp_path: Path) -> None:
    order: list[str] = []
    trainer, resolved = build(Files(order), Server(order))

    def begin() -> None:
        order.append("begin")
        assert not (tmp_path / "out" / "metrics.jsonl").exists()

    fit(trainer, resolved, None, begin)
    assert order == ["server", "begin", "files"]
    assert (tmp_path / "out" / "metrics.jsonl").exists()


def test_a_run_that_is_asked_to_stop_while_it_loads_does_not_begin(
    build: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    order: list[str] = []
    trainer, resolved = build(Signalled(order))
    words = "step 0: stopped by SIGTERM before its first step -> start it again: nothing is lost"
    with caplog.at_level(logging.INFO, logger="whet"), pytest.raises(TrainingInterrupted, match=words) as ended:
        fit(trainer, resolved, None, lambda: order.append("begin"))
    assert ended.value.exit_code == 128 + signal.SIGTERM
    assert order == ["server"]
    assert list((tmp_path / "out").glob("*")) == []
    assert "stopping before the first step; once more ends at once" in caplog.text


def test_the_other_ranks_say_what_the_first_could_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    of_two: Any = SimpleNamespace(
        args=SimpleNamespace(world_size=2, device="cpu"), state=SimpleNamespace(global_step=0)
    )
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda failed, op: failed.fill_(1))
    told = "step 0: another rank could not take the output folder -> see what it says"
    with (
        pytest.raises(TrainingStopped, match=told),
        PublishingTrainer.together(of_two, "take the output folder"),
    ):
        pass


def test_a_run_that_its_tracker_refuses_does_not_begin(build: Any, tmp_path: Path) -> None:
    order: list[str] = []
    trainer, resolved = build(Files(order), Server(order, fails=True))
    with pytest.raises(ArtefactError, match=r"wandb cannot be used \(nobody is there\)"):
        fit(trainer, resolved, None, lambda: order.append("begin"))
    assert order == []
    assert list((tmp_path / "out").glob("*")) == []
