"""The run in numbers, where the data is prepared already."""

from __future__ import annotations

from collections.abc import Iterator

from whet.checks.base import Subject
from whet.config.resolve import ResolvedRun
from whet.core.errors import Problem
from whet.data.prepare import find_prepared
from whet.methods.inputs import training_order
from whet.training.steps import StepPlan, plan_steps, plan_stream


def check(subject: Subject) -> Iterator[str | Problem]:
    """Steps, tokens and when it saves and evaluates; counted from the prepared set, so only if there is one."""
    resolved = subject.resolved
    if subject.config.data.streaming:
        plan = plan_stream(resolved, has_validation=bool(subject.config.data.test_datasets))
        yield f"{plan.total_steps:,} steps of {plan.rows_per_step:,} {_unit(resolved)}, read as the model trains"
        yield _when(plan)
        return
    prepared = find_prepared(subject.config, resolved, subject.tokenizer)
    if prepared is None:
        yield f"steps are known after 'whet preprocess {subject.config.file}'; training prepares the data itself, too"
        return
    has_validation = prepared.validation is not None
    order = training_order(resolved, prepared.train)
    plan = plan_steps(resolved, order, prepared.train.supervised, has_validation=has_validation)
    yield (
        f"{plan.total_steps:,} steps of {plan.rows_per_step:,} {_unit(resolved)}, {plan.steps_per_epoch:,} an epoch; "
        f"{plan.tokens:,} tokens, {plan.supervised_tokens:,} of them trained; {plan.warmup_steps:,} steps of warm-up"
    )
    if len(plan.shares) > 1:
        yield from map(str, plan.shares)
    yield _when(plan)


def _unit(resolved: ResolvedRun) -> str:
    return "packs" if resolved.sample_packing else "samples"


def _when(plan: StepPlan) -> str:
    return f"saves {_times(plan.save_steps)}, evaluates {_times(plan.eval_steps)}"


def _times(steps: list[int]) -> str:
    if not steps:
        return "never"
    if len(steps) == 1:
        return f"once, at step {steps[0]:,}"
    return f"{len(steps)} times, first at step {steps[0]:,}"
