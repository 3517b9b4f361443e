"""What a person asks of a running training: to stop, to save now, to try saving first."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.models import tiny_model
from tests.promises.test_g7_resume import outcome
from tests.tiny_training import make_resolved, make_trainer, random_samples, write_prepared
from transformers import TrainerCallback

from whet.core.errors import ArtefactError, TrainingStopped
from whet.data.store import PreparedSet
from whet.distributed.launch import environment_of_one
from whet.model.attention import NAME
from whet.training import rehearsal
from whet.training.callbacks.interrupt import TrainingInterrupted
from whet.training.callbacks.triggers import Asked, TriggerFiles
from whet.training.checkpoint import checkpoints, newest_complete
from whet.training.fit import fit
from whet.training.publishing import STAGING
from whet.training.rehearsal import what_is_different
from whet.training.reread import digests_of

KEYS: dict[str, Any] = {
    "micro_batch_size": 2,
    "num_epochs": 3.0,
    "max_steps": 12,
    "warmup_steps": 0,
    "logging_steps": 1,
    "save_total_limit": 0,
}
"""4 steps an epoch."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    folder = tmp_path_factory.mktemp("asked") / "prepared"
    return write_prepared(folder, random_samples(8, seed=6), random_samples(6, seed=7))


def build(prepared: PreparedSet, output_dir: Path, model: Any = None, **keys: Any) -> Any:
    resolved = make_resolved(output_dir, **{**KEYS, **keys})
    return make_trainer(prepared, resolved, model or tiny_model(attention=NAME, attention_dropout=0.1)), resolved


def signal_in_evaluation(trainer: Any, step: int) -> list[int]:
    """SIGTERM with the first batch of the evaluation after a step; counts the batches that were still evaluated."""
    seen: list[int] = []
    prepare = trainer._prepare_inputs

    def prepared_inputs(batch: Any) -> Any:
        if not trainer.model.training and trainer.state.global_step == step:
            seen.append(step)
            if len(seen) == 1:
                signal.raise_signal(signal.SIGTERM)
        return prepare(batch)

    trainer._prepare_inputs = prepared_inputs
    return seen


class During(TrainerCallback):
    """Does something when a step begins."""

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            self.action()


EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}


@pytest.mark.parametrize(
    ("keys", "step"),
    [(EVERY_STEP, 2), (EVERY_STEP, 4), ({"eval_strategy": "epoch", "save_strategy": "epoch"}, 12)],
    ids=["mid-epoch", "an epoch's end", "the end of the run"],
)
def test_a_signal_cuts_an_evaluation_which_the_resumed_run_makes(
    prepared: PreparedSet, tmp_path: Path, keys: dict[str, Any], step: int
) -> None:
    keys = {**keys, "load_best_model_at_end": True, "eval_batch_size": 1}
    whole, resolved = build(prepared, tmp_path / "whole", **keys)
    expected_best = fit(whole, resolved).best_checkpoint
    stopped, resolved = build(prepared, tmp_path / "out", **keys)
    seen = signal_in_evaluation(stopped, step)
    with pytest.raises(TrainingInterrupted, match=rf"step {step}: stopped by SIGTERM; .*/checkpoint-{step} is saved"):
        fit(stopped, resolved)
    assert len(seen) == 1, "it is cut after the batch in which the signal came"
    assert newest_complete(tmp_path / "out").path == tmp_path / "out" / f"checkpoint-{step}"
    torch.manual_seed(99)
    resumed, resolved = build(prepared, tmp_path / "out", **keys)
    best = fit(resumed, resolved, tmp_path / "out" / f"checkpoint-{step}").best_checkpoint
    (weights, told), (expected, said) = outcome(resumed, tmp_path / "out"), outcome(whole, tmp_path / "whole")
    assert torch.equal(weights, expected)
    assert told == said
    assert Path(best).name == Path(expected_best).name


