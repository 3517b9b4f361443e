"""One epoch of ours, with every fast path that applies, has the losses of `transformers.Trainer` on the same batches.

Theirs is as plain as it can be: eager attention, a row a document, their own loss and loop, their own LoRA forward.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import tiny_model
from tests.tiny_training import FIRST_ORDINARY, make_resolved, make_trainer, random_samples, write_prepared
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from whet.core.types import IGNORED
from whet.data.store import PreparedSet
from whet.model.attention import NAME
from whet.model.levers import install_levers

TOLERANCE = 1e-5
ADAM_EPSILON = 1e-5
"""With Adam's own 1e-8 a gradient that is rounding alone moves a weight as far as any other."""
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}


class TheirTrainer(Trainer):
    """`transformers.Trainer`, given the batches that it is to have."""

    def __init__(self, batches: list[dict[str, torch.Tensor]], **arguments: Any) -> None:
        self.batches = batches
        super().__init__(**arguments)

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader: DataLoader[Any] = DataLoader(self.batches, batch_size=None, shuffle=False)  # type: ignore[arg-type]
        return loader


def padded(samples: list[tuple[Any, Any]]) -> dict[str, torch.Tensor]:
    """Samples as rows padded on the right, in the form of transformers: labels are shifted by the model."""
    width = max(len(ids) for ids, _ in samples)
    ids = torch.zeros(len(samples), width, dtype=torch.int64)
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for row, (tokens, supervised) in enumerate(samples):
        own = torch.from_numpy(tokens.astype("int64"))
        ids[row, : len(own)], mask[row, : len(own)] = own, 1
        labels[row, : len(own)] = torch.where(torch.from_numpy(supervised), own, IGNORED)
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    """Eight words that come up at random: which they are is learned at once."""
    samples = [(ids % 8 + FIRST_ORDINARY, supervised) for ids, supervised in random_samples(120, seed=11)]
    return write_prepared(tmp_path_factory.mktemp("same") / "prepared", samples)


def adapted(architecture: str, attention: str, keys: dict[str, Any], folder: Path) -> torch.nn.Module:
    """The same model each time, adapter included."""
    from whet.model.adapters import adapt

    resolved = make_resolved(folder, **keys)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return adapt(tiny_model(architecture, attention=attention), resolved.config, resolved)


@pytest.mark.parametrize(
    ("architecture", "adapter", "packed"),
    [
        pytest.param("llama", {}, True, id="llama-full-packed"),
        pytest.param("llama", {}, False, id="llama-full-apart"),
        pytest.param("llama", LORA, True, id="llama-lora-packed"),
        pytest.param("llama", LORA, False, id="llama-lora-apart"),
        pytest.param("qwen3", LORA, True, id="qwen3-lora-packed"),
        pytest.param("gemma3", {}, True, id="gemma3-full-packed"),
        pytest.param("gemma3", LORA, False, id="gemma3-lora-apart"),
    ],
)
def test_the_loss_curve_of_an_epoch_is_that_of_transformers(
    prepared: PreparedSet, tmp_path: Path, architecture: str, adapter: dict[str, Any], packed: bool
) -> None:
    keys = {
        "sequence_len": 64,
        "sample_packing": packed,
        "micro_batch_size": 2,
        "learning_rate": 5e-3,
        "adam_epsilon": ADAM_EPSILON,
        "lr_scheduler": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        **adapter,
    }
    resolved = make_resolved(tmp_path / "ours", **keys)
    model = adapted(architecture, NAME, keys, tmp_path)
    said = install_levers(model, resolved.config, resolved)
    assert any("rms_norm" in sentence for sentence in said)
    ours = make_trainer(prepared, resolved, model)
    order = ours.train_samples.order
    ours.train()

    steps = range(ours.state.max_steps)
    batches = [
        padded([prepared.train.tokens(index) for index in order.step_samples(0, step, 1).tolist()]) for step in steps
    ]
    args = TrainingArguments(
        output_dir=str(tmp_path / "theirs"),
        max_steps=len(batches),
        learning_rate=5e-3,
        adam_epsilon=ADAM_EPSILON,
        lr_scheduler_type="constant",
        weight_decay=0.01,
        optim="adamw_torch",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    theirs = TheirTrainer(batches, model=adapted(architecture, "eager", keys, tmp_path), args=args)
    theirs.train()
    curves = [[entry["loss"] for entry in each.state.log_history if "loss" in entry] for each in (ours, theirs)]
    assert len(curves[0]) == len(curves[1]) == len(batches) >= 10
    for mine, other in zip(*curves, strict=True):
        assert abs(mine - other) <= TOLERANCE * other
    assert min(curves[0]) < curves[0][0] - 0.1, "nothing was learned, so nothing was compared"
