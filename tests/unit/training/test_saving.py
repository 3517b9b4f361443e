"""What a checkpoint holds, that training does not wait for it, and that what goes wrong in the background is told."""

from __future__ import annotations

import errno
import importlib
import json
import math
import os
import shutil
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tests.models import tiny_model
from tests.tiny_training import make_resolved, make_trainer, random_samples, write_prepared
from transformers import Trainer, TrainerCallback

from whet.core.disk import sha256
from whet.core.errors import ArtefactError
from whet.data.store import PreparedSet
from whet.model.attention import NAME
from whet.training.callbacks.saving import SaveBeside
from whet.training.carried import FILE
from whet.training.checkpoint import MANIFEST, checkpoints, newest_complete
from whet.training.fit import fit
from whet.training.host_copy import HostCopies, state_bytes
from whet.training.publishing import STAGING
from whet.training.writer import SavingFailed

KEYS: dict[str, Any] = {
    "micro_batch_size": 2,
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 2,
    "eval_strategy": "no",
    "logging_steps": 1,
}
TIMES = {"trainer_state.json", MANIFEST}
"""Files with times in them."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    folder = tmp_path_factory.mktemp("saving") / "prepared"
    return write_prepared(folder, random_samples(16, seed=6), random_samples(2, seed=7))


def build(prepared: PreparedSet, output_dir: Path, *, lora: bool = False, **keys: Any) -> Any:
    model: Any = tiny_model(attention=NAME, tie_word_embeddings=True)
    if lora:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    resolved = make_resolved(output_dir, **{**KEYS, **keys})
    return make_trainer(prepared, resolved, model), resolved


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in folder.iterdir() if path.name not in TIMES}


class AfterStep(TrainerCallback):
    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.action()


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_it_holds_what_transformers_would_have_written_without_the_pickled_arguments(
    prepared: PreparedSet, tmp_path: Path, lora: bool
) -> None:
    trainer, resolved = build(prepared, tmp_path / "out", lora=lora)
    fit(trainer, resolved)
    trainer.args.output_dir = str(tmp_path / "theirs")
    Trainer._save_checkpoint(trainer, trainer.model, None)
    ours, theirs = tmp_path / "out" / "checkpoint-4", tmp_path / "theirs" / "checkpoint-4"
    assert {path.name for path in ours.iterdir()} - {MANIFEST, FILE} == {path.name for path in theirs.iterdir()}
    assert not list(tmp_path.rglob("training_args.bin"))
    weights = next(theirs.glob("*model.safetensors")).name
    saved, expected = load_file(ours / weights), load_file(theirs / weights)
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in expected)
    for name in ("optimizer.pt", "scheduler.pt"):
        ours_loaded, theirs_loaded = (torch.load(each / name, weights_only=True) for each in (ours, theirs))
        assert str(ours_loaded) == str(theirs_loaded)
    states = [json.loads((each / "trainer_state.json").read_text()) for each in (ours, theirs)]
    for state in states:
        state["log_history"] = [line for line in state["log_history"] if "train_runtime" not in line]
        del state["stateful_callbacks"]["TrainerControl"]  # of another moment
    assert states[0] == states[1]


@pytest.mark.parametrize("is_resized", [False, True])
def test_a_checkpoint_of_an_adapter_does_not_ask_the_hub_about_its_base(
    prepared: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_resized: bool
) -> None:
    """The rows that the base has on disk are in the cache that it was loaded from."""
    asked: list[Any] = []
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *what: asked.append(what))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    trainer, resolved = build(prepared, tmp_path / "out", lora=True)
    base = trainer.model.get_base_model()
    base.config.save_pretrained(tmp_path / "hub/models--org--base/snapshots" / ("c" * 40))
    base.name_or_path, base.config._commit_hash = "org/base", "c" * 40
    trainer.model.peft_config["default"].base_model_name_or_path = "org/base"
    if is_resized:
        base.resize_token_embeddings(320, mean_resizing=False)
    fit(trainer, resolved)
    saved = load_file(tmp_path / "out/checkpoint-4/adapter_model.safetensors")
    assert any("embed_tokens" in name for name in saved) == is_resized
    assert asked == []


def test_the_background_writes_the_same_bytes(prepared: PreparedSet, tmp_path: Path) -> None:
    for lora in (False, True):
        found = []
        for background in (True, False):
            output_dir = tmp_path / f"{lora}-{background}"
            trainer, resolved = build(prepared, output_dir, lora=lora)
            trainer.writes_in_background = background
            fit(trainer, resolved)
            found.append([digests(output_dir / f"checkpoint-{step}") for step in (2, 4)])
        assert found[0] == found[1]
        assert found[0][0] != found[0][1]


def test_steps_done_meanwhile_do_not_change_a_checkpoint(prepared: PreparedSet, tmp_path: Path) -> None:
    """The writer begins to write the checkpoint of step 2 when step 3 is done."""
    expected, resolved = build(prepared, tmp_path / "expected")
    expected.writes_in_background = False
    fit(expected, resolved)
    trainer, resolved = build(prepared, tmp_path / "late")
    goes_on = threading.Event()
    seen: list[bool] = []
    trainer.add_callback(AfterStep(3, lambda: (seen.append((tmp_path / "late/checkpoint-2").exists()), goes_on.set())))
    save = trainer._save

    def late(*args: Any, **kwargs: Any) -> None:
        assert goes_on.wait(60)
        save(*args, **kwargs)

    trainer._save = late
    fit(trainer, resolved)
    assert seen == [False]
    assert digests(tmp_path / "late/checkpoint-2") == digests(tmp_path / "expected/checkpoint-2")


def test_the_memory_of_a_copy_is_not_used_again_before_it_is_written(
    prepared: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next checkpoint is due while the last one is being written: its copy waits, or it would tear that one."""
    trainer, resolved = build(prepared, tmp_path)
    is_due, busy = threading.Event(), []
    save, begin = trainer._save, HostCopies.begin

    def slow(*args: Any, **kwargs: Any) -> None:
        if trainer.state.global_step < 4:
            assert is_due.wait(60)
        save(*args, **kwargs)

    def begun(copies: HostCopies) -> None:
        busy.append(any(thread.name == "checkpoint" for thread in threading.enumerate()))
        begin(copies)

    settle = trainer.settle
    trainer._save = slow
    trainer.add_callback(AfterStep(4, is_due.set))
    monkeypatch.setattr(HostCopies, "begin", begun)
    trainer.settle = lambda: (is_due.set() if trainer.state.global_step == 4 else None, settle())
    fit(trainer, resolved)
    assert busy == [False, False]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
