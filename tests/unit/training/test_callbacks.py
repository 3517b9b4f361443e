"""What is shown, written and sent while a run goes on."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.tiny_training import make_resolved, make_trainer, random_samples, write_prepared
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from whet.core.errors import ConfigError, TrainingStopped
from whet.data.store import PreparedSet
from whet.training.callbacks import metrics_log
from whet.training.callbacks.interrupt import Interrupt, TrainingInterrupted
from whet.training.callbacks.metrics_log import METRICS, keep_until
from whet.training.callbacks.progress import LiveProgress, Progress, progress_display, shown
from whet.training.fit import fit
from whet.training.throughput import Throughput
from whet.training.tracking import places_of_trackers, prepare_tracking, tracker_environment


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    folder = tmp_path_factory.mktemp("callbacks") / "prepared"
    return write_prepared(folder, random_samples(8, seed=6), random_samples(2, seed=7))


class Clock:
    """A clock that moves when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class At(TrainerCallback):
    """Does something when a step begins."""

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            self.action()


# --- progress ---------------------------------------------------------------------------------------------------------


def test_without_a_terminal_it_prints_lines(
    prepared: PreparedSet, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    resolved = make_resolved(tmp_path, micro_batch_size=4, num_epochs=1.0, logging_steps=1)
    with caplog.at_level(logging.INFO, logger="whet"):
        fit(make_trainer(prepared, resolved), resolved)
    lines = [record.message for record in caplog.records]
    assert [line.split(":")[0] for line in lines] == ["step 1/2", "step 2/2", "evaluation after step 2"]
    for word in ("loss ", "learning rate 1.00e-02", "gradient norm ", "tokens/s ", "supervised tokens/s ", "memory "):
        assert word in lines[0]
    assert "elapsed" in lines[0]
    assert "left" in lines[0]
    printed = capfd.readouterr()
    assert printed.out == "", "transformers' own printing is off"
    assert "%|" not in printed.err, "transformers' own progress bars are off"


def state_at(step: int, total: int = 10) -> TrainerState:
    return TrainerState(global_step=step, max_steps=total, is_world_process_zero=True)


def test_on_a_terminal_one_view_shows_everything(caplog: pytest.LogCaptureFixture) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    clock = Clock()
    progress = progress_display(console)
    assert isinstance(progress, LiveProgress)
    progress = LiveProgress(console, clock)
    progress.on_train_begin(None, state_at(0), None)
    try:
        clock.now += 20.0
        figures = {"loss": 2.5, "learning_rate": 1e-4, "grad_norm": 1.25, "tokens_per_second": 1234.0}
        progress.on_step_end(None, state_at(4), None)
        with caplog.at_level(logging.INFO, logger="whet"):
            progress.on_log(None, state_at(4), None, logs=figures)
            progress.on_log(None, state_at(4), None, logs={"eval_loss": 2.25})
        progress.show_evaluating(0.25)
        screen = Console(file=io.StringIO(), width=160)
        screen.print(progress.render())
        shown = screen.file.getvalue()
    finally:
        progress.close()
    for words in ("step 4/10", "loss 2.500", "learning rate 1.00e-04", "gradient norm 1.250", "tokens/s 1,234"):
        assert words in shown
    assert "0:20 elapsed" in shown
    assert "0:30 left" in shown
    assert "evaluating 25%" in shown
    above = [record.message for record in caplog.records]
    assert above == ["step 4/10: loss 2.500, learning rate 1.00e-04", "evaluation after step 4: loss 2.250"]


def test_a_run_leaves_about_twenty_lines_on_the_screen(caplog: pytest.LogCaptureFixture) -> None:
    progress = LiveProgress(Console(file=io.StringIO(), force_terminal=True))
    with caplog.at_level(logging.INFO, logger="whet"):
        for step in range(1, 1001):
            progress.on_log(None, state_at(step, 1000), None, logs={"loss": 1.0})
    assert [record.message for record in caplog.records][:2] == ["step 1/1000: loss 1.000", "step 51/1000: loss 1.000"]
    assert len(caplog.records) == 20


def test_a_long_evaluation_says_how_far_it_is_and_a_short_one_does_not(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    batches = [{"example_ids": torch.arange(2)}] * 10
    with caplog.at_level(logging.INFO, logger="whet"):
        assert list(shown(batches, [Progress(clock)], 20, 1)) == batches
        assert not caplog.records
        for _ in shown(batches, [Progress(clock)], 20, 1):
            clock.now += 25.0
    assert [record.message for record in caplog.records] == [f"evaluating: {share}% done" for share in (30, 60, 90)]


def test_what_is_said_during_the_view_appears_above_it(capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    progress = LiveProgress(console)
    progress.on_train_begin(None, state_at(0), None)
    sys.stderr.write("a sentence\n")
    progress.on_train_end(None, state_at(10), None)
    assert "a sentence" in console.file.getvalue()
    assert sys.stderr is not console.file
    assert capsys.readouterr().err == ""


def test_other_ranks_are_silent(caplog: pytest.LogCaptureFixture) -> None:
    state = TrainerState(global_step=1, max_steps=10, is_world_process_zero=False)
    with caplog.at_level(logging.INFO, logger="whet"):
        Progress().on_log(None, state, None, logs={"loss": 1.0})
    assert not caplog.records


def test_a_resumed_run_judges_the_time_left_by_its_own_steps() -> None:
    clock = Clock()
    progress = Progress(clock)
    progress.on_train_begin(None, state_at(8), None)
    clock.now += 5.0
    assert progress.times(state_at(9)) == {"elapsed": "0:05", "left": "0:05"}


# --- figures ----------------------------------------------------------------------------------------------------------


def test_throughput_counts_training_alone() -> None:
    import torch

    clock = Clock()
    throughput = Throughput(clock)
    throughput.on_train_begin(None, state_at(0), None)
    for _ in range(2):
        throughput.begin_step()
        clock.now += 0.5  # until the samples are there
        throughput.end_fetch()
        throughput.add(torch.tensor([100, 40]))
        clock.now += 1.5
        throughput.on_step_end(None, None, None)
        clock.now += 80.0  # an evaluation and a checkpoint
    figures = throughput.figures(torch.device("cpu"))
    assert figures["step_seconds"] == 2.0
    assert figures["data_wait_share"] == 0.25
    assert figures["tokens_per_second"] == 50.0
    assert figures["supervised_tokens_per_second"] == 20.0
    assert (figures["tokens_seen"], figures["supervised_tokens_seen"]) == (200, 80)
    assert figures["peak_memory_bytes"] > 10 * 2**20


def test_metrics_are_json_lines(prepared: PreparedSet, tmp_path: Path) -> None:
    resolved = make_resolved(tmp_path, micro_batch_size=4, num_epochs=1.0, logging_steps=1)
    (tmp_path / METRICS).write_text('{"kind": "train", "step": 1, "loss": 9.0}\n')  # of an older run in this folder
    trainer = make_trainer(prepared, resolved)
    fit(trainer, resolved)
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [("train", 1), ("train", 2), ("eval", 2), ("summary", 2)]
    assert lines[0]["loss"] != 9.0
    assert {
        "loss",
        "grad_norm",
        "learning_rate",
        "step_seconds",
        "data_wait_share",
        "tokens_per_second",
        "epoch",
    } <= lines[0].keys()


KINDS = [("eval", 0), ("train", 1), ("train", 2), ("eval", 2), ("train", 3), ("summary", 2)]


@pytest.mark.parametrize("tail", ["", '{"kind": "tr', "\0\0\0", "7\n", '{"step": ""}\n', "[" * 100_000])
@pytest.mark.parametrize(("step", "kept"), [(0, 0), (1, 2), (2, 4), (3, 5), (9, 5)])
def test_resuming_rewrites_the_metrics_from_the_checkpoint_on(
    tmp_path: Path, step: int, kept: int, tail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / METRICS
    lines = [json.dumps({"kind": kind, "step": step}) + "\n" for kind, step in KINDS]
    for window in (1, 40, metrics_log._WINDOW_BYTES):  # a part of a line, one and a half, all of them at once
        monkeypatch.setattr(metrics_log, "_WINDOW_BYTES", window)
        path.write_text("".join(lines) + tail)
        keep_until(path, step)
        assert path.read_text() == "".join(lines[:kept])


def test_a_log_that_cannot_be_cut_does_not_end_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / METRICS).mkdir()
    args, state = TrainingArguments(output_dir=str(tmp_path)), TrainerState(global_step=3)
    metrics_log.MetricsLog().on_train_begin(args, state, TrainerControl())
    assert "cannot be taken out (Is a directory)" in caplog.text


def test_a_last_line_that_stays_ends_before_the_next_begins(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    path.write_text('{"kind": "train", "step": 1}')
    keep_until(path, 1)
    assert path.read_text() == '{"kind": "train", "step": 1}\n'


def test_a_long_log_is_looked_at_from_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, looked_at = tmp_path / METRICS, []
    path.write_text("".join(json.dumps({"kind": "train", "step": step}) + "\n" for step in range(1, 1001)))
    read = metrics_log.json.loads
    monkeypatch.setattr(metrics_log.json, "loads", lambda line: looked_at.append(line) or read(line))
    keep_until(path, 998)
    assert len(looked_at) == 3
    assert path.read_text().count("\n") == 998


# --- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_after_the_step(
    prepared: PreparedSet, tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    resolved = make_resolved(tmp_path, num_epochs=2.0, save_strategy="no", eval_strategy="epoch")
    trainer = make_trainer(prepared, resolved)
    trainer.add_callback(At(3, lambda: signal.raise_signal(number)))
    before = signal.getsignal(number)
    with pytest.raises(TrainingInterrupted) as caught:
        fit(trainer, resolved)
    assert caught.value.exit_code == exit_code
    expected = f"step 3: stopped by {'Ctrl-C' if exit_code == 130 else 'SIGTERM'}; {tmp_path}/checkpoint-3 is saved"
    assert str(caught.value) == f"{expected} -> go on with the same command and --resume-from-checkpoint"
    assert signal.getsignal(number) is before
    assert trainer.state.global_step == 3
    assert not any("eval_loss" in entry for entry in trainer.state.log_history), "an evaluation would delay the end"


def test_a_second_ctrl_c_ends_at_once() -> None:
    clock = Clock()
    with Interrupt(clock) as interrupt:
        signal.raise_signal(signal.SIGINT)
        clock.now += 0.1
        signal.raise_signal(signal.SIGINT)  # torchrun passing on the same Ctrl-C
        assert interrupt.received == signal.SIGINT
        clock.now += 2.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_signal_in_the_last_step_lets_the_run_finish(prepared: PreparedSet, tmp_path: Path) -> None:
    resolved = make_resolved(tmp_path, max_steps=2, save_strategy="no", eval_strategy="no")
    trainer = make_trainer(prepared, resolved)
    trainer.add_callback(At(2, lambda: signal.raise_signal(signal.SIGINT)))
    assert fit(trainer, resolved).steps == 2


def test_a_loss_out_of_hand_ends_the_run(prepared: PreparedSet, tmp_path: Path) -> None:
    resolved = make_resolved(tmp_path, logging_steps=1, loss_watchdog_threshold=0.5, loss_watchdog_patience=2)
    with pytest.raises(
        TrainingStopped, match=r"step 2: the loss was above loss_watchdog_threshold 0.5 2 times in a row: 6"
    ):
        fit(make_trainer(prepared, resolved), resolved)


def test_the_first_step_can_be_saved(prepared: PreparedSet, tmp_path: Path) -> None:
    resolved = make_resolved(tmp_path, max_steps=3, save_first_step=True, save_strategy="no")
    fit(make_trainer(prepared, resolved), resolved)
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


# --- trackers ---------------------------------------------------------------------------------------------------------

TRACKER_VARIABLES = ("WANDB_", "MLFLOW_", "HF_MLFLOW", "TENSORBOARD_")


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(TRACKER_VARIABLES):
            monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", os.environ.copy())


def test_tracker_keys_go_where_transformers_reads_them(tmp_path: Path) -> None:
    resolved = make_resolved(
        tmp_path,
        wandb_project="p",
        wandb_run_id="r7",
        wandb_mode="offline",
        mlflow_experiment_name="e",
        hf_mlflow_log_artifacts=True,
        use_tensorboard=True,
    )
    assert resolved.report_to == ("tensorboard", "wandb", "mlflow")
    assert tracker_environment(resolved) == {
        "WANDB_PROJECT": "p",
        "WANDB_RUN_ID": "r7",
        "WANDB_RESUME": "allow",
        "WANDB_MODE": "offline",
        "MLFLOW_EXPERIMENT_NAME": "e",
        "HF_MLFLOW_LOG_ARTIFACTS": "TRUE",
    }
    assert places_of_trackers(resolved)["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / "runs")


def test_a_tracker_that_is_not_installed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_environment: None
) -> None:
    monkeypatch.setattr("whet.training.tracking.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"the package wandb is not installed -> pip install wandb"):
        prepare_tracking(make_resolved(tmp_path, use_wandb=True))
