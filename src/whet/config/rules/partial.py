"""Rules about training a part of a model at a time: LISA, Spectrum, ReLoRA."""

from __future__ import annotations

from whet.config.config import Config
from whet.config.optimizers import ADAM_STATES, IN_BACKWARD, SCHEDULE_FREE
from whet.config.rules.base import Rule, at, first_set
from whet.core.errors import Problem


def layers_are_drawn_by_number_and_interval(config: Config) -> Problem | None:
    section = config.model
    if section.lisa_n_layers is not None and section.lisa_step_interval is None:
        found = "lisa_n_layers is written, and lisa_step_interval is not"
        return at(config, "lisa_n_layers", found, "add `lisa_step_interval: 20`")
    key = first_set(config, ("lisa_step_interval", "lisa_layers_attribute"))
    if section.lisa_n_layers is not None or key is None or config.value(key) in (None, "model.layers"):
        return None
    return at(config, key, f"{key} is written, and lisa_n_layers is not", "add `lisa_n_layers: 2`, or remove the line")


def one_choice_of_what_is_trained(config: Config) -> Problem | None:
    """An adapter, LISA, Spectrum and unfrozen_parameters each decide it alone."""
    model = config.model
    asked = {
        "adapter": bool(config.adapter.adapter),
        "lisa_n_layers": model.lisa_n_layers is not None,
        "spectrum_top_fraction": model.spectrum_top_fraction is not None,
        "unfrozen_parameters": bool(model.unfrozen_parameters),
    }
    written = [key for key, is_asked in asked.items() if is_asked]
    if len(written) < 2 or written == ["adapter", "unfrozen_parameters"]:  # which a rule of adapters tells
        return None
    found = f"{written[1]} is written, and so is {written[0]}: each says alone what is trained"
    return at(config, written[1], found, "keep one of them")


def drawn_layers_have_an_optimizer_that_lets_them_rest(config: Config) -> Problem | None:
    name = config.optimizer.optimizer
    if config.model.lisa_n_layers is None or name not in IN_BACKWARD | SCHEDULE_FREE:
        return None
    why = "changes weights in the backward pass" if name in IN_BACKWARD else "holds the average of layers at rest too"
    found = f"lisa_n_layers is written, and optimizer: {name} {why}"
    return at(config, "lisa_n_layers", found, "write optimizer: adamw_torch_fused")


def restarts_of_the_adapter_have_an_interval(config: Config) -> Problem | None:
    if not config.adapter.relora or config.optimizer.jagged_restart_steps is not None:
        return None
    return at(config, "relora", "relora is true, and jagged_restart_steps is not written", "add jagged_restart_steps")


def restarted_adapters_can_be_merged(config: Config) -> Problem | None:
    """What cannot be added to the base weights exactly, or is measured against a base that stays."""
    adapter = config.adapter
    if not adapter.relora:
        return None
    hindrances = {
        "load_in_4bit": (config.quant.load_in_4bit, "every merge would be rounded to 4 bits"),
        "load_in_8bit": (config.quant.load_in_8bit, "every merge would be rounded to 8 bits"),
        "peft_use_dora": (adapter.peft_use_dora, "DoRA's magnitudes belong to one base"),
        "lora_target_parameters": (bool(adapter.lora_target_parameters), "bare parameters are not merged in place"),
        "merge_adapters": (adapter.merge_adapters, "the result is a full model anyway"),
        "load_best_model_at_end": (config.loop.load_best_model_at_end, "the best adapter belongs to an earlier base"),
        "rl": (bool(config.method.rl), "the reference model would move with each merge"),
    }
    for key, (is_written, reason) in hindrances.items():
        if is_written:
            return at(config, key, f"{key} does not go with relora: {reason}", "remove one of the two")
    if adapter.peft_init_lora_weights not in (None, True, "gaussian"):
        found = f"relora starts adapters anew, which PEFT cannot do with {adapter.peft_init_lora_weights}"
        return at(config, "peft_init_lora_weights", found, "write true or gaussian")
    return None


def restarted_adapters_move_float32_weights(config: Config) -> Problem | None:
    """bfloat16 has 8 bits of precision: most of what an adapter has learnt is below half a step of a base weight."""
    if not config.adapter.relora:
        return None
    precision = config.precision
    found = "relora merges into the base weights, and 16 bits would round most of each adapter away"
    for key in ("bfloat16", "float16"):
        if config.value(key):
            mixed = {"bfloat16": "bf16: true", "float16": "fp16: true"}[key]
            return at(config, key, f"{key} is true: {found}", f"write {mixed}, mixed precision over float32 weights")
    if precision.torch_dtype in ("bfloat16", "float16"):
        return at(config, "torch_dtype", f"torch_dtype is {precision.torch_dtype}: {found}", "remove the line")
    return None


def restarted_adapters_have_adams_state(config: Config) -> Problem | None:
    name = config.optimizer.optimizer
    if not config.adapter.relora or name in ADAM_STATES:
        return None
    found = f"relora prunes Adam's running means, and optimizer is {name}"
    return at(config, "optimizer", found, f"write {' or '.join(sorted(ADAM_STATES))}")


def restarted_adapters_have_a_falling_rate(config: Config) -> Problem | None:
    if not config.adapter.relora or config.optimizer.lr_scheduler != "one_cycle":
        return None
    found = "lr_scheduler: one_cycle rises once in a run, and relora starts again and again"
    return at(config, "lr_scheduler", found, "write lr_scheduler: cosine")


def restart_options_need_restarts(config: Config) -> Problem | None:
    adapter = config.adapter
    if adapter.relora:
        return None
    for key in ("relora_prune_ratio", "relora_prune_method", "relora_cpu_offload"):
        if config.value(key) != type(adapter).model_fields[key].default:
            return at(config, key, f"{key} is written, and relora is not", "add `relora: true`, or remove the line")
    return None


PARTIAL_RULES: tuple[Rule, ...] = (
    layers_are_drawn_by_number_and_interval,
    one_choice_of_what_is_trained,
    drawn_layers_have_an_optimizer_that_lets_them_rest,
    restarts_of_the_adapter_have_an_interval,
    restarted_adapters_can_be_merged,
    restarted_adapters_move_float32_weights,
    restarted_adapters_have_adams_state,
    restarted_adapters_have_a_falling_rate,
    restart_options_need_restarts,
)
