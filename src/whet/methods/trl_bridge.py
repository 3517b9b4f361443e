"""TRL's trainers on our data, optimizers and figures. The only file that imports trl.

Our data stage has tokenised the rows (chat template, one render, spans), so TRL's own preparation is skipped; it is
given the columns that its preparation would have made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from trl import DPOConfig, DPOTrainer

from whet.data.order import Order
from whet.data.store import PreferenceSplit
from whet.methods.pairs import NUM_TOKENS, PAIRS, Figures, PairSamples, count_of
from whet.model.patches import without_gathering
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
    """What TRL sums up of the training steps that are not logged yet (TRL 1.16), by micro-batch and rank.

    With every micro-batch TRL takes the mean of each figure over the ranks, as if all had as many pairs. Here each rank
    keeps its own until they are logged, and the mean is over pairs.
    """

    carried_as = "trl"

    def __init__(self, trainer: PreferenceTrainer) -> None:
        self._trainer = trainer
        self._num_pairs: list[int] = []

    @contextmanager
    def of_micro_batch(self, num_pairs: int) -> Iterator[None]:
        """Within it TRL computes a micro-batch of so many pairs, and sums up those of this rank alone."""
        with without_gathering(self._trainer.accelerator):
            yield
        self._num_pairs.append(num_pairs)

    def settle(self) -> None:
        """Put the means over all ranks in their place, to be logged next. All ranks take part."""
        metrics = self._trainer._metrics["train" if self._trainer.model.training else "eval"]
        if self._num_pairs and self._trainer.model.training:
            means = self._kept().means(self._trainer.over_ranks)
            metrics.update({name: [value] for name, value in means.items()} | {NUM_TOKENS: []})
            self._num_pairs.clear()
        if NUM_TOKENS in metrics:
            metrics[NUM_TOKENS] = [self._trainer.throughput.carried()[0]]

    def carried(self) -> dict[str, Any]:
        return self._kept().as_json()

    def carry_on(self, value: Any) -> None:
        figures = Figures.from_json(value)
        self._trainer._metrics["train"].update({name: list(values) for name, values in figures.values.items()})
        self._num_pairs = list(figures.num_pairs)

    def shared_out(self, of_ranks: Sequence[Any], num_ranks: int) -> list[Any]:
        """What is logged next is the mean over all."""
        joined = Figures.joined([Figures.from_json(value) for value in of_ranks])
        return [figures.as_json() for figures in joined.shared_out(num_ranks)]

    def _kept(self) -> Figures:
        values = {name: list(each) for name, each in self._trainer._metrics["train"].items() if name != NUM_TOKENS}
        return Figures(values, self._num_pairs)


class PreferenceTrainer(ResumingTrainer, DPOTrainer):
    """`trl.DPOTrainer` on rows that are tokens already, with our order, optimizers, schedules and throughput figures.

    The pairs of an optimiser step are `whet.data.order.Order`'s, each once an epoch, at any number of ranks. A step's
    loss is the mean over its pairs, also in the last one of an epoch, where ranks and micro-batches may have fewer.
    """

    # The loss returned by `compute_loss` is normalised over the whole step. Read by transformers from 5.18 on.
    loss_is_scaled_for_ga = True

    # What the base class makes, for the type checker.
    optimizer: torch.optim.Optimizer | None
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None

    def __init__(
        self, *, order: Order, make_optimizer: MakeOptimizer, make_scheduler: MakeScheduler, **arguments: Any
    ) -> None:
        self.order, self.make_optimizer, self.make_scheduler = order, make_optimizer, make_scheduler
        self.throughput, self.figures = Throughput(), TrlFigures(self)
        super().__init__(callbacks=[self.throughput], **arguments)
        self.model_accepts_loss_kwargs = True  # what `loss_is_scaled_for_ga` says, before 5.18

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """Nothing is left to do; TRL would render and tokenise text here."""
        return dataset

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """The micro-batches of an optimiser step and the number of pairs in it, over all ranks."""
        self.throughput.begin_step()
        batches = list(islice(epoch_iterator, num_batches))
        self.throughput.end_fetch()
        counts = self.over_ranks(count_of(batches, ("attention_mask", "completion_mask")))
        self.throughput.add(counts[1:])
        return batches, counts[0].to(device)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """This micro-batch's share of the step's loss; of an evaluation's, its mean.

        Ranks average their gradients, so each rank's share is multiplied by their number.
        """
        if PAIRS not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        assert num_items_in_batch is not None
        num_pairs = inputs[PAIRS].numel()
        with self.figures.of_micro_batch(num_pairs):
            loss = super().compute_loss(model, {name: inputs[name] for name in inputs if name != PAIRS})
        return loss * (self.args.world_size * num_pairs / torch.as_tensor(num_items_in_batch))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As TRL's, whose loader draws a random number; here evaluating changes nothing, whenever it is made."""
        with torch.random.fork_rng(devices=[]):
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This rank's micro-batches."""
        self._loader = PairSamples(self.train_dataset, self.order, self.data_collator).loader(self.args)
        return self._loader

    def over_ranks(self, sums: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all ranks."""
        if self.args.world_size == 1:
            return sums
        total: torch.Tensor = self.accelerator.reduce(sums.to(self.args.device), reduction="sum")
        return total

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
            self.model.train()  # TRL tells by it whose figures these are; a run that was over has not trained
        self.figures.settle()
        super().log(logs, start_time)


def dpo_trainer(
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    train: PreferenceSplit,
    validation: PreferenceSplit | None,
    order: Order,
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
        order: of the training pairs.
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
        order=order,
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