def test_a_signal_before_an_evaluation_leaves_it_to_the_resumed_run(prepared: PreparedSet, tmp_path: Path) -> None:
    whole, resolved = build(prepared, tmp_path / "whole", **EVERY_STEP)
    fit(whole, resolved)
    stopped, resolved = build(prepared, tmp_path / "out", **EVERY_STEP)
    stopped.add_callback(During(6, lambda: signal.raise_signal(signal.SIGINT)))
    with pytest.raises(TrainingInterrupted):
        fit(stopped, resolved)
    assert max(line["step"] for line in stopped.state.log_history if "eval_loss" in line) == 4
    resumed, resolved = build(prepared, tmp_path / "out", **EVERY_STEP)
    fit(resumed, resolved, tmp_path / "out" / "checkpoint-6")
    assert outcome(resumed, tmp_path / "out")[1] == outcome(whole, tmp_path / "whole")[1]


def test_a_signal_in_the_evaluation_before_the_first_step_ends_it(prepared: PreparedSet, tmp_path: Path) -> None:
    trainer, resolved = build(prepared, tmp_path, eval_on_start=True, eval_batch_size=1)
    signal_in_evaluation(trainer, 0)
    with pytest.raises(TrainingInterrupted, match="stopped by SIGTERM before the first step -> start it again"):
        fit(trainer, resolved)
    assert checkpoints(tmp_path) == []


# --- files that ask ---------------------------------------------------------------------------------------------------

ASKING = {"save_strategy": "no", "eval_strategy": "no", "dynamic_checkpoint": {"enabled": True, "check_interval": 1}}


def test_a_file_asks_for_a_checkpoint_and_goes(prepared: PreparedSet, tmp_path: Path) -> None:
    trainer, resolved = build(prepared, tmp_path, **ASKING)
    trigger = tmp_path / "axolotl_checkpoint.save"
    trainer.add_callback(During(1, trigger.touch))
    assert fit(trainer, resolved).steps == 12
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-1"]
    assert not trigger.exists()


def test_a_file_asks_for_a_clean_end(prepared: PreparedSet, tmp_path: Path) -> None:
    trainer, resolved = build(prepared, tmp_path, **ASKING)
    trainer.add_callback(During(1, (tmp_path / "whet_stop").touch))
    with pytest.raises(
        TrainingStopped, match=r"step 1: stopped by .*/whet_stop; .*/checkpoint-1 is saved -> go on"
    ) as e:
        fit(trainer, resolved)
    assert e.value.exit_code == 1
    assert newest_complete(tmp_path).path == tmp_path / "checkpoint-1"
    assert not (tmp_path / "whet_stop").exists()


def test_files_of_before_the_run_ask_for_nothing(
    prepared: PreparedSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "whet_stop").touch()
    trainer, resolved = build(prepared, tmp_path, **ASKING)
    assert fit(trainer, resolved).steps == 12
    assert "whet_stop was there before the run began: it is removed" in caplog.text


def test_without_the_key_nobody_looks(prepared: PreparedSet, tmp_path: Path) -> None:
    trainer, resolved = build(prepared, tmp_path, save_strategy="no", eval_strategy="no")
    trainer.add_callback(During(1, (tmp_path / "whet_stop").touch))
    assert fit(trainer, resolved).steps == 12


def test_the_files_are_looked_for_seldom(tmp_path: Path) -> None:
    now = [100.0]
    files = TriggerFiles(tmp_path / "save", tmp_path / "stop", 10, clock=lambda: now[0])
    (tmp_path / "save").touch()
    assert files.asked(9) == Asked()
    assert files.asked(10) == Asked(checkpoint=True)
    assert files.asked(20) == Asked()
    (tmp_path / "stop").touch()
    assert files.asked(30) == Asked(), "less than a second has passed"
    now[0] += 1.0
    assert files.asked(40) == Asked(stop=True)


