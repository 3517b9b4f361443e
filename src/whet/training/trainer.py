"""transformers.Trainer, with our order of samples, our loss and our evaluation; the loop itself is theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainingArguments,
)

from whet.data.batch import Batch
from whet.model.loss import supervised_logits_loss
from whet.model.loss_terms import EVALUATION, LossPlan
from whet.training.callbacks.progress import shown
from whet.training.dataset_losses import DatasetLosses
from whet.training.evaluation import evaluate_examples, evaluation_metrics, write_examples
from whet.training.loader import Samples, TrainingSamples
from whet.training.optimizers.averages import use_averages
from whet.training.optimizers.each_parameter import in_backward
from whet.training.resuming import ResumingTrainer
from whet.training.throughput import Throughput

MakeOptimizer = Callable[[torch.nn.Module], torch.optim.Optimizer]
MakeScheduler = Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler]


class WhetTrainer(ResumingTrainer):
    """Supervised fine-tuning.

    What differs from its base:

    * the samples of an optimiser step are `whet.data.order.Order`'s, or a stream's; each rank loads its own
      micro-batches and nothing is sharded, padded to even or repeated;
    * the loss is the sum over supervised tokens, divided once by their number in the whole optimiser step (all
      micro-batches of all ranks), so that it does not depend on how the step is cut into pieces;
    * an evaluation is exact per example and per dataset, packed or not.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        train, evaluation: the samples; without ``evaluation`` nothing is evaluated.
        tokenizer: saved beside every checkpoint.
        make_optimizer: builds the optimizer of a model's trainable parameters.
        make_scheduler: builds its learning rate schedule for a number of steps.
        callbacks: run after transformers' own.
        loss: what is summed over the supervised tokens in training, and who computes it.
    """

    # The loss returned by `compute_loss` is normalised over the whole step. Read by transformers from 5.18 on.
    loss_is_scaled_for_ga = True

    # What the base class makes, for the type checker.
    control: TrainerControl
    optimizer: torch.optim.Optimizer | None
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None

    def __init__(
        self,
        model: torch.nn.Module,
        args: TrainingArguments,
        *,
        train: TrainingSamples,
        evaluation: Samples | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        make_optimizer: MakeOptimizer,
        make_scheduler: MakeScheduler,
        callbacks: Sequence[TrainerCallback] = (),
        loss: LossPlan = EVALUATION,
    ) -> None:
        self.train_samples, self.eval_samples, self.loss_plan = train, evaluation, loss
        self.make_optimizer, self.make_scheduler = make_optimizer, make_scheduler
        self.throughput = Throughput(tokens_until=lambda step: train.tokens_until(step, self.args))
        self.dataset_losses = DatasetLosses(train.split)
        self.step_losses: list[tuple[torch.Tensor, torch.Tensor]] = []
        super().__init__(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=tokenizer,
            callbacks=[self.throughput, *callbacks],
        )
        # Before 5.18 this says that the loss is already normalised over the step; transformers divides it again if not.
        self.model_accepts_loss_kwargs = True
        self._num_parameters = sum(parameter.numel() for parameter in model.parameters())

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This rank's micro-batches; not prepared by accelerate, which would shard them again."""
        self._loader = self.train_samples.loader(self.args, self.args.gradient_accumulation_steps)
        return self._loader

    def train(self, resume_from_checkpoint: str | None = None, **options: Any) -> Any:
        """As the base class, with what the samples need to be trained on."""
        with self.train_samples.opened(Path(resume_from_checkpoint) if resume_from_checkpoint else None):
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **options)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor | int]:
        """The micro-batches of an optimiser step and the number of targets in it, over all ranks."""
        self.throughput.begin_step()
        batches = list(islice(epoch_iterator, num_batches))
        self.throughput.end_fetch()
        for batch in batches:
            self.dataset_losses.mark(batch)
        num_tokens = sum(map(self.train_samples.num_tokens, batches))
        counts = torch.tensor([num_tokens, sum(batch["num_supervised"] for batch in batches)])
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts.to(device), reduction="sum")
        self.throughput.add(counts)
        self.step_losses.clear()
        return batches, counts[1].to(device)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """This micro-batch's share of the step's loss, in nats per supervised token.

        Data-parallel ranks average their gradients, so each rank's share is multiplied by their number.
        """
        assert num_items_in_batch is not None
        assert not return_outputs, "evaluation does not come through here"
        parts = supervised_logits_loss(model, inputs, self.loss_plan)
        self.dataset_losses.add(inputs, parts)
        self.step_losses.append((parts.total.detach(), inputs["example_ids"]))
        if (optimizer := in_backward(self.optimizer)) is not None:
            optimizer.before_backward(parts.total.detach())
        share: torch.Tensor = self.args.world_size / torch.as_tensor(num_items_in_batch).clamp(min=1)
        return parts.total * share

    def evaluate(
        self, eval_dataset: Samples | None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean loss per supervised token: over everything, and over each dataset where there are several.

        The loss of every example goes to ``<output_dir>/eval/examples-step-N.jsonl``; outside training, to
        ``examples.jsonl`` there.
        """
        samples = eval_dataset if eval_dataset is not None else self.eval_samples
        assert samples is not None, "there is nothing to evaluate on"
        use_averages(self.optimizer)
        batches, model = self._batches_to_evaluate(samples), self._model_for_evaluation()
        losses = evaluate_examples(model, batches, self._prepare_inputs, self.accelerator, len(samples))
        self.raise_if_cut()
        metrics = evaluation_metrics(losses, samples.split, metric_key_prefix)
        if self.is_world_process_zero():
            step = self.state.global_step if self.is_in_train else None
            write_examples(losses, samples.split, self.args.output_dir, metric_key_prefix, step)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _batches_to_evaluate(self, samples: Samples) -> Iterator[Batch]:
        """Until the evaluation is cut; the person at the terminal is told how far it is."""
        callbacks = self.callback_handler.callbacks if self.is_world_process_zero() else ()
        batches = _until(self.is_cut, samples.loader(self.args))
        return shown(batches, callbacks, len(samples), self.args.world_size)

    def step_loss(self) -> torch.Tensor | None:
        """The current step's summed loss on this rank, for those who only ask whether it is finite."""
        return torch.stack([loss for loss, _ in self.step_losses]).sum() if self.step_losses else None

    def places_of_step(self, step: int) -> list[str]:
        """``file:row`` of the samples in optimiser step ``step`` (from 1); where losses tell, of the bad ones only."""
        bad = [ids for loss, ids in self.step_losses if not bool(torch.isfinite(loss))]
        if bad and self.args.world_size == 1:
            return [self.train_samples.place(index) for index in torch.cat(bad).tolist()]
        return self.train_samples.places_of_step(step, self.args)

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
        """Add the figures of throughput and of datasets to a training step's logs, so that every tracker gets them."""
        if "loss" in logs:
            logs.update(self.dataset_losses.figures(self.args.device, self._over_ranks))
            logs.update(self.throughput.figures(self.args.device))
        elif "train_runtime" in logs:
            logs.update(self.throughput.whole(logs) | dict(self.train_samples.summary()))
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Batch) -> int:
        """6 operations per parameter and token (Kaplan et al., 2020), without counting parameters every time."""
        num_tokens: int = inputs["input_ids"].numel()
        return 6 * num_tokens * self._num_parameters

    def _over_ranks(self, sums: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = self.accelerator.reduce(sums, reduction="sum") if self.args.world_size > 1 else sums
        return total

    def _model_for_evaluation(self) -> torch.nn.Module:
        """The model as it computes in training, autocast included, but each rank at its own pace."""
        if not self.is_in_train and not self.accelerator._models:
            self.accelerator.prepare_model(self.model, evaluation_mode=True)  # adds autocast to the model it is given
        model: torch.nn.Module = self.model
        return model


def _until(is_over: Callable[[], bool], batches: Iterable[Batch]) -> Iterator[Batch]:
    for batch in batches:
        if is_over():
            return
        yield batch
