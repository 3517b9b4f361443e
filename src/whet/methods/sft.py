"""Supervised fine-tuning: next-token loss on the supervised tokens of each sample."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from whet.config.resolve import ResolvedRun
from whet.data.batch import flatten, pad
from whet.data.order import Order
from whet.data.store import Split
from whet.data.streaming import StreamSetup
from whet.methods.inputs import MethodInputs
from whet.training.loader import Collate, Samples
from whet.training.streamed import StreamedSamples
from whet.training.tracking import prepare_tracking

if TYPE_CHECKING:
    from whet.training.trainer import WhetTrainer


def build_trainer(inputs: MethodInputs) -> WhetTrainer:
    """A trainer that is ready to train and to evaluate.

    Raises:
        ConfigError: optimizer or scheduler arguments that do not fit, or a tracker that is not installed.
    """
    from whet.model.loss_plan import plan_loss
    from whet.training.arguments import training_arguments
    from whet.training.callbacks.choose import add_callbacks
    from whet.training.optimizers import build_optimizer
    from whet.training.schedules import build_scheduler, schedule_from
    from whet.training.trainer import WhetTrainer

    resolved, plan = inputs.resolved, inputs.plan
    assert inputs.validation is None or isinstance(inputs.validation, Split)
    prepare_tracking(resolved)
    schedule = schedule_from(resolved.config, plan.total_steps, plan.warmup_steps)
    args = training_arguments(resolved, plan)
    pad_token_id = inputs.tokenizer.pad_token_id or 0
    train = _training_samples(inputs, pad_token_id)
    trainer = WhetTrainer(
        inputs.model,
        args,
        train=train,
        evaluation=(
            evaluation_samples(inputs.validation, resolved, inputs.isolates_documents, pad_token_id)
            if inputs.validation is not None and len(inputs.validation)
            else None
        ),
        tokenizer=inputs.tokenizer,
        loss=plan_loss(resolved.config, resolved, inputs.model),
        make_optimizer=lambda model: build_optimizer(model, resolved.config, args),
        make_scheduler=lambda optimizer, steps: build_scheduler(optimizer, schedule),
    )
    add_callbacks(
        trainer,
        resolved,
        step_loss=trainer.step_loss,
        rows=trainer.places_of_step,
        beside=train.take if isinstance(train, StreamedSamples) else None,
        carried=(trainer.dataset_losses,),
    )
    return trainer


def _training_samples(inputs: MethodInputs, pad_token_id: int) -> Samples | StreamedSamples:
    if isinstance(inputs.train, StreamSetup):
        return streamed_samples(inputs.train, inputs.resolved, inputs.isolates_documents, pad_token_id)
    assert isinstance(inputs.train, Split)
    assert inputs.order is not None
    return training_samples(inputs.train, inputs.order, inputs.resolved, inputs.isolates_documents, pad_token_id)


def streamed_samples(
    setup: StreamSetup, resolved: ResolvedRun, isolates_documents: bool, pad_token_id: int
) -> StreamedSamples:
    """A stream as the trainer wants it."""
    row_length = resolved.sequence_len if resolved.pad_to_sequence_len else None
    return StreamedSamples(
        setup,
        _collate(resolved, isolates_documents, pad_token_id, row_length, resolved.micro_batch_size),
        micro_batch_size=resolved.micro_batch_size,
        accumulation=resolved.gradient_accumulation_steps,
        rank=resolved.hardware.rank,
        world_size=resolved.world_size,
        where=resolved.config.where("streaming"),
    )


def training_samples(
    split: Split, order: Order, resolved: ResolvedRun, isolates_documents: bool, pad_token_id: int
) -> Samples:
    """The training split as the trainer wants it."""
    row_length = resolved.sequence_len if resolved.pad_to_sequence_len else None
    collate = _collate(resolved, isolates_documents, pad_token_id, row_length, order.micro_batch_size)
    return Samples(split, order, collate)


def evaluation_samples(split: Split, resolved: ResolvedRun, isolates_documents: bool, pad_token_id: int) -> Samples:
    """An evaluation split: in its own order, packed where evaluation is."""
    order = Order(
        split.lengths,
        resolved.eval_sequence_len,
        packed=resolved.eval_sample_packing and isolates_documents,
        micro_batch_size=resolved.eval_batch_size,
        seed=resolved.seed,
        shuffle=False,
    )
    collate = _collate(resolved, isolates_documents, pad_token_id, None, order.micro_batch_size)
    return Samples(split, order, collate)


def _collate(
    resolved: ResolvedRun, isolates_documents: bool, pad_token_id: int, row_length: int | None, num_rows: int
) -> Collate:
    """Flattened rows where the model keeps documents apart: there, padding is only what the config asks for."""
    multiple = resolved.pad_to_multiple_of
    if isolates_documents:
        length = row_length * num_rows if row_length else None
        return partial(flatten, pad_token_id=pad_token_id, pad_to=length, pad_to_multiple_of=multiple)
    return partial(pad, pad_token_id=pad_token_id, pad_to=row_length, pad_to_multiple_of=multiple)
