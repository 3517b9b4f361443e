"""TRL's trainers on our data, optimizers and figures. The only file that imports trl.

Our data stage has tokenised the rows (chat template, one render, spans), so TRL's own preparation is skipped; it is
given the columns that its preparation would have made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from whet.data.store import PreferenceSplit
from whet.training.arguments import one_device_per_process
from whet.training.carried import Carried
from whet.training.optimizers.averages import use_averages
from whet.training.resuming import ResumingTrainer
from whet.training.throughput import Throughput
from whet.training.trainer import MakeOptimizer, MakeScheduler

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
"""What `DPOTrainer` makes of a row before it trains on it (TRL 1.16)."""


class TrlFigures(Carried):
    """What TRL sums up of the steps that are not logged yet, and the tokens of all steps (TRL 1.16)."""

    carried_as = "trl"

    def __init__(self, trainer: DPOTrainer) -> None:
        self._trainer = trainer

    def carried(self) -> dict[str, Any]:
        figures = {name: list(values) for name, values in self._trainer._metrics["train"].items()}
        return {"figures": figures, "tokens": self._trainer._total_train_tokens}

    def carry_on(self, value: Any) -> None:
        self._trainer._total_train_tokens = value["tokens"]
        self._trainer._metrics["train"].update(value["figures"])


class PreferenceTrainer(ResumingTrainer, DPOTrainer):
    """`trl.DPOTrainer` on rows that are tokens already, with our optimizers, schedules and throughput figures."""

    # What the base class makes, for the type checker.
    optimizer: torch.optim.Optimizer | None
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None

    def __init__(self, *, make_optimizer: MakeOptimizer, make_scheduler: MakeScheduler, **arguments: Any) -> None:
        self.make_optimizer, self.make_scheduler = make_optimizer, make_scheduler
        self.throughput = Throughput()
        super().__init__(callbacks=[self.throughput], **arguments)

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """Nothing is left to do; TRL would render and tokenise text here."""
        return dataset

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        self.throughput.begin_step()
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        tokens = [torch.stack([batch["attention_mask"].sum(), batch["completion_mask"].sum()]) for batch in batches]
        self.throughput.add(self.accelerator.reduce(torch.stack(tokens).sum(dim=0).to(device), reduction="sum"))
        return batches, num_items

    def create_optimizer(self, model: PreTrainedModel | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = self.make_optimizer(self.model if model is None else model)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if self.lr_scheduler is None:
            self.lr_scheduler = self.make_scheduler(optimizer or self.create_optimizer(), num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the base class; what is saved are the weights for use."""
        use_averages(self.optimizer)
        super().save_model(output_dir, _internal_call)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self.throughput.figures(self.args.device))
        elif "train_runtime" in logs:
            logs.update(self.throughput.whole(logs))
        super().log(logs, start_time)


def dpo_trainer(
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    train: PreferenceSplit,
    validation: PreferenceSplit | None,
    arguments: Mapping[str, Any],
    *,
    beta: float,
    losses: Sequence[str],
    loss_weights: Sequence[float] | None,
    label_smoothing: float,
    precompute_reference: bool,
    make_optimizer: MakeOptimizer,
    make_scheduler: MakeScheduler,
) -> PreferenceTrainer:
    """A trainer for direct preference optimisation (Rafailov et al., 2023, arXiv:2305.18290).

    Args:
        model: a causal language model, or a PEFT model around one, whose adapter is switched off for the reference.
        reference: what the model is held to; None for a PEFT model, or when ``precompute_reference``.
        arguments: of TrainingArguments, by name.
        beta: how strongly the reference is held to.
        losses: names of TRL's losses, added up with ``loss_weights``.

    Raises:
        ValueError: TRL refuses a combination.
    """
    args = DPOConfig(
        **arguments,
        beta=beta,
        loss_type=list(losses),
        loss_weights=list(loss_weights) if loss_weights is not None else None,
        label_smoothing=label_smoothing,
        precompute_ref_log_probs=precompute_reference,
        max_length=None,  # our data stage has seen to lengths
    )
    return PreferenceTrainer(
        model=model,
        ref_model=reference,
        args=one_device_per_process(args),
        train_dataset=as_dataset(train),
        eval_dataset=as_dataset(validation) if validation is not None and len(validation) else None,
        processing_class=tokenizer,
        make_optimizer=make_optimizer,
        make_scheduler=make_scheduler,
    )


def as_dataset(split: PreferenceSplit) -> Dataset:
    """The columns `COLUMNS`, int32 lists, one row a pair."""
    pairs = [split.pair(index) for index in range(len(split))]
    return Dataset.from_dict(dict(zip(COLUMNS, map(list, zip(*pairs, strict=True)), strict=True)))


def drop_reference_adapter(model: PreTrainedModel) -> None:
    """Take away the copy that TRL makes of a PEFT model's adapter, to serve as the reference.

    Where the adapter starts as nothing, the model without an adapter is the same reference: without the copy there is
    half the adapter to hold, and none of it is saved beside the result.
    """
    if "ref" in getattr(model, "peft_config", {}):
        model.delete_adapter("ref")
