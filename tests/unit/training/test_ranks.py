"""Two processes over gloo: what one rank knows, both act on; what they make together is what one would have made."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import tiny_model
from tests.ranks import launch_ranks
from tests.tiny_training import make_resolved, make_trainer, random_samples, write_prepared
from torch.nn.utils import parameters_to_vector
from transformers import TrainerCallback

from whet.data.store import PreparedSet, open_prepared
from whet.model.attention import NAME
from whet.training.callbacks.interrupt import TrainingInterrupted
from whet.training.checkpoint import newest_complete
from whet.training.fit import fit

KEYS: dict[str, Any] = {
    "sequence_len": 64,
    "sample_packing": True,
    "micro_batch_size": 1,
    "num_epochs": 3.0,
    "warmup_steps": 0,
    "logging_steps": 1,
    "save_strategy": "epoch",
    "eval_strategy": "epoch",
}
"""On two ranks with accumulation 1 as on one with accumulation 2; steps have 2 rows, an epoch 7."""


class AtStep(TrainerCallback):
    """Does something on one rank when a step begins."""

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step and args.process_index == 1:
            self.action()


def train(prepared: PreparedSet, output_dir: Path, world_size: int, rank: int, **options: Any) -> Any:
    """A trainer after its run, on one or two ranks, with the same rows in each step."""
    accumulation = 2 // world_size
    keys = {**KEYS, "gradient_accumulation_steps": accumulation, **options.pop("keys", {})}
    resolved = make_resolved(output_dir, world_size=world_size, rank=rank, **keys)
    trainer = make_trainer(prepared, resolved, tiny_model(attention=NAME))
    for callback in options.pop("callbacks", ()):
        trainer.add_callback(callback)
    try:
        fit(trainer, resolved, **options)
    except TrainingInterrupted as interrupted:
        trainer.interrupted = str(interrupted)
    return trainer


def metrics(output_dir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "loss", "eval_loss", "tokens_seen", "supervised_tokens_seen")
    return [
        {name: value for name, value in line.items() if name in names or name.startswith("loss/")}
        for line in lines
        if line["kind"] != "summary"
    ]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    folder = tmp_path_factory.mktemp("two") / "prepared"
    samples, held_out = random_samples(30, seed=7), random_samples(5, seed=8)
    return write_prepared(folder, samples, held_out, sources=[0, 1, 1, 1, 1] * 7, names=("chat.jsonl", "code.jsonl"))


@pytest.fixture(scope="module")
def two_ranks(prepared: PreparedSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one launch that did all that `one_rank` does."""
    folder = tmp_path_factory.mktemp("ranks")
    launch_ranks(__file__, prepared.path, folder)
    return folder


def one_rank(prepared_path: str, output_dir: str) -> None:
    """What each of the two processes does."""
    prepared, folder, rank = open_prepared(Path(prepared_path)), Path(output_dir), int(os.environ["RANK"])
    whole = train(prepared, folder / "whole", 2, rank)

    model_of: dict[str, Any] = {}

    def poison() -> None:
        model_of["trainer"].compute_loss = lambda *args, **kwargs: _nan_loss(model_of["trainer"], *args, **kwargs)

    def _nan_loss(trainer: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        del trainer.compute_loss
        return trainer.compute_loss(*args, **kwargs) * float("nan")

    keys = {**KEYS, "gradient_accumulation_steps": 1, "max_steps": 3, "eval_strategy": "no", "save_strategy": "no"}
    resolved = make_resolved(folder / "bad", world_size=2, rank=rank, **keys)
    bad = make_trainer(prepared, resolved, tiny_model(attention=NAME))
    model_of["trainer"] = bad
    bad.add_callback(AtStep(2, poison))
    fit(bad, resolved)
    from whet.training.callbacks.guard import NonFiniteGuard

    (guard,) = [callback for callback in bad.callback_handler.callbacks if isinstance(callback, NonFiniteGuard)]

    stop = AtStep(5, lambda: signal.raise_signal(signal.SIGINT))
    stopped = train(prepared, folder / "stopped", 2, rank, callbacks=[stop])
    found = {
        "whole": parameters_to_vector(whole.model.parameters()).detach(),
        "bad": parameters_to_vector(bad.model.parameters()).detach(),
        "skipped": guard.skipped,
        "interrupted": stopped.interrupted,
    }
    torch.save(found, folder / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


def loaded(folder: Path, rank: int) -> dict[str, Any]:
    return torch.load(folder / f"rank-{rank}.pt", weights_only=True)


def test_two_ranks_train_and_evaluate_as_one(prepared: PreparedSet, two_ranks: Path, tmp_path: Path) -> None:
    alone = train(prepared, tmp_path, 1, 0)
    expected, found = metrics(tmp_path), metrics(two_ranks / "whole")
    assert len(found) == len(expected) == 12 + 3
    assert sum("loss/chat" in line for line in found) > 3
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    weights = parameters_to_vector(alone.model.parameters()).detach()
    for rank in (0, 1):
        assert torch.allclose(loaded(two_ranks, rank)["whole"], weights, atol=1e-4)
    examples = [folder / "eval" / "examples-step-12.jsonl" for folder in (tmp_path, two_ranks / "whole")]
    lines = [[json.loads(line) for line in path.read_text().splitlines()] for path in examples]
    for mine, theirs in zip(*lines, strict=True):
        assert mine == {**theirs, "loss": pytest.approx(theirs["loss"], rel=1e-4)}


def test_a_loss_that_is_no_number_on_one_rank_is_skipped_by_both(two_ranks: Path) -> None:
    first, second = loaded(two_ranks, 0), loaded(two_ranks, 1)
    assert first["skipped"] == second["skipped"] == [2]
    assert torch.isfinite(first["bad"]).all()
    assert torch.equal(first["bad"], second["bad"])


def test_a_signal_to_one_rank_stops_both_after_the_same_step(two_ranks: Path) -> None:
    for rank in (0, 1):
        assert loaded(two_ranks, rank)["interrupted"].startswith("step 5: stopped by Ctrl-C")
    assert newest_complete(two_ranks / "stopped").path == two_ranks / "stopped" / "checkpoint-5"
    assert (two_ranks / "stopped" / "checkpoint-5" / "rng_state_1.pth").exists()


def test_a_run_of_two_ranks_goes_on_with_one(prepared: PreparedSet, two_ranks: Path, tmp_path: Path) -> None:
    """The global batch is kept by accumulating twice as much."""
    import shutil

    shutil.copytree(two_ranks / "stopped", tmp_path / "out")
    resumed = train(prepared, tmp_path / "out", 1, 0, resume_from=tmp_path / "out" / "checkpoint-5")
    assert resumed.state.global_step == 12
    steps = [line for line in metrics(tmp_path / "out") if "loss" in line]
    expected = [line for line in metrics(two_ranks / "whole") if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert [line["loss"] for line in steps] == pytest.approx([line["loss"] for line in expected], rel=1e-5)


if __name__ == "__main__":
    one_rank(*sys.argv[1:])