def test_the_thread_that_writes_gives_way_to_those_that_train(prepared: PreparedSet, tmp_path: Path) -> None:
    found: dict[bool, int] = {}
    for background in (True, False):
        trainer, resolved = build(prepared, tmp_path / str(background), max_steps=2)
        trainer.writes_in_background = background

        def note(folder: Path, background: bool = background) -> None:
            found[background] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

        trainer.add_callback(SaveBeside(lambda note=note: note))
        fit(trainer, resolved)
    ours = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert found[False] == ours, "training waits: nobody to give way to"
    assert found[True] == min(19, ours + 10)


def test_without_memory_for_a_copy_a_checkpoint_is_written_at_once(
    prepared: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There was some for the first one, and then somebody took it; memory that is kept for the copy is there."""
    for kept, in_background in ((2**31, [True, True]), (0, [True, False])):
        caplog.clear()
        free = iter([2**40, 0])
        monkeypatch.setattr("whet.training.host_copy.KEPT_BYTES", kept)
        monkeypatch.setattr("whet.training.saving.available_memory_bytes", lambda free=free: next(free))
        trainer, resolved = build(prepared, tmp_path / str(kept))
        found: list[bool] = []
        trainer.add_callback(
            SaveBeside(lambda found=found: lambda folder: found.append(threading.current_thread().name == "checkpoint"))
        )
        fit(trainer, resolved)
        assert found == in_background
        assert newest_complete(tmp_path / str(kept)).path == tmp_path / str(kept) / "checkpoint-4"
        assert ("no memory for a copy" in caplog.text) == (False in in_background)


BEST: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best", "save_steps": None}


def losses(trainer: Any, found: list[float]) -> None:
    """Evaluations find these."""
    evaluate, values = trainer.evaluate, iter(found)
    trainer.evaluate = lambda *args, **kwargs: {**evaluate(*args, **kwargs), "eval_loss": next(values)}


def test_a_checkpoint_that_is_asked_for_is_made_though_it_is_not_the_best(
    prepared: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step, a file, the last step: transformers would save the best alone, and say nothing."""
    monkeypatch.setattr("whet.training.callbacks.triggers.AT_MOST_EVERY_SECONDS", 0.0)
    asking = {"save_first_step": True, "dynamic_checkpoint": {"enabled": True, "check_interval": 1}}
    trainer, resolved = build(prepared, tmp_path, **{**BEST, **asking, "max_steps": 5})
    losses(trainer, [math.nan, 1.0, 2.0, 3.0, 4.0])
    trainer.add_callback(AfterStep(4, (tmp_path / "axolotl_checkpoint.save").touch))
    fit(trainer, resolved)
    assert [folder.name for folder in checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in (1, 2, 4, 5)]


def test_the_step_that_early_stopping_ends_after_is_saved(prepared: PreparedSet, tmp_path: Path) -> None:
    """Its weights become the result; were they nowhere else, a disk that is full then would take the whole run."""
    keys = {**BEST, "save_strategy": "steps", "save_steps": 10, "early_stopping_patience": 1, "learning_rate": 10.0}
    trainer, resolved = build(prepared, tmp_path, **keys, max_steps=30)
    result = fit(trainer, resolved)
    assert result.stopped_early
    assert result.steps % 10
    assert newest_complete(tmp_path).path == tmp_path / f"checkpoint-{result.steps}"


def test_a_run_without_any_best_says_what_its_result_is(
    prepared: PreparedSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, resolved = build(prepared, tmp_path, **{**BEST, "max_steps": 1}, load_best_model_at_end=True)
    losses(trainer, [math.nan])
    assert fit(trainer, resolved).best_checkpoint is None
    assert "in no evaluation was eval_loss a number: the result is that of the last step" in caplog.text
    assert newest_complete(tmp_path).path == tmp_path / "checkpoint-1"


@pytest.mark.parametrize("is_there", [True, False], ids=["damaged", "gone"])
def test_a_best_model_that_is_not_what_was_saved_does_not_become_the_result(
    prepared: PreparedSet, tmp_path: Path, is_there: bool
) -> None:
    trainer, resolved = build(prepared, tmp_path, **BEST, load_best_model_at_end=True)
    losses(trainer, [1.0, 2.0, 3.0, 4.0])
    weights = tmp_path / "checkpoint-1" / "model.safetensors"

    def damage() -> None:
        trainer.settle()
        if is_there:
            weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
        else:
            shutil.rmtree(weights.parent)

    trainer.add_callback(AfterStep(3, damage))
    reason = "the content of model.safetensors has changed" if is_there else "it is gone"
    message = rf"the best checkpoint, .*checkpoint-1, cannot be loaded: {reason} -> "
    with pytest.raises(ArtefactError, match=message):
        fit(trainer, resolved)
    assert newest_complete(tmp_path).path == tmp_path / "checkpoint-4"
    again, resolved = build(prepared, tmp_path, **BEST, load_best_model_at_end=True)
    with pytest.raises(ArtefactError, match=message):  # the same command again does not end otherwise
        fit(again, resolved, tmp_path / "checkpoint-4")


def test_of_the_best_only_the_weights_are_needed(prepared: PreparedSet, tmp_path: Path) -> None:
    """Its optimizer is large, and nobody goes on from it."""
    trainer, resolved = build(prepared, tmp_path, **{**BEST, "max_steps": 2}, load_best_model_at_end=True)
    losses(trainer, [1.0, 2.0])
    best = tmp_path / "checkpoint-1"

    def make_room() -> None:
        trainer.settle()
        (best / "optimizer.pt").unlink()
        (best / "scheduler.pt").write_bytes(b"")
        (best / "rng_state_7.pth").write_bytes(b"")

    trainer.add_callback(AfterStep(2, make_room))
    assert fit(trainer, resolved).best_checkpoint == str(best)


def test_what_is_beside_is_there_before_the_name_is(prepared: PreparedSet, tmp_path: Path) -> None:
    trainer, resolved = build(prepared, tmp_path, max_steps=2)
    trainer.add_callback(SaveBeside(lambda: lambda folder: (folder / "beside.json").write_text(folder.parent.name)))
    fit(trainer, resolved)
    assert (tmp_path / "checkpoint-2" / "beside.json").read_text() == STAGING
    assert "beside.json" in json.loads((tmp_path / "checkpoint-2" / MANIFEST).read_text())["files"]
    assert not (tmp_path / STAGING).exists()


def fails_at(step: int, error: BaseException) -> SaveBeside:
    """Fails while the checkpoint of a step is written."""

    def write(folder: Path) -> None:
        if folder.name == f"checkpoint-{step}":
            raise error

    return SaveBeside(lambda: write)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("background", [True, False], ids=["background", "at once"])
@pytest.mark.parametrize("step", [4, 6], ids=["before another save", "at the end"])
def test_a_full_disk_ends_the_run_and_what_was_there_is_kept(
    prepared: PreparedSet, tmp_path: Path, background: bool, step: int
) -> None:
    trainer, resolved = build(prepared, tmp_path, max_steps=6)
    trainer.writes_in_background = background
    trainer.add_callback(fails_at(step, FULL))
    with pytest.raises(SavingFailed) as caught:
        fit(trainer, resolved)
    (problem,) = caught.value.problems
    assert problem.where == f"step {step}"
    assert problem.found.startswith("the checkpoint could not be written: No space left on device; ")
    assert problem.found.endswith(f"checkpoint-{step - 2} is kept")
    assert "--resume-from-checkpoint" in problem.fix
    assert caught.value.exit_code == 1
    assert newest_complete(tmp_path).path == tmp_path / f"checkpoint-{step - 2}"
    assert not (tmp_path / STAGING).exists(), "the half one is gone"


def test_a_limit_of_the_system_while_weights_are_written_is_no_traceback(prepared: PreparedSet, tmp_path: Path) -> None:
    """safetensors and PyTorch tell of a refused write in exceptions of their own."""
    import resource

    for lora, limit in ((False, 50_000), (True, 8_000)):
        output_dir = tmp_path / str(lora)
        trainer, resolved = build(prepared, output_dir, lora=lora)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)

        def refuse(limit: int = limit, hard: int = before[1], settle: Any = trainer.settle) -> None:
            settle()  # the checkpoint of step 2 is published
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

        trainer.add_callback(AfterStep(3, refuse))
        try:
            with pytest.raises(SavingFailed, match=r"could not be written: .*checkpoint-2 is kept"):
                fit(trainer, resolved)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert newest_complete(output_dir).path == output_dir / "checkpoint-2"


def test_a_full_disk_met_by_another_file_ends_the_run_as_cleanly(prepared: PreparedSet, tmp_path: Path) -> None:
    trainer, resolved = build(prepared, tmp_path)

    def log() -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "metrics.jsonl")

    trainer.add_callback(AfterStep(3, log))
    with pytest.raises(SavingFailed, match=r"step 3: metrics.jsonl could not be written: Disk quota .*checkpoint-2 is"):
        fit(trainer, resolved)


