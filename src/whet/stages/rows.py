"""The rows: prepared or streamed, in which order they are trained on, and for how many steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whet.config.resolve import ResolvedRun
from whet.core.log import say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer

    from whet.data.order import Order
    from whet.data.store import PreparedSet
    from whet.data.streaming import StreamedSet
    from whet.record import RunRecord
    from whet.training.steps import StepPlan


def prepare_data(resolved: ResolvedRun, tokenizer: PreTrainedTokenizerBase, *, refresh: bool = False) -> PreparedSet:
    """The prepared set, made now or found."""
    from whet.data.prepare import prepare

    return prepare(resolved.config, resolved, tokenizer, refresh=refresh)


def training_data(resolved: ResolvedRun, tokenizer: PreTrainedTokenizerBase) -> PreparedSet | StreamedSet:
    """What to train and to evaluate on: prepared, or to be read as the model trains."""
    if not resolved.config.data.streaming:
        return prepare_data(resolved, tokenizer)
    from whet.data.streaming import open_streamed

    return open_streamed(resolved.config, resolved, tokenizer)


def plan_run(resolved: ResolvedRun, prepared: PreparedSet | StreamedSet) -> tuple[Order | None, StepPlan]:
    """The order of the training samples, and the run counted from it; a stream has no order, and max_steps."""
    from whet.data.streaming import StreamedSet
    from whet.methods.inputs import training_order
    from whet.training.steps import plan_steps, plan_stream

    if isinstance(prepared, StreamedSet):
        return None, plan_stream(resolved, has_validation=prepared.validation is not None)
    order = training_order(resolved, prepared.train)
    has_validation = prepared.validation is not None
    return order, plan_steps(resolved, order, prepared.train.supervised, has_validation=has_validation)


def announce(resolved: ResolvedRun, prepared: PreparedSet | StreamedSet, plan: StepPlan) -> None:
    """What was chosen, on what data and for how many steps: said before the first one."""
    from whet.data.streaming import StreamedSet

    validation = prepared.validation
    for key, choice in resolved.choices.items():
        say(f"{key}: {choice}")
    held_out = f", {len(validation):,} for evaluation" if validation is not None else ""
    if isinstance(prepared, StreamedSet):
        for line in prepared.train.described():
            say(f"data: {line}")
        samples = f"read as it trains, shuffled and packed {prepared.train.window:,} samples at a time"
        say(f"data: {samples if resolved.sample_packing else samples.replace(' and packed', '')}{held_out}")
    else:
        say(f"data: {len(prepared.train):,} samples for training{held_out} ({prepared.path})")
    if len(plan.shares) > 1:
        for share in plan.shares:
            say(f"mix:  {share}")
    unit = "pack" if resolved.sample_packing else "sample"
    steps = f"plan: {_count(plan.total_steps, 'step')} of {_count(plan.rows_per_step, unit)}"
    warmup = (
        f"learning rate {resolved.config.optimizer.learning_rate:g} "
        f"after {_count(plan.warmup_steps, 'step')} of warm-up"
    )
    if plan.tokens is None:
        say(f"{steps}; how many tokens, and how much of the datasets, a stream cannot say beforehand")
        say(f"      {warmup}")
        return
    epochs = "1 epoch" if plan.num_epochs == 1 else f"{plan.num_epochs:.3g} epochs"
    say(f"{steps}, {epochs} of {_count(plan.steps_per_epoch, 'step')}")
    say(f"      {plan.tokens:,} tokens, {plan.supervised_tokens:,} supervised; {warmup}")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def tell_stream(resolved: ResolvedRun, trainer: Trainer, record: RunRecord) -> None:
    """What was read of each dataset of a stream, said and recorded."""
    from whet.training.streamed import StreamedSamples

    samples = getattr(trainer, "train_samples", None)
    if not isinstance(samples, StreamedSamples):
        return
    reports = samples.report()
    record.note("stream", reports)
    if resolved.hardware.rank == 0:
        for report in reports:
            say(f"read: {report}")