def test_only_an_empty_file_asks_and_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A config may name any path; it shall not remove a key, a folder, or what a link leads to."""
    (tmp_path / "key").write_text("something that somebody needs")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    for name in ("key", "link", "folder"):
        files = TriggerFiles(tmp_path / name, tmp_path / "stop", 1)
        assert files.asked(1) == Asked()
        assert (tmp_path / name).exists()
        assert f"{name} is no empty file, so it is left where it is" in caplog.text
    assert (tmp_path / "empty").exists()


def test_a_file_that_cannot_be_removed_asks_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    (tmp_path / "save").touch()

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    files = TriggerFiles(tmp_path / "save", tmp_path / "stop", 1, clock=lambda: now[0])
    assert files.asked(1) == Asked(checkpoint=True)
    now[0] += 2.0
    assert files.asked(2) == Asked()
    assert "cannot be removed (Permission denied)" in caplog.text


# --- rehearsal --------------------------------------------------------------------------------------------------------


def test_a_rehearsal_reads_what_was_saved_in_a_new_process_and_changes_nothing(
    prepared: PreparedSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = []
    for rehearsed in (True, False):
        model = get_peft_model(
            tiny_model(attention=NAME, attention_dropout=0.1), LoraConfig(r=2, target_modules=["q_proj"])
        )
        with torch.random.fork_rng(devices=[]):
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
        output_dir = tmp_path / str(rehearsed)
        torch.manual_seed(0)
        keys = {"max_steps": 2, "rehearse_saving": rehearsed, "save_strategy": "no", "eval_strategy": "no"}
        trainer, resolved = build(prepared, output_dir, model, **keys)
        with caplog.at_level(logging.INFO, logger="whet"):
            fit(trainer, resolved)
        found.append(outcome(trainer, output_dir))
        assert not (output_dir / STAGING).exists()
        assert checkpoints(output_dir) == []
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    (said,) = [record.message for record in caplog.records if record.message.startswith("rehearsal: ")]
    assert "was written, read in a new process, and is the same" in said


def test_a_rehearsal_that_does_not_read_what_was_saved_ends_the_run(
    prepared: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(folder: Path) -> Any:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"] + 1
        save_file(tensors, path)
        return digests_of(folder)

    monkeypatch.setattr(rehearsal, "read_elsewhere", damaged)
    trainer, resolved = build(prepared, tmp_path, rehearse_saving=True)
    with pytest.raises(ArtefactError, match=r"for a try is not what was saved: .*embed_tokens.weight is not read as"):
        fit(trainer, resolved)
    assert not (tmp_path / STAGING).exists()
    assert trainer.state.global_step == 0


def test_states_in_8_bits_are_read_in_a_new_process_and_compared_by_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchao.optim.subclass_8bit import OptimState8bit

    codes, scale, qmap = torch.arange(8, dtype=torch.uint8), torch.ones(2), torch.linspace(-1, 1, 256)
    torch.save({"exp_avg": OptimState8bit(codes, scale, qmap, True)}, tmp_path / "optimizer.pt")
    (tmp_path / "json.py").write_text("raise SystemExit('a stranger')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    read = rehearsal.read_elsewhere(tmp_path)
    assert what_is_different(read, {}, {"optimizer.pt": {"exp_avg": OptimState8bit(codes, scale, qmap, True)}}) is None
    other = OptimState8bit(codes.flip(0), scale, qmap, True)
    assert what_is_different(read, {}, {"optimizer.pt": {"exp_avg": other}}) == (
        "optimizer.pt is not read as it was written"
    )


def test_a_process_of_its_own_knows_nothing_of_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "TORCHELASTIC_RUN_ID", "WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    own = environment_of_one()
    assert own.items() <= os.environ.items()
    assert os.environ.keys() - own.keys() >= {"RANK", "TORCHELASTIC_RUN_ID", "WORLD_SIZE"}


def test_what_needs_pickle_is_told_by_the_rehearsal(tmp_path: Path) -> None:
    torch.save({"state": Path("a class of nobody's list")}, tmp_path / "optimizer.pt")
    found = rehearsal.read_elsewhere(tmp_path)
    assert isinstance(found, str)
    assert what_is_different(found, {}, {}) == found
    torch.save({"state": torch.ones(2)}, tmp_path / "optimizer.pt")
    read = digests_of(tmp_path)
    assert what_is_different(read, {}, {"optimizer.pt": {"state": torch.ones(2)}}) is None
    assert what_is_different(read, {}, {"optimizer.pt": {"state": torch.zeros(2)}}) == (
        "optimizer.pt is not read as it was written"
    )
