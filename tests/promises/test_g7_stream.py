"""G7 resume, of a run on a stream: stopped anywhere and resumed, it is bit for bit the run that was not stopped.

Mid-window and at a window's border, packed and not, mixed by weights, on one rank and on two.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import tiny_model
from tests.promises.test_g7_resume import StopAfter, outcome
from tests.ranks import launch_ranks
from tests.tiny_streams import small_chunks, stream_run, stream_trainer, write_texts
from torch.nn.utils import parameters_to_vector

from whet.core.errors import ArtefactError, DataError
from whet.data import chunks
from whet.model.attention import NAME
from whet.training.callbacks.interrupt import TrainingInterrupted
from whet.training.checkpoint import checkpoint_to_resume, newest_complete, what_is_wrong
from whet.training.fit import fit

KEYS: dict[str, Any] = {
    "max_steps": 9,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "streaming_multipack_buffer_size": 12,
    "warmup_steps": 2,
    "weight_decay": 0.1,
    "logging_steps": 1,
    "save_strategy": "no",
}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("chunks_of_stream", "chunks_of_lines"):
        function = getattr(chunks, name)
        monkeypatch.setattr(function, "__defaults__", function.__defaults__)
    small_chunks()


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("texts")
    return [
        {"path": str(write_texts(folder / "a.jsonl", 40, seed=1)), "weight": 3},
        {"path": str(write_texts(folder / "b.jsonl", 13, seed=2)), "weight": 1},
    ]


def build(datasets: list[dict[str, Any]], folder: Path, **keys: Any) -> Any:
    """A trainer of a model with dropout, so that the random state matters too."""
    resolved = stream_run(folder, datasets, **{**KEYS, **keys})
    return stream_trainer(resolved, tiny_model(attention=NAME, attention_dropout=0.1)), resolved


WAYS: list[Any] = [
    pytest.param({}, id="packed"),
    pytest.param({"sample_packing": False, "micro_batch_size": 2, "mixing_by": "samples"}, id="samples"),
]


@pytest.mark.parametrize("keys", WAYS)
def test_resuming_equals_no_interruption(datasets: Any, tmp_path: Path, keys: dict[str, Any]) -> None:
    trainer, resolved = build(datasets, tmp_path / "whole", **keys, save_strategy="steps", save_steps=9)
    fit(trainer, resolved)
    expected, report = outcome(trainer, tmp_path / "whole"), trainer.train_samples.report()
    over, resolved = build(datasets, tmp_path / "whole", **keys)
    fit(over, resolved, tmp_path / "whole" / "checkpoint-9")
    assert over.train_samples.report() == report, "a run that is over tells what it has read"
    borders = 0
    for step in (1, 2, 3, 5, 6, 8):
        folder = tmp_path / str(step)
        trainer, resolved = build(datasets, folder, **keys)
        trainer.add_callback(StopAfter(step))
        with pytest.raises(TrainingInterrupted):
            fit(trainer, resolved)

        torch.manual_seed(12345)  # a new process has another random state
        resumed, resolved = build(datasets, folder, **keys)
        checkpoint, _ = checkpoint_to_resume(True, str(folder), "resume_from_checkpoint")
        assert checkpoint is not None
        state = json.loads((checkpoint / "whet-stream.json").read_text())
        borders += state["row"] == state["window"]["first_row"]
        fit(resumed, resolved, checkpoint)

        weights, told = outcome(resumed, folder)
        assert torch.equal(weights, expected[0])
        assert told == expected[1]
        assert resumed.train_samples.report() == report
    assert 0 < borders < 6, "some stops shall be at a window's border, and some not"


def test_another_accumulation_goes_on_at_the_same_row(datasets: Any, tmp_path: Path) -> None:
    """Micro-batches of two rows without accumulation see the rows that two of one row would have seen."""
    trainer, resolved = build(datasets, tmp_path, max_steps=8, save_strategy="steps", save_steps=4)
    fit(trainer, resolved)
    seen = trainer.train_samples.report()
    other = {"micro_batch_size": 2, "gradient_accumulation_steps": 1}
    resumed, resolved = build(datasets, tmp_path, max_steps=8, **other)
    fit(resumed, resolved, tmp_path / "checkpoint-4")
    assert resumed.train_samples.report() == seen


def test_the_place_belongs_to_the_checkpoint(datasets: Any, tmp_path: Path) -> None:
    trainer, resolved = build(datasets, tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    fit(trainer, resolved)
    checkpoint = tmp_path / "checkpoint-2"
    assert newest_complete(tmp_path).path == checkpoint
    with (checkpoint / "whet-stream.json").open("a") as file:
        file.write(" ")
    assert "whet-stream.json" in (what_is_wrong(checkpoint) or "")


def test_a_checkpoint_of_another_stream_is_refused(datasets: Any, tmp_path: Path) -> None:
    trainer, resolved = build(datasets, tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    fit(trainer, resolved)
    other, resolved = build(datasets, tmp_path / "other", streaming_multipack_buffer_size=20, seed=3)
    with pytest.raises(ArtefactError, match="with streaming_multipack_buffer_size 12, seed 42 -> write them as"):
        fit(other, resolved, tmp_path / "checkpoint-2")
    other, resolved = build(datasets, tmp_path / "other", min_sample_len=4)
    with pytest.raises(ArtefactError, match="in a stream with another tokenizer, template or options of its datasets"):
        fit(other, resolved, tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / "whet-stream.json").unlink()
    other, resolved = build(datasets, tmp_path / "other")
    with pytest.raises(ArtefactError, match="checkpoint-2 was written by a run that did not stream"):
        fit(other, resolved, tmp_path / "checkpoint-2")


def test_a_bad_row_ends_the_training_with_its_place(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "a.jsonl", 40)
    with path.open("a") as file:
        file.write('{"words": "no text"}\n')
    trainer, resolved = build([{"path": str(path)}], tmp_path / "out", max_steps=50)
    with pytest.raises(DataError, match=r"a\.jsonl:41: missing field"):
        fit(trainer, resolved)
    assert 0 < trainer.state.global_step < 50


# -- two ranks ---------------------------------------------------------------------------------------------------------


def one_rank(texts: str, output_dir: str) -> None:
    """What each of two processes does: a whole run, one that is stopped after step 4, and its resumption."""
    small_chunks()
    rank, folder = int(os.environ["RANK"]), Path(output_dir)
    rows = [{"path": f"{texts}/a.jsonl", "weight": 3}, {"path": f"{texts}/b.jsonl", "weight": 1}]

    def trained(name: str, resume: Path | None = None, stop: int | None = None) -> torch.Tensor:
        keys = {**KEYS, "gradient_accumulation_steps": 1}
        resolved = stream_run(folder / name, rows, world_size=2, rank=rank, **keys)
        trainer = stream_trainer(resolved, tiny_model(attention=NAME))
        if stop is not None and rank == 1:
            trainer.add_callback(StopAfter(stop))
        try:
            fit(trainer, resolved, resume)
        except TrainingInterrupted:
            assert stop is not None
        return parameters_to_vector(trainer.model.parameters()).detach()

    whole = trained("whole")
    trained("stopped", stop=4)
    resumed = trained("stopped", resume=folder / "stopped" / "checkpoint-4")
    torch.save({"whole": whole, "resumed": resumed}, folder / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_train_as_one_and_resume_as_if_they_had_not_stopped(datasets: Any, tmp_path: Path) -> None:
    launch_ranks(__file__, Path(datasets[0]["path"]).parent, tmp_path)
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]
    resolved = stream_run(tmp_path / "alone", datasets, **KEYS)
    trainer = stream_trainer(resolved, tiny_model(attention=NAME))
    fit(trainer, resolved)
    alone, told = outcome(trainer, tmp_path / "alone")
    for rank in ranks:
        assert torch.equal(rank["resumed"], rank["whole"])
        assert torch.allclose(rank["whole"], alone, atol=1e-4)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    seen = [(line["tokens_seen"], line["supervised_tokens_seen"]) for line in lines if line["kind"] == "train"]
    assert seen == [(line["tokens_seen"], line["supervised_tokens_seen"]) for line in told]


if __name__ == "__main__":
    one_rank(sys.argv[1], sys.argv[2])