def test_a_fault_of_the_background_comes_as_it_is(prepared: PreparedSet, tmp_path: Path) -> None:
    trainer, resolved = build(prepared, tmp_path)
    trainer.add_callback(fails_at(2, ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError, match="ours"):
        fit(trainer, resolved)
    assert checkpoints(tmp_path) == []


def test_an_error_in_training_waits_for_the_checkpoint_that_is_being_written(
    prepared: PreparedSet, tmp_path: Path
) -> None:
    trainer, resolved = build(prepared, tmp_path)

    def fail() -> None:
        raise ZeroDivisionError("in training")

    trainer.add_callback(AfterStep(3, fail))
    with pytest.raises(ZeroDivisionError, match="in training"):
        fit(trainer, resolved)
    assert newest_complete(tmp_path).path == tmp_path / "checkpoint-2"


def test_a_second_signal_leaves_nothing_half_written_under_a_checkpoint_s_name(
    prepared: PreparedSet, tmp_path: Path
) -> None:
    trainer, resolved = build(prepared, tmp_path)
    begun, goes_on = threading.Event(), threading.Event()

    def slow(folder: Path) -> None:
        begun.set()
        assert goes_on.wait(60)

    def insist() -> None:
        assert begun.wait(60)
        threading.Timer(0.0, goes_on.set).start()
        raise KeyboardInterrupt

    trainer.add_callback(SaveBeside(lambda: slow))
    trainer.add_callback(AfterStep(3, insist))
    with pytest.raises(KeyboardInterrupt):
        fit(trainer, resolved)
    found = newest_complete(tmp_path)
    assert not found.passed_over, "whole, or not there"


def test_the_log_in_memory_and_in_a_checkpoint_has_an_end_and_that_on_disk_has_not(
    prepared: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whet.training.saving.LINES_KEPT", 2)
    trainer, resolved = build(prepared, tmp_path, save_steps=4)
    fit(trainer, resolved)
    saved = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert [line["step"] for line in saved] == [3, 4]
    assert len(trainer.state.log_history) == 2
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]


def test_what_sharded_models_take_part_in_is_staged_and_published_too(
    prepared: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their path, on a model that is whole: transformers writes, into the staging folder."""
    trainer, resolved = build(prepared, tmp_path / "own")
    fit(trainer, resolved)
    sharded, resolved = build(prepared, tmp_path / "sharded")
    monkeypatch.setattr(type(sharded), "saves_together", lambda self: True)
    fit(sharded, resolved)
    for step in (2, 4):
        own, other = (digests(tmp_path / name / f"checkpoint-{step}") for name in ("own", "sharded"))
        assert own == other
    for file in (tmp_path / "own" / "checkpoint-4").glob("*.pt"):
        with zipfile.ZipFile(file) as zipped:
            assert zipped.testzip() is None, "scanners of pickles and unzip would call it broken"
    assert not (tmp_path / "sharded" / STAGING).exists()


def test_a_host_copy_keeps_ties_and_shares_nothing_with_the_original() -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    state = {"a": weight, "tied": weight, "t": weight.T, "deep": [{"step": torch.tensor(3), "lr": 0.1}], "name": "x"}
    copies = HostCopies()
    copies.begin()
    copied = copies.copied(state)
    copies.finish()
    assert copies.num_bytes == state_bytes(state) == 2 * 24 + 8
    assert copied["a"] is copied["tied"]
    weight += 1
    assert torch.equal(copied["a"], torch.arange(6.0).reshape(2, 3))
    assert torch.equal(copied["t"], torch.arange(6.0).reshape(2, 3).T)
    assert copied["deep"][0]["step"] == 3
    before = copied["a"].data_ptr()
    copies.begin()
    assert copies.copied(state)["a"].data_ptr() == before, "the memory is used again"


@pytest.mark.parametrize("kind", ["OptimState4bit", "OptimState8bit", "OptimStateFp8"])
def test_a_host_copy_of_a_quantised_state_shares_nothing_with_it(kind: str) -> None:
    """torchao's states do not copy themselves where they are on the CPU already."""
    module = importlib.import_module(f"torchao.optim.subclass_{kind.removeprefix('OptimState').lower()}")
    made: Any = getattr(module, kind)
    signs = ({}, {}) if kind == "OptimStateFp8" else ({"signed": True}, {"signed": False})
    states = {name: made.zeros((4, 256), **sign) for name, sign in zip(("exp_avg", "exp_avg_sq"), signs, strict=True)}
    for state in states.values():
        state.copy_(torch.linspace(0, 1, 1024).reshape(4, 256))
    before = {name: state.dequantize() for name, state in states.items()}
    copies = HostCopies()
    copies.begin()
    copied: Any = copies.copied(states)
    copies.finish()
    for name, state in states.items():
        assert type(copied[name]) is made
        assert copied[name].shape == state.shape
        state.copy_(torch.zeros(4, 256))
        assert torch.equal(copied[name].dequantize(), before[name])


def test_a_large_copy_keeps_no_memory_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    monkeypatch.setattr("whet.training.host_copy.KEPT_BYTES", 16)
    copies = HostCopies()
    copies.begin()
    copied = copies.copied({"a": torch.ones(8)})
    copies.finish()
    held = weakref.ref(copied["a"])
    del copied
    assert held() is None
