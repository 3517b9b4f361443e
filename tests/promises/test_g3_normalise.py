"""G3 normalise: the gradient of a step does not depend on how the step is cut into pieces.

Micro-batches, accumulation, ranks and packing give the same gradient (relative error <= 1e-6 in float32), the last,
partial window of an epoch included.
"""

from __future__ import annotations

import os
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

TOLERANCE = 1e-6
ROWS_PER_STEP = 8
NUM_SAMPLES = 13
"""A window of 8 and a window of 5: every split below meets a last step that does not divide evenly."""


class KeepGradients(TrainerCallback):
    """Copies the gradient of every optimiser step."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.steps.append(parameters_to_vector([p.grad for p in model.parameters()]).clone())


def gradients(prepared: PreparedSet, output_dir: Path, *, world_size: int = 1, rank: int = 0, **keys: Any) -> Any:
    """float32[steps, parameters] of one epoch, and the losses that were logged. The weights do not move."""
    still = {
        "optimizer": "sgd",
        "learning_rate": 1e-30,
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    keys = {"sequence_len": 64, "pad_to_sequence_len": False, **still, **keys}
    trainer = make_trainer(prepared, make_resolved(output_dir, world_size=world_size, rank=rank, **keys))
    kept = KeepGradients()
    trainer.add_callback(kept)
    trainer.train()
    return torch.stack(kept.steps), [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Of the worst step, in the L2 norm."""
    return float(((found - expected).double().norm(dim=1) / expected.double().norm(dim=1)).max())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return write_prepared(tmp_path_factory.mktemp("g3") / "prepared", random_samples(NUM_SAMPLES, seed=3))


@pytest.fixture(scope="module")
def whole(prepared: PreparedSet, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Each step in one piece."""
    return gradients(prepared, tmp_path_factory.mktemp("whole"), micro_batch_size=ROWS_PER_STEP)


def test_the_reference_is_the_mean_over_supervised_tokens(prepared: PreparedSet, whole: Any, tmp_path: Path) -> None:
    """Not ours against ours: each sample alone through transformers' own loss, summed and divided by hand."""
    trainer = make_trainer(prepared, make_resolved(tmp_path, micro_batch_size=ROWS_PER_STEP))
    order = trainer.train_samples.order
    model = tiny_model(attention="sdpa")
    for step, (gradient, logged) in enumerate(zip(*whole, strict=True)):
        samples = [prepared.train.tokens(index) for index in order.step_samples(0, step, 1).tolist()]
        num_targets = sum(int(supervised.sum()) for _, supervised in samples)
        model.zero_grad()
        total = 0.0
        for ids, supervised in samples:
            input_ids = torch.from_numpy(ids.astype("int64"))[None]
            labels = input_ids.where(torch.from_numpy(supervised)[None], torch.tensor(-100))
            loss = model(input_ids=input_ids, labels=labels, num_items_in_batch=num_targets).loss
            loss.backward()
            total += loss.item()
        by_hand = parameters_to_vector([parameter.grad for parameter in model.parameters()])
        assert relative_error(gradient[None], by_hand[None]) <= TOLERANCE
        assert logged == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("micro_batch_size", [4, 2, 1])
def test_gradients_do_not_depend_on_accumulation(
    prepared: PreparedSet, whole: Any, tmp_path: Path, micro_batch_size: int
) -> None:
    accumulation = ROWS_PER_STEP // micro_batch_size
    found, losses = gradients(
        prepared, tmp_path, micro_batch_size=micro_batch_size, gradient_accumulation_steps=accumulation
    )
    assert found.shape[0] == 2
    assert relative_error(found, whole[0]) <= TOLERANCE
    assert losses == pytest.approx(whole[1], rel=1e-5)


@pytest.mark.parametrize(
    "layout",
    [{"pad_to_sequence_len": True}, {"pad_to_multiple_of": 16}],
    ids=["padded to sequence_len", "padded to a multiple"],
)
def test_gradients_do_not_depend_on_padding(
    prepared: PreparedSet, whole: Any, tmp_path: Path, layout: dict[str, Any]
) -> None:
    found, _ = gradients(prepared, tmp_path, micro_batch_size=2, gradient_accumulation_steps=4, **layout)
    assert relative_error(found, whole[0]) <= TOLERANCE


def test_gradients_do_not_depend_on_packing(prepared: PreparedSet, tmp_path: Path) -> None:
    """All samples in one step, packed and not."""
    packed, _ = gradients(
        prepared, tmp_path / "packed", sample_packing=True, micro_batch_size=2, gradient_accumulation_steps=16
    )
    single, _ = gradients(prepared, tmp_path / "single", micro_batch_size=16)
    assert packed.shape[0] == single.shape[0] == 1
    assert relative_error(packed, single) <= TOLERANCE


def test_gradients_do_not_depend_on_the_layout(prepared: PreparedSet, whole: Any, tmp_path: Path) -> None:
    """A model that cannot keep documents apart gets a padded row for each sample."""
    keys = {"optimizer": "sgd", "learning_rate": 1e-30, "max_grad_norm": 0.0, "save_strategy": "no"}
    resolved = make_resolved(tmp_path, micro_batch_size=4, gradient_accumulation_steps=2, **keys)
    trainer = make_trainer(prepared, resolved, tiny_model(attention="sdpa"), isolates_documents=False)
    kept = KeepGradients()
    trainer.add_callback(kept)
    trainer.train()
    assert relative_error(torch.stack(kept.steps), whole[0]) <= TOLERANCE


MICRO_BATCH_SIZES_ON_TWO_RANKS = (4, 1)


@pytest.fixture(scope="module")
def two_ranks(prepared: PreparedSet, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """What each rank of one launch over gloo found, for each micro-batch size."""
    folder = tmp_path_factory.mktemp("ranks")
    launch_ranks(__file__, prepared.path, folder)
    return {rank: torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)}


@pytest.mark.parametrize("micro_batch_size", MICRO_BATCH_SIZES_ON_TWO_RANKS)
def test_gradients_do_not_depend_on_ranks(two_ranks: dict[int, Any], whole: Any, micro_batch_size: int) -> None:
    """With 5 rows in the last window one rank has fewer than the other, or none."""
    for rank in (0, 1):
        found, losses = two_ranks[rank][micro_batch_size]
        assert relative_error(found, whole[0]) <= TOLERANCE
        assert losses == pytest.approx(whole[1], rel=1e-5)


def one_rank(prepared_path: str, output_dir: str) -> None:
    """What each of the two processes does."""
    prepared, rank, world_size = (
        open_prepared(Path(prepared_path)),
        int(os.environ["RANK"]),
        int(os.environ["WORLD_SIZE"]),
    )
    results = {
        size: gradients(
            prepared,
            Path(output_dir) / f"run-{size}",
            world_size=world_size,
            rank=rank,
            micro_batch_size=size,
            gradient_accumulation_steps=ROWS_PER_STEP // size // world_size,
        )
        for size in MICRO_BATCH_SIZES_ON_TWO_RANKS
    }
    torch.save(results, Path(output_dir) / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    one_rank(*sys.argv[1:])
