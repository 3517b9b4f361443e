"""From a resolved run to transformers' TrainingArguments, one line an argument."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from whet.config import Config
from whet.config.names import FOLLOW_EVALUATIONS
from whet.config.resolve import ResolvedRun
from whet.core.secrets import redact
from whet.training.schedules import SCHEDULERS
from whet.training.steps import StepPlan

if TYPE_CHECKING:
    from transformers import TrainingArguments

_MIXED_PRECISION = {"bfloat16": "bf16", "float16": "fp16"}


def training_arguments(resolved: ResolvedRun, plan: StepPlan) -> TrainingArguments:
    """The arguments of supervised fine-tuning."""
    from transformers import TrainingArguments

    args = TrainingArguments(**argument_values(resolved, plan))
    return one_device_per_process(args)


def argument_values(resolved: ResolvedRun, plan: StepPlan) -> dict[str, Any]:
    """The arguments by name; a method whose trainer has arguments of its own adds them to these."""
    config = resolved.config
    loop, optimizer, data, distributed = config.loop, config.optimizer, config.data, config.distributed
    # A stream is read by a thread, beside which no process may be forked.
    num_workers = None if data.streaming else data.dataloader_num_workers
    values: dict[str, Any] = {
        "output_dir": resolved.output_dir,
        # How much of what
        "per_device_train_batch_size": resolved.micro_batch_size,
        "per_device_eval_batch_size": resolved.eval_batch_size,
        "gradient_accumulation_steps": resolved.gradient_accumulation_steps,
        "num_train_epochs": loop.num_epochs,
        "max_steps": plan.total_steps,
        "seed": resolved.seed,
        "average_tokens_across_devices": True,
        # The optimizer
        "optim": _stock_optimizer(resolved.optimizer),
        "learning_rate": optimizer.learning_rate,
        "weight_decay": optimizer.weight_decay,
        "adam_beta1": optimizer.adam_beta1,
        "adam_beta2": optimizer.adam_beta2,
        "adam_epsilon": optimizer.adam_epsilon,
        "max_grad_norm": resolved.max_grad_norm,
        "lr_scheduler_type": _stock_scheduler(resolved.lr_scheduler),
        "warmup_steps": plan.warmup_steps,
        # Logging, evaluating, saving
        "logging_strategy": "steps",
        "logging_steps": plan.logging.steps,
        "logging_nan_inf_filter": False,  # a loss that is not finite is shown, and handled by our guard
        "eval_strategy": plan.evaluating.strategy,
        "eval_steps": plan.evaluating.steps,
        "eval_on_start": bool(loop.eval_on_start) and plan.evaluating.strategy != "no",
        "save_strategy": plan.saving.strategy,
        "save_steps": plan.saving.steps,
        "save_total_limit": None,  # whet.training.checkpoint removes old ones, after the new one is complete
        "save_only_model": loop.save_only_model,
        "load_best_model_at_end": loop.load_best_model_at_end,
        "metric_for_best_model": metric_for_best_model(resolved),
        "greater_is_better": loop.greater_is_better,
        "report_to": list(resolved.report_to),
        "run_name": redact(config.tracking.wandb_name or config.tracking.mlflow_run_name or "")
        or None,  # trackers show it
        "disable_tqdm": True,  # our own progress display
        # Precision and memory
        "bf16": _MIXED_PRECISION.get(resolved.autocast_dtype or "") == "bf16",
        "fp16": _MIXED_PRECISION.get(resolved.autocast_dtype or "") == "fp16",
        "tf32": resolved.tf32 if resolved.device == "cuda" else None,
        "activation_checkpointing": _is_checkpointed_by_trl(resolved),
        "activation_checkpointing_kwargs": _checkpointing_kwargs(resolved),
        "torch_empty_cache_steps": _empty_cache_steps(config),
        # Devices
        "use_cpu": resolved.device == "cpu",
        "ddp_backend": "gloo" if resolved.device == "cpu" and resolved.world_size > 1 else None,
        "ddp_timeout": distributed.ddp_timeout,
        "ddp_bucket_cap_mb": distributed.ddp_bucket_cap_mb,
        "ddp_broadcast_buffers": distributed.ddp_broadcast_buffers,
        "ddp_find_unused_parameters": bool(distributed.ddp_find_unused_parameters),
        # Loading
        "dataloader_num_workers": num_workers,
        "dataloader_prefetch_factor": data.dataloader_prefetch_factor if num_workers else None,
        "dataloader_pin_memory": data.dataloader_pin_memory,
        "remove_unused_columns": False,
        # The hub is given files by whet.artefacts.hub.
    }
    return _as_this_version_names_them({name: value for name, value in values.items() if value is not None})


def metric_for_best_model(resolved: ResolvedRun) -> str | None:
    """The metric that decides which model is best, where anything asks for one."""
    loop = resolved.config.loop
    is_needed = (
        loop.load_best_model_at_end
        or loop.early_stopping_patience is not None
        or loop.save_strategy == "best"
        or resolved.lr_scheduler in FOLLOW_EVALUATIONS
    )
    return loop.metric_for_best_model or ("eval_loss" if is_needed else None)


def one_device_per_process(args: TrainingArguments) -> TrainingArguments:
    """Where several GPUs are visible to one process, use the first: transformers would copy the model to each and split
    micro-batches between them (nn.DataParallel), which no part of this trainer is made for. torchrun uses them all."""
    if args.n_gpu > 1:
        args._n_gpu = 1
    return args


def _stock_optimizer(name: str) -> str:
    """A name that transformers accepts, and acts on for LOMO; the optimizer is built by `whet.training.optimizers`."""
    from transformers.training_args import OptimizerNames

    return name if name in {each.value for each in OptimizerNames} else "adamw_torch"


def _stock_scheduler(name: str) -> str:
    """A name that transformers accepts; the schedule itself is always built by `whet.training.schedules`."""
    assert name in SCHEDULERS
    return name if name in FOLLOW_EVALUATIONS else "constant"


def _empty_cache_steps(config: Config) -> int | None:
    older = config.memory.gc_steps
    return older if older is not None and older > 0 else config.memory.torch_empty_cache_steps


def _is_checkpointed_by_trl(resolved: ResolvedRun) -> bool:
    """`whet.model.memory.checkpointing` has checkpointed the layers; transformers would do it again, to all of them.

    TRL's trainers switch checkpointing off and on while they train, and know by this that it is on.
    """
    return resolved.gradient_checkpointing and resolved.method != "sft"


def _checkpointing_kwargs(resolved: ResolvedRun) -> dict[str, Any] | None:
    if not _is_checkpointed_by_trl(resolved):
        return None
    return dict(resolved.gradient_checkpointing_kwargs)


def _as_this_version_names_them(values: Mapping[str, Any]) -> dict[str, Any]:
    """Before 5.20 `activation_checkpointing*` were called `gradient_checkpointing*`."""
    from transformers import TrainingArguments

    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    older = {name: name.replace("activation_", "gradient_") for name in values if name not in known}
    return {older.get(name, name): value for name, value in values.items()}
