"""What the keys say about one another: one named function for each rule, which looks and never writes.

A rule is ``(Config) -> Problem | None``. RULES stop a config, REMARKS only tell. Rules about the names of things and
about rows of datasets are in rules_of_names.py, those about several devices and the machine in rules_of_machine.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from whet.config.config import Config
from whet.config.rules_of_machine import MACHINE_RULES
from whet.config.rules_of_names import NAME_RULES, row_problems, row_remarks
from whet.core.errors import Problem

Rule = Callable[[Config], Problem | None]


def broken_rules(config: Config) -> list[Problem]:
    """Every contradiction in a config."""
    found = [rule(config) for rule in (*RULES, *NAME_RULES, *MACHINE_RULES)]
    return [problem for problem in found if problem is not None] + row_problems(config)


def remarks(config: Config) -> list[Problem]:
    """What the user would want to know and that contradicts nothing."""
    found = [rule(config) for rule in REMARKS]
    return [problem for problem in found if problem is not None] + row_remarks(config)


def _at(config: Config, key: str, found: str, fix: str) -> Problem:
    return Problem(config.where(key), found, fix, key)


def _clash(config: Config, first: str, second: str, fix: str) -> Problem | None:
    """Both keys are written although one rules the other out."""
    if not (config.is_set(first) and config.is_set(second)):
        return None
    return _at(config, second, f"{second} is written, and so is {first} ({config.where(first)})", fix)


def _first_set(config: Config, keys: Iterable[str]) -> str | None:
    return next((key for key in keys if config.is_set(key)), None)


# Data


def there_is_something_to_train_on(config: Config) -> Problem | None:
    if config.data.datasets:
        return None
    return _at(config, "datasets", "datasets is missing", "add `datasets:` with a row `- path: ...` and `type: ...`")


def evaluation_rows_come_from_one_place(config: Config) -> Problem | None:
    if not (config.data.val_set_size and config.data.test_datasets):
        return None
    return _at(config, "val_set_size", "val_set_size and test_datasets are both written", "keep one of them")


def val_set_size_is_a_share_or_a_count(config: Config) -> Problem | None:
    size = config.data.val_set_size
    if size < 1 or (size >= 2 and size.is_integer()):
        return None
    return _at(
        config, "val_set_size", f"val_set_size is {size:g}", "write a share below 1, or a whole number of rows from 2"
    )


def min_sample_fits_the_sequence(config: Config) -> Problem | None:
    data = config.data
    if data.min_sample_len <= data.sequence_len:
        return None
    return _at(
        config,
        "min_sample_len",
        f"min_sample_len {data.min_sample_len} is above sequence_len {data.sequence_len}: no sample is left",
        "lower it",
    )


def padding_fits_the_sequence(config: Config) -> Problem | None:
    multiple, length = config.packing.pad_to_multiple_of, config.data.sequence_len
    if multiple is None or not config.packing.pad_to_sequence_len or length % multiple == 0:
        return None
    return _at(
        config,
        "pad_to_multiple_of",
        f"pad_to_sequence_len pads to {length}, which is no multiple of pad_to_multiple_of {multiple}",
        "keep one of the two",
    )


def workers_before_prefetching(config: Config) -> Problem | None:
    if config.data.dataloader_prefetch_factor is None or config.data.dataloader_num_workers:
        return None
    return _at(
        config,
        "dataloader_prefetch_factor",
        "dataloader_prefetch_factor is written, and no worker builds batches",
        "add `dataloader_num_workers: 2`",
    )


# Template and tokenizer


def jinja_comes_with_its_text(config: Config) -> Problem | None:
    template = config.template
    if template.chat_template == "jinja" and template.chat_template_jinja is None:
        return _at(
            config,
            "chat_template",
            "chat_template is jinja, and there is no chat_template_jinja",
            "add its text or file",
        )
    if template.chat_template not in (None, "jinja") and template.chat_template_jinja is not None:
        return _at(
            config,
            "chat_template_jinja",
            f"chat_template_jinja would not be used: chat_template is {template.chat_template}",
            "write chat_template: jinja, or remove one of the two",
        )
    return None


def the_tokenizer_is_a_fast_one(config: Config) -> Problem | None:
    if config.tokenizer.tokenizer_use_fast:
        return None
    return _at(
        config,
        "tokenizer_use_fast",
        "tokenizer_use_fast is false, and slow tokenizers do not say which characters a token stands for",
        "remove the line",
    )


# Batches and the loop


def batch_is_described_once(config: Config) -> Problem | None:
    return _clash(config, "batch_size", "gradient_accumulation_steps", "keep micro_batch_size and one of the two")


def batch_is_made_of_whole_passes(config: Config) -> Problem | None:
    batch = config.batch
    if batch.batch_size is None or batch.batch_size % batch.micro_batch_size == 0:
        return None
    return _at(
        config,
        "batch_size",
        f"batch_size {batch.batch_size} is no multiple of micro_batch_size {batch.micro_batch_size}",
        f"write {max(1, batch.batch_size // batch.micro_batch_size) * batch.micro_batch_size}",
    )


def warmup_is_written_once(config: Config) -> Problem | None:
    return _clash(config, "warmup_steps", "warmup_ratio", "keep one of them")


def saves_are_counted_once(config: Config) -> Problem | None:
    return _clash(config, "save_steps", "saves_per_epoch", "keep one of them")


def evaluations_are_counted_once(config: Config) -> Problem | None:
    return _clash(config, "eval_steps", "evals_per_epoch", "keep one of them")


def save_steps_go_with_their_strategy(config: Config) -> Problem | None:
    loop = config.loop
    key = _first_set(config, ("save_steps", "saves_per_epoch"))
    if key is None or loop.save_strategy in (None, "steps"):
        return None
    return _at(config, key, f"{key} is written, and save_strategy is {loop.save_strategy}", "keep one of them")


def eval_steps_go_with_their_strategy(config: Config) -> Problem | None:
    loop = config.loop
    key = _first_set(config, ("eval_steps", "evals_per_epoch"))
    if key is None or loop.eval_strategy in (None, "steps"):
        return None
    return _at(config, key, f"{key} is written, and eval_strategy is {loop.eval_strategy}", "keep one of them")


def strategies_by_steps_have_steps(config: Config) -> Problem | None:
    loop = config.loop
    if loop.save_strategy == "steps" and loop.save_steps is None and loop.saves_per_epoch is None:
        return _at(config, "save_strategy", "save_strategy is steps, and save_steps is not written", "add save_steps")
    if loop.eval_strategy == "steps" and loop.eval_steps is None and loop.evals_per_epoch is None:
        return _at(config, "eval_strategy", "eval_strategy is steps, and eval_steps is not written", "add eval_steps")
    return None


def intervals_are_shares_or_whole_steps(config: Config) -> Problem | None:
    for key in ("eval_steps", "save_steps"):
        steps = config.value(key)
        if steps is not None and steps >= 1 and not float(steps).is_integer():
            return _at(config, key, f"{key} is {steps}", "write a whole number of steps, or a share below 1")
    return None


def _evaluates(config: Config) -> bool:
    return bool(config.data.val_set_size or config.data.test_datasets) and config.loop.eval_strategy != "no"


def evaluation_has_rows(config: Config) -> Problem | None:
    if config.data.val_set_size or config.data.test_datasets:
        return None
    key = _first_set(config, ("eval_steps", "eval_strategy"))
    if key is None or config.loop.eval_strategy == "no":
        return None
    return _at(
        config, key, f"{key} is written, and there is nothing to evaluate on", "add val_set_size or test_datasets"
    )


def the_best_is_known_by_evaluating(config: Config) -> Problem | None:
    loop = config.loop
    if _evaluates(config):
        return None
    wants = {
        "early_stopping_patience": loop.early_stopping_patience is not None,
        "load_best_model_at_end": loop.load_best_model_at_end,
        "save_strategy": loop.save_strategy == "best",
    }
    for key, wanted in wants.items():
        if wanted:
            return _at(config, key, f"{key} needs evaluations, and none take place", "add val_set_size: 0.05")
    return None


def the_best_model_is_saved(config: Config) -> Problem | None:
    loop = config.loop
    if not loop.load_best_model_at_end or loop.save_strategy == "best":
        return None
    if loop.save_strategy == "no":
        return _at(
            config, "load_best_model_at_end", "load_best_model_at_end, and save_strategy is no", "let it save: best"
        )
    if loop.save_steps is None or loop.eval_steps is None or loop.save_steps % loop.eval_steps == 0:
        return None
    return _at(
        config,
        "save_steps",
        f"load_best_model_at_end: of the evaluations every {loop.eval_steps} steps, those that are not saved "
        f"(every {loop.save_steps} steps) could be the best",
        f"write a multiple of {loop.eval_steps}",
    )


def resuming_needs_the_optimizer(config: Config) -> Problem | None:
    loop = config.loop
    if not loop.save_only_model or not loop.auto_resume_from_checkpoints:
        return None
    return _at(
        config,
        "save_only_model",
        "save_only_model leaves out what auto_resume_from_checkpoints needs",
        "remove one of the two",
    )


# Adapters


def four_bits_or_eight(config: Config) -> Problem | None:
    if not (config.quant.load_in_4bit and config.quant.load_in_8bit):
        return None
    return _at(config, "load_in_8bit", "load_in_4bit and load_in_8bit are both true", "keep one of them")


def qlora_has_a_4bit_base(config: Config) -> Problem | None:
    if config.adapter.adapter != "qlora" or config.quant.load_in_4bit:
        return None
    fix = "write load_in_4bit: true instead" if config.quant.load_in_8bit else "add `load_in_4bit: true`"
    return _at(config, "adapter", "adapter is qlora, and the base model is not loaded in 4 bits", fix)


def few_bits_need_an_adapter(config: Config) -> Problem | None:
    if config.adapter.adapter:
        return None
    for key in ("load_in_4bit", "load_in_8bit"):
        if config.value(key):
            return _at(
                config,
                key,
                f"{key} is true, and quantised weights cannot be trained",
                "add `adapter: qlora`" if key == "load_in_4bit" else "add `adapter: lora`",
            )
    return None


def four_bit_options_need_4bit(config: Config) -> Problem | None:
    keys = ("bnb_4bit_quant_type", "bnb_4bit_compute_dtype", "bnb_4bit_use_double_quant")
    key = _first_set(config, keys)
    if key is None or config.quant.load_in_4bit:
        return None
    return _at(
        config, key, f"{key} is written, and load_in_4bit is not", "add `load_in_4bit: true`, or remove the line"
    )


def adapter_options_need_an_adapter(config: Config) -> Problem | None:
    if config.adapter.adapter:
        return None
    for key in type(config.adapter).model_fields:
        value = config.value(key)
        if config.is_set(key) and value not in (False, type(config.adapter).model_fields[key].default):
            return _at(
                config, key, f"{key} is written, and there is no adapter", "add `adapter: lora`, or remove the line"
            )
    return None


def the_adapter_has_targets(config: Config) -> Problem | None:
    adapter = config.adapter
    if not adapter.adapter or adapter.lora_model_dir:
        return None
    if adapter.lora_target_modules or adapter.lora_target_linear or adapter.lora_target_parameters:
        return None
    return _at(
        config,
        "adapter",
        "the adapter has nothing to adapt",
        "add `lora_target_linear: true`, or name layers in lora_target_modules",
    )


def target_patterns_compile(config: Config) -> Problem | None:
    targets = config.adapter.lora_target_modules or ()
    for pattern in (targets,) if isinstance(targets, str) else targets:
        try:
            re.compile(pattern)
        except re.error as error:
            return _at(
                config,
                "lora_target_modules",
                f"lora_target_modules: '{pattern}' is no regular expression: {error}",
                "write a layer's name",
            )
    return None


def adapted_parameters_have_no_dropout(config: Config) -> Problem | None:
    if not config.adapter.lora_target_parameters or config.adapter.lora_dropout == 0:
        return None
    return _at(
        config,
        "lora_dropout",
        f"lora_dropout is {config.adapter.lora_dropout:g}, which lora_target_parameters rules out",
        "write lora_dropout: 0",
    )


def layers_pattern_counts_layers(config: Config) -> Problem | None:
    if not config.adapter.peft_layers_pattern or config.adapter.peft_layers_to_transform:
        return None
    return _at(
        config, "peft_layers_pattern", "peft_layers_pattern names no layers by itself", "add peft_layers_to_transform"
    )


def unfrozen_parameters_are_full_weights(config: Config) -> Problem | None:
    return _clash(config, "peft_layers_to_transform", "unfrozen_parameters", "keep one of them")


# Optimizer


def one_scheme_of_learning_rates(config: Config) -> Problem | None:
    return _clash(config, "lr_groups", "loraplus_lr_ratio", "keep one of them")


def embeddings_have_one_learning_rate(config: Config) -> Problem | None:
    return _clash(config, "embedding_lr", "embedding_lr_scale", "keep one of them")


def cosine_options_need_a_cosine(config: Config) -> Problem | None:
    scheduler = config.optimizer.lr_scheduler
    allowed = {
        "cosine_min_lr_ratio": ("cosine", "rex"),
        "cosine_constant_lr_ratio": ("cosine",),
        "lr_quadratic_warmup": ("cosine",),
    }
    for key, schedulers in allowed.items():
        if config.value(key) and scheduler not in schedulers:
            return _at(
                config,
                key,
                f"{key} is written, and lr_scheduler is {scheduler}",
                f"write lr_scheduler: {schedulers[0]}",
            )
    return None


def a_held_rate_has_its_height(config: Config) -> Problem | None:
    if config.optimizer.cosine_constant_lr_ratio is None or config.optimizer.cosine_min_lr_ratio is not None:
        return None
    return _at(
        config,
        "cosine_constant_lr_ratio",
        "cosine_constant_lr_ratio is written, and the rate to hold is not",
        "add `cosine_min_lr_ratio: 0.1`",
    )


# Precision and memory


def precision_is_chosen_once(config: Config) -> Problem | None:
    precision = config.precision
    chosen = [key for key in ("bfloat16", "float16", "float32", "fp16") if getattr(precision, key)]
    if precision.bf16 in (True, "full"):
        chosen.insert(0, "bf16")
    if len(chosen) < 2:
        return None
    return _at(config, chosen[1], f"{' and '.join(chosen)} are all asked for", "keep one of them")


def activations_stay_on_the_device(config: Config) -> Problem | None:
    value = config.memory.gradient_checkpointing
    if value in (True, False):
        return None
    return _at(
        config,
        "gradient_checkpointing",
        f"gradient_checkpointing: {value} is not supported yet",
        "write gradient_checkpointing: true",
    )


def reentrant_checkpoints_need_gradients_everywhere(config: Config) -> Problem | None:
    kwargs = config.memory.gradient_checkpointing_kwargs or {}
    if not kwargs.get("use_reentrant") or not config.model.unfrozen_parameters:
        return None
    return _at(
        config,
        "gradient_checkpointing_kwargs",
        "use_reentrant: true loses the gradients of unfrozen_parameters",
        "write use_reentrant: false",
    )


def weights_are_safetensors(config: Config) -> Problem | None:
    if config.output.save_safetensors:
        return None
    return _at(
        config, "save_safetensors", "save_safetensors is false, and pickled weights are not written", "remove the line"
    )


# Methods


def preferences_are_not_packed(config: Config) -> Problem | None:
    if not config.method.rl or not config.packing.sample_packing:
        return None
    return _at(
        config,
        "sample_packing",
        f"sample_packing is true, and rl: {config.method.rl} compares pairs of answers",
        "write sample_packing: false",
    )


def preference_options_need_their_method(config: Config) -> Problem | None:
    if config.method.rl == "dpo":
        return None
    keys = ("rl_beta", "dpo_label_smoothing", "dpo_loss_type", "dpo_loss_weights")
    key = _first_set(config, keys) or ("precompute_ref_log_probs" if config.method.precompute_ref_log_probs else None)
    if key is None or config.method.rl:
        return None
    return _at(config, key, f"{key} is written, and rl is not", "add `rl: dpo`, or remove the line")


def every_loss_has_a_weight(config: Config) -> Problem | None:
    weights, losses = config.method.dpo_loss_weights, config.method.dpo_loss_type or ("sigmoid",)
    if weights is None or len(weights) == len(losses):
        return None
    return _at(
        config,
        "dpo_loss_weights",
        f"dpo_loss_weights has {len(weights)} numbers for {len(losses)} losses in dpo_loss_type",
        "write one weight for each loss",
    )


def the_score_has_rows(config: Config) -> Problem | None:
    key = _first_set(config, ("score_max_new_tokens", "score_max_rows"))
    if key is None or config.score.score_dataset:
        return None
    return _at(config, key, f"{key} is written, and score_dataset is not", "add score_dataset, or remove the line")


RULES: tuple[Rule, ...] = (
    there_is_something_to_train_on,
    evaluation_rows_come_from_one_place,
    val_set_size_is_a_share_or_a_count,
    min_sample_fits_the_sequence,
    padding_fits_the_sequence,
    workers_before_prefetching,
    jinja_comes_with_its_text,
    the_tokenizer_is_a_fast_one,
    batch_is_described_once,
    batch_is_made_of_whole_passes,
    warmup_is_written_once,
    saves_are_counted_once,
    evaluations_are_counted_once,
    save_steps_go_with_their_strategy,
    eval_steps_go_with_their_strategy,
    strategies_by_steps_have_steps,
    intervals_are_shares_or_whole_steps,
    evaluation_has_rows,
    the_best_is_known_by_evaluating,
    the_best_model_is_saved,
    resuming_needs_the_optimizer,
    four_bits_or_eight,
    qlora_has_a_4bit_base,
    few_bits_need_an_adapter,
    four_bit_options_need_4bit,
    adapter_options_need_an_adapter,
    the_adapter_has_targets,
    target_patterns_compile,
    adapted_parameters_have_no_dropout,
    layers_pattern_counts_layers,
    unfrozen_parameters_are_full_weights,
    one_scheme_of_learning_rates,
    embeddings_have_one_learning_rate,
    cosine_options_need_a_cosine,
    a_held_rate_has_its_height,
    precision_is_chosen_once,
    activations_stay_on_the_device,
    reentrant_checkpoints_need_gradients_everywhere,
    weights_are_safetensors,
    preferences_are_not_packed,
    preference_options_need_their_method,
    every_loss_has_a_weight,
    the_score_has_rows,
)


# Remarks


def adam_options_need_adam(config: Config) -> Problem | None:
    key = _first_set(config, ("adam_beta1", "adam_beta2", "adam_epsilon"))
    name = config.optimizer.optimizer
    if key is None or "adam" in name or "ademamix" in name or ("lion" in name and key != "adam_epsilon"):
        return None
    return _at(config, key, f"{key} changes nothing: {name} does not use it", "remove the line")


def evaluations_without_rows(config: Config) -> Problem | None:
    if not config.is_set("evals_per_epoch") or config.data.val_set_size or config.data.test_datasets:
        return None
    return _at(
        config, "evals_per_epoch", "no evaluation takes place: there are no rows for it", "add val_set_size: 0.05"
    )


def checkpointing_options_need_checkpointing(config: Config) -> Problem | None:
    if not config.memory.gradient_checkpointing_kwargs or config.memory.gradient_checkpointing:
        return None
    return _at(
        config,
        "gradient_checkpointing_kwargs",
        "gradient_checkpointing_kwargs change nothing: gradient_checkpointing is off",
        "add `gradient_checkpointing: true`, or remove them",
    )


def compile_options_need_compiling(config: Config) -> Problem | None:
    key = _first_set(config, ("torch_compile_backend", "torch_compile_mode"))
    if key is None or config.memory.torch_compile:
        return None
    return _at(config, key, f"{key} changes nothing: torch_compile is off", "add `torch_compile: true`, or remove it")


def wandb_options_need_a_project(config: Config) -> Problem | None:
    key = _first_set(config, ("wandb_name", "wandb_entity", "wandb_run_id", "wandb_watch", "wandb_log_model"))
    if key is None or config.tracking.wandb_project or config.tracking.use_wandb is not None:
        return None
    return _at(config, key, f"{key} changes nothing: there is no wandb_project", "add wandb_project, or remove it")


def hub_options_need_a_repository(config: Config) -> Problem | None:
    key = _first_set(config, ("hub_strategy", "hub_revision"))
    if key is None or config.output.hub_model_id:
        return None
    return _at(config, key, f"{key} changes nothing: there is no hub_model_id", "add hub_model_id, or remove it")


def patience_needs_a_threshold(config: Config) -> Problem | None:
    if not config.is_set("loss_watchdog_patience") or config.loop.loss_watchdog_threshold is not None:
        return None
    return _at(
        config,
        "loss_watchdog_patience",
        "loss_watchdog_patience changes nothing: there is no loss_watchdog_threshold",
        "add loss_watchdog_threshold, or remove it",
    )


REMARKS: tuple[Rule, ...] = (
    adam_options_need_adam,
    evaluations_without_rows,
    checkpointing_options_need_checkpointing,
    compile_options_need_compiling,
    wandb_options_need_a_project,
    hub_options_need_a_repository,
    patience_needs_a_threshold,
)
