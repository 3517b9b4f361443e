"""What the trainer adds to transformers': each sample once, an exact evaluation, figures, published checkpoints."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.models import tiny_model
from tests.tiny_training import make_resolved, make_trainer, random_samples, write_prepared
from torch.nn.functional import cross_entropy

from whet.data.store import PreparedSet, Split
from whet.model.attention import NAME
from whet.model.levers import install_levers
from whet.training.callbacks.embedding_noise import EmbeddingNoise
from whet.training.fit import fit

NAMES = ("data/chat.jsonl", "data/code.jsonl")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return write_prepared(
        tmp_path_factory.mktemp("trainer") / "prepared",
        random_samples(17, seed=1),
        random_samples(9, seed=2),
        sources=[0] * 17 + [0, 1, 1] * 3,
        names=NAMES,
    )


def loss_by_hand(model: Any, split: Split, index: int) -> tuple[float, int]:
    """Summed loss and targets of one sample, alone, with plain attention and full logits."""
    ids, supervised = split.tokens(index)
    input_ids = torch.from_numpy(ids.astype(np.int64))[None]
    with torch.no_grad():
        logits = model(input_ids=input_ids, use_cache=False).logits[0, :-1]
    losses = cross_entropy(logits, input_ids[0, 1:], reduction="none")[torch.from_numpy(supervised[1:].copy())]
    return float(losses.double().sum()), len(losses)


@pytest.mark.parametrize(
    ("keys", "isolates"),
    [
        ({"sample_packing": True}, True),
        ({"eval_sample_packing": False, "sample_packing": True}, True),
        ({"eval_batch_size": 4}, True),
        ({"eval_batch_size": 4}, False),
    ],
    ids=["packed", "packed in training only", "flattened", "padded"],
)
def test_the_evaluation_is_exact(prepared: PreparedSet, tmp_path: Path, keys: dict[str, Any], isolates: bool) -> None:
    """Total, per dataset and per example, against each example computed alone."""
    attention = NAME if isolates else "sdpa"
    resolved = make_resolved(tmp_path, sequence_len=64, micro_batch_size=2, **keys)
    trainer = make_trainer(prepared, resolved, tiny_model(attention=attention), isolates_documents=isolates)
    metrics = trainer.evaluate()

    split, model = prepared.validation, tiny_model(attention="sdpa")
    assert isinstance(split, Split)
    by_hand = [loss_by_hand(model, split, index) for index in range(len(split))]

    def mean(indices: list[int]) -> float:
        return sum(by_hand[index][0] for index in indices) / sum(by_hand[index][1] for index in indices)

    assert metrics["eval_loss"] == pytest.approx(mean(list(range(9))), rel=1e-5)
    assert metrics["eval_chat_loss"] == pytest.approx(mean([0, 3, 6]), rel=1e-5)
    assert metrics["eval_code_loss"] == pytest.approx(mean([1, 2, 4, 5, 7, 8]), rel=1e-5)
    lines = [json.loads(line) for line in (tmp_path / "eval" / "examples.jsonl").read_text().splitlines()]
    assert [line["example"] for line in lines] == list(range(9))
    assert [line["dataset"] for line in lines] == [NAMES[source] for source in split.source.tolist()]
    assert lines[1]["place"] == "data/code.jsonl:19"
    assert [line["supervised_tokens"] for line in lines] == [count for _, count in by_hand]
    assert [line["loss"] for line in lines] == pytest.approx([total / count for total, count in by_hand], rel=1e-4)


def test_evaluating_changes_neither_weights_nor_mode_nor_chance(prepared: PreparedSet, tmp_path: Path) -> None:
    trainer = make_trainer(prepared, make_resolved(tmp_path, sequence_len=64))
    trainer.model.train()
    weights = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    random_state = torch.get_rng_state()
    trainer.evaluate()
    assert trainer.model.training
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(old, new) for old, new in zip(weights, trainer.model.parameters(), strict=True))


def test_an_epoch_sees_each_sample_once(prepared: PreparedSet, tmp_path: Path) -> None:
    """Read off the batches the loop is given, not off the order."""
    resolved = make_resolved(tmp_path, micro_batch_size=2, gradient_accumulation_steps=3, save_strategy="no")
    trainer = make_trainer(prepared, resolved)
    seen: list[int] = []
    given = trainer.get_batch_samples

    def watched(iterator: Any, num_batches: int, device: Any) -> Any:
        batches, count = given(iterator, num_batches, device)
        seen.extend(index for batch in batches for index in batch["example_ids"].tolist())
        return batches, count

    trainer.get_batch_samples = watched
    trainer.train()
    assert sorted(seen) == list(range(17))
    assert seen != sorted(seen)


@pytest.mark.parametrize(
    ("keys", "isolates"),
    [
        ({"sample_packing": True, "gradient_accumulation_steps": 2}, True),
        ({"micro_batch_size": 3, "pad_to_multiple_of": 16}, True),
        ({"micro_batch_size": 3, "gradient_accumulation_steps": 2}, False),
    ],
    ids=["packed", "flattened", "padded"],
)
def test_each_dataset_s_training_loss_is_exact(tmp_path: Path, keys: dict[str, Any], isolates: bool) -> None:
    """Of each window between two logs, over micro-batches and steps, against each sample computed alone."""
    sources = [0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1] * 2
    prepared = write_prepared(tmp_path / "prepared", random_samples(24, seed=4), sources=sources, names=NAMES)
    still = {"optimizer": "sgd", "learning_rate": 1e-30, "save_strategy": "no", "logging_steps": 2, "num_epochs": 2.0}
    resolved = make_resolved(tmp_path, sequence_len=64, **still, **keys)
    attention = NAME if isolates else "sdpa"
    trainer = make_trainer(prepared, resolved, tiny_model(attention=attention), isolates_documents=isolates)
    trainer.train()

    model, order = tiny_model(attention="sdpa"), trainer.train_samples.order
    accumulation = resolved.gradient_accumulation_steps
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) > 1
    last = 0
    for entry in logged:
        steps = range(last, last := entry["step"])
        places = [divmod(step, order.steps_per_epoch(accumulation)) for step in steps]
        samples = np.concatenate([order.step_samples(*place, accumulation) for place in places]).tolist()
        for source, key in enumerate(("loss/chat", "loss/code")):
            by_hand = [loss_by_hand(model, prepared.train, index) for index in samples if sources[index] == source]
            assert (key in entry) == bool(by_hand)
            if by_hand:
                total, count = (sum(values) for values in zip(*by_hand, strict=True))
                assert entry[key] == pytest.approx(total / count, rel=1e-5)


def test_one_dataset_has_no_loss_of_its_own(prepared: PreparedSet, tmp_path: Path) -> None:
    trainer = make_trainer(prepared, make_resolved(tmp_path, max_steps=1, save_strategy="no"))
    trainer.train()
    assert not [key for entry in trainer.state.log_history for key in entry if key.startswith("loss/")]


def test_workers_give_the_same_batches(prepared: PreparedSet, tmp_path: Path) -> None:
    """Batches made in other processes are those made in this one, and each epoch has its own order."""
    found = []
    for workers in (0, 2):
        resolved = make_resolved(tmp_path / str(workers), micro_batch_size=4, dataloader_num_workers=workers)
        loader = make_trainer(prepared, resolved).get_train_dataloader()
        epochs = []
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            epochs.append([batch["example_ids"].tolist() for batch in loader])
        found.append(epochs)
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]


def test_only_trainable_parameters_move_and_all_of_them_do(prepared: PreparedSet, tmp_path: Path) -> None:
    model = tiny_model(attention=NAME)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mlp" in name)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    resolved = make_resolved(tmp_path, max_steps=2, save_strategy="no", warmup_steps=0)
    fit(make_trainer(prepared, resolved, model), resolved)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != ("mlp" in name), name


@pytest.mark.parametrize("keys", [{"bf16": True}, {"torch_compile": False, "tf32": True}])
def test_precision_and_memory_options_train(prepared: PreparedSet, tmp_path: Path, keys: dict[str, Any]) -> None:
    resolved = make_resolved(tmp_path, num_epochs=4.0, micro_batch_size=4, save_strategy="no", logging_steps=1, **keys)
    trainer = make_trainer(prepared, resolved)
    fit(trainer, resolved)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.5


def test_gradient_checkpointing_gives_the_same_losses(prepared: PreparedSet, tmp_path: Path) -> None:
    losses = []
    for checkpointing in (False, True):
        resolved = make_resolved(
            tmp_path / str(checkpointing),
            max_steps=3,
            save_strategy="no",
            logging_steps=1,
            gradient_checkpointing=checkpointing,
        )
        model = tiny_model(attention=NAME)
        install_levers(model, resolved.config, resolved)
        trainer = make_trainer(prepared, resolved, model)
        fit(trainer, resolved)
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert model.model.layers[0].gradient_checkpointing is checkpointing
    assert losses[0] == losses[1]


def test_the_best_model_is_loaded_at_the_end(prepared: PreparedSet, tmp_path: Path) -> None:
    """With a learning rate that spoils the model, the best is an early one, and it is kept beside the newest."""
    keys = {
        "learning_rate": 0.3,
        "num_epochs": 4.0,
        "micro_batch_size": 4,
        "lr_scheduler": "constant",
        "warmup_steps": 0,
    }
    resolved = make_resolved(tmp_path, load_best_model_at_end=True, save_total_limit=1, **keys)
    trainer = make_trainer(prepared, resolved)
    result = fit(trainer, resolved)
    losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    best = min(losses, key=losses.__getitem__)
    assert best != max(losses)
    assert result.best_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[best], rel=1e-6)
    assert {folder.name for folder in tmp_path.glob("checkpoint-*")} == {
        f"checkpoint-{best}",
        f"checkpoint-{max(losses)}",
    }


def test_early_stopping_ends_the_run(prepared: PreparedSet, tmp_path: Path) -> None:
    keys = {
        "learning_rate": 0.5,
        "num_epochs": 9.0,
        "micro_batch_size": 4,
        "lr_scheduler": "constant",
        "warmup_steps": 0,
    }
    resolved = make_resolved(tmp_path, early_stopping_patience=2, save_strategy="no", **keys)
    trainer = make_trainer(prepared, resolved)
    result = fit(trainer, resolved)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert result.stopped_early
    assert len(losses) < 9
    assert min(losses) == losses[-3], "the two after the best are worse"


def test_the_rate_falls_on_a_plateau(prepared: PreparedSet, tmp_path: Path) -> None:
    keys = {"lr_scheduler": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0, "factor": 0.5}}
    resolved = make_resolved(
        tmp_path, num_epochs=5.0, learning_rate=0.5, micro_batch_size=8, save_strategy="no", logging_steps=1, **keys
    )
    trainer = make_trainer(prepared, resolved)
    fit(trainer, resolved)
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates[0] == 0.5
    assert rates[-1] < 0.5
    assert math.log2(0.5 / rates[-1]).is_integer()


def test_only_better_models_are_saved(prepared: PreparedSet, tmp_path: Path) -> None:
    """And the step that the run ends after: `save_strategy: best`, with a rate that spoils the model after a while."""
    keys = {
        "learning_rate": 0.1,
        "num_epochs": 5.0,
        "micro_batch_size": 4,
        "lr_scheduler": "constant",
        "warmup_steps": 0,
    }
    resolved = make_resolved(tmp_path, save_strategy="best", eval_strategy="epoch", save_total_limit=0, **keys)
    trainer = make_trainer(prepared, resolved)
    fit(trainer, resolved)
    losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    better = {step for step, loss in losses.items() if loss <= min(other for at, other in losses.items() if at <= step)}
    saved = {int(folder.name.split("-")[1]) for folder in tmp_path.glob("checkpoint-*")}
    assert saved == better | {max(losses)} != set(losses)


def test_patience_is_remembered_through_a_resume(prepared: PreparedSet, tmp_path: Path) -> None:
    keys = {
        "learning_rate": 0.5,
        "num_epochs": 9.0,
        "micro_batch_size": 4,
        "lr_scheduler": "constant",
        "warmup_steps": 0,
    }
    resolved = make_resolved(tmp_path, early_stopping_patience=3, save_total_limit=0, **keys)
    trainer = make_trainer(prepared, resolved)
    whole = fit(trainer, resolved).steps
    steps_per_epoch = trainer.train_samples.order.steps_per_epoch(1)
    resumed = make_trainer(prepared, resolved)
    assert fit(resumed, resolved, tmp_path / f"checkpoint-{whole - steps_per_epoch}").steps == whole


def test_an_evaluation_before_the_first_step_when_asked(prepared: PreparedSet, tmp_path: Path) -> None:
    resolved = make_resolved(tmp_path, max_steps=1, eval_on_start=True, save_strategy="no")
    trainer = make_trainer(prepared, resolved)
    fit(trainer, resolved)
    assert [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry] == [0, 1]


def test_neftune_adds_noise_in_training_and_none_in_evaluation(prepared: PreparedSet, tmp_path: Path) -> None:
    found = {}
    for alpha in (None, 5.0):
        keys = {"neftune_noise_alpha": alpha, "max_steps": 1, "logging_steps": 1}
        resolved = make_resolved(tmp_path, eval_on_start=True, save_strategy="no", **keys)
        trainer = make_trainer(prepared, resolved, tiny_model())
        fit(trainer, resolved)
        logged = trainer.state.log_history
        found[alpha] = [next(entry[name] for entry in logged if name in entry) for name in ("eval_loss", "loss")]
    assert found[5.0][0] == found[None][0]
    assert found[5.0][1] != found[None][1]


def noise_of(tmp_path: Path, prepared: PreparedSet, **inputs: torch.Tensor) -> torch.Tensor:
    """What NEFTune adds to each token's embedding, [B, T, D]."""
    resolved = make_resolved(tmp_path, neftune_noise_alpha=5.0, save_strategy="no")
    trainer = make_trainer(prepared, resolved, tiny_model(hidden_size=64))
    (noise,) = (each for each in trainer.callback_handler.callbacks if isinstance(each, EmbeddingNoise))
    model, seen = trainer.model.train(), []
    noise.on_train_begin(trainer.args, trainer.state, trainer.control, model=model)
    hook = model.model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(**{**inputs, "input_ids": torch.full_like(inputs["input_ids"], 9)}, use_cache=False)
    hook.remove()
    noise.on_train_end(trainer.args, trainer.state, trainer.control)
    return (seen[0] - model.get_input_embeddings().weight[9]).detach()


def test_neftune_scales_the_noise_by_each_document_and_not_by_its_row(prepared: PreparedSet, tmp_path: Path) -> None:
    """alpha / sqrt(L d) with L of the document, in a pack of 400 and 25 tokens as in padded rows of 200 and 8."""
    lengths = (400, 25)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = noise_of(tmp_path, prepared, input_ids=positions, position_ids=positions)
    start = 0
    for length in lengths:
        document = packed[0, start : start + length]
        bound = 5.0 / (length * 64) ** 0.5
        assert bound * 0.98 < document.abs().max() <= bound * 1.001
        assert document.std() == pytest.approx(bound / 3**0.5, rel=0.05)
        start += length
    mask = torch.ones(2, 200, dtype=torch.long)
    mask[1, 8:] = 0
    padded = noise_of(tmp_path, prepared, input_ids=mask, attention_mask=mask)
    for row, length in enumerate((200, 8)):
        bound = 5.0 / (length * 64) ** 0.5
        assert bound * 0.95 < padded[row, :length].abs().max() <= bound * 1.001
