"""Rules about the memory levers: which go together."""

from __future__ import annotations

from whet.config.config import Config
from whet.config.names import COMPILE_OPTIONS
from whet.config.optimizers import IN_BACKWARD, ONE_BY_ONE, ROUNDED
from whet.config.rules.base import Rule, at, clash
from whet.core.errors import Problem


def activations_go_to_one_place(config: Config) -> Problem | None:
    memory = config.memory
    short = {"offload": True, "offload_disk": "disk"}.get(str(memory.gradient_checkpointing))
    if short is None or memory.activation_offloading in (False, short):
        return None
    written = str(memory.activation_offloading).replace("True", "true")
    found = f"activation_offloading is {written}, and gradient_checkpointing is {memory.gradient_checkpointing}"
    return at(config, "activation_offloading", found, "write gradient_checkpointing: true")


def offloaded_inputs_are_those_of_checkpoints(config: Config) -> Problem | None:
    memory = config.memory
    if memory.activation_offloading != "hidden_states" or memory.gradient_checkpointing:
        return None
    found = "activation_offloading: hidden_states is about checkpointed layers, and gradient_checkpointing is off"
    return at(config, "activation_offloading", found, "add `gradient_checkpointing: true`")


def offloaded_checkpoints_are_not_reentrant(config: Config) -> Problem | None:
    memory = config.memory
    offloads = memory.activation_offloading or isinstance(memory.gradient_checkpointing, str) or memory.layer_offloading
    if not offloads or not _is_reentrant(config):
        return None
    found = "use_reentrant: true is written, and what is offloaded is told by the other kind of checkpoint"
    return at(config, "gradient_checkpointing_kwargs", found, "write use_reentrant: false")


def offloaded_layers_are_frozen_and_checkpointed(config: Config) -> Problem | None:
    if not config.memory.layer_offloading:
        return None
    if not config.adapter.adapter:
        found = "layer_offloading is for the frozen weights under an adapter, and there is no adapter"
        return at(config, "layer_offloading", found, "add `adapter: lora`, or remove the line")
    if not config.memory.gradient_checkpointing:
        found = "layer_offloading frees nothing without gradient_checkpointing: the graph would keep the weights"
        return at(config, "layer_offloading", found, "add `gradient_checkpointing: true`")
    if config.quant.load_in_8bit:
        found = "layer_offloading cannot move the weights of load_in_8bit, which bitsandbytes keeps in its own place"
        return at(config, "layer_offloading", found, "write load_in_4bit, or remove the line")
    if config.memory.selective_checkpointing:
        found = "selective_checkpointing is written, and with layer_offloading layers keep nothing but their input"
        return at(config, "selective_checkpointing", found, "keep one of the two")
    if config.is_set("device_map") or config.is_set("max_memory"):
        key = "device_map" if config.is_set("device_map") else "max_memory"
        return at(config, key, f"{key} places the layers, and so does layer_offloading", "keep one of them")
    return None


def reentrant_checkpoints_need_gradients_everywhere(config: Config) -> Problem | None:
    if not _is_reentrant(config) or not config.model.unfrozen_parameters:
        return None
    return at(
        config,
        "gradient_checkpointing_kwargs",
        "use_reentrant: true loses the gradients of unfrozen_parameters",
        "write use_reentrant: false",
    )


def selective_checkpointing_is_checkpointing(config: Config) -> Problem | None:
    memory = config.memory
    if not memory.selective_checkpointing or memory.gradient_checkpointing:
        return None
    found = "selective_checkpointing is written, and gradient_checkpointing is off"
    return at(config, "selective_checkpointing", found, "add `gradient_checkpointing: true`")


def selective_checkpointing_is_not_reentrant(config: Config) -> Problem | None:
    if not config.memory.selective_checkpointing or not _is_reentrant(config):
        return None
    found = "use_reentrant: true computes everything again, and selective_checkpointing keeps a part"
    return at(config, "gradient_checkpointing_kwargs", found, "write use_reentrant: false")


def selective_checkpointing_keeps_on_the_device(config: Config) -> Problem | None:
    memory = config.memory
    elsewhere = isinstance(memory.gradient_checkpointing, str) or memory.activation_offloading not in (
        False,
        "hidden_states",
    )
    if not memory.selective_checkpointing or not elsewhere:
        return None
    found = "selective_checkpointing keeps results on the device, and activations are offloaded"
    return at(
        config, "selective_checkpointing", found, "write activation_offloading: hidden_states, or remove the line"
    )


def products_are_not_kept_under_an_adapter(config: Config) -> Problem | None:
    selection = config.memory.selective_checkpointing
    if not config.adapter.adapter or selection in (None, True, False):
        return None
    products = ("matmul", "aten.mm", "aten.addmm", "aten.bmm", "aten.linear")
    kept = next((name for name in selection.save if name.removesuffix(".default") in products), None)  # type: ignore[union-attr]
    if kept is None:
        return None
    found = f"selective_checkpointing.save names {kept}, which under an adapter keeps three results where one is needed"
    return at(config, "selective_checkpointing", found, "write save: [attention]")


def kept_results_stay_on_the_device(config: Config) -> Problem | None:
    selection = config.memory.selective_checkpointing
    if selection in (None, True, False) or not selection.offload:  # type: ignore[union-attr]
        return None
    found = "selective_checkpointing.offload is not built: what a layer keeps stays on the device"
    return at(config, "selective_checkpointing", found, "remove offload")


def layers_are_chosen_for_supervised_training(config: Config) -> Problem | None:
    if not config.method.rl:
        return None
    memory = config.memory
    for key, value in (
        ("gradient_checkpointing_every", memory.gradient_checkpointing_every > 1),
        ("selective_checkpointing", memory.selective_checkpointing),
        ("layer_offloading", memory.layer_offloading),
        ("activation_offloading", memory.activation_offloading == "hidden_states"),
    ):
        if value:
            found = f"{key} is written, and TRL's trainer for rl: {config.method.rl} checkpoints every layer or none"
            return at(config, key, found, "remove the line")
    return None


def shards_are_of_a_tiled_mlp(config: Config) -> Problem | None:
    if config.memory.tiled_mlp_num_shards is None or config.memory.tiled_mlp:
        return None
    found = "tiled_mlp_num_shards is written, and tiled_mlp is off"
    return at(config, "tiled_mlp_num_shards", found, "add `tiled_mlp: true`, or remove the line")


def garbage_is_collected_once(config: Config) -> Problem | None:
    return clash(config, "gc_collect_steps", "gc_steps", "keep gc_collect_steps and torch_empty_cache_steps") or clash(
        config, "torch_empty_cache_steps", "gc_steps", "keep gc_collect_steps and torch_empty_cache_steps"
    )


def a_step_in_backward_sees_one_gradient(config: Config) -> Problem | None:
    """At a parameter's step the other gradients are not known yet, or gone."""
    if not config.memory.optimizer_in_backward:
        return None
    if config.loop.max_grad_norm:
        found = f"max_grad_norm is {config.loop.max_grad_norm:g}, and optimizer_in_backward never has all gradients"
        return at(config, "max_grad_norm", found, "write max_grad_norm: 0")
    if (config.batch.gradient_accumulation_steps or 1) > 1:
        found = "optimizer_in_backward steps after every pass, and gradient_accumulation_steps is above 1"
        return at(config, "gradient_accumulation_steps", found, "write a larger micro_batch_size instead")
    if config.precision.fp16:
        found = "optimizer_in_backward steps before the loss scaling of fp16 can tell whether gradients overflow"
        return at(config, "optimizer_in_backward", found, "write bf16: true")
    if config.method.rl:
        found = f"optimizer_in_backward is for supervised training, and rl is {config.method.rl}"
        return at(config, "optimizer_in_backward", found, "remove the line")
    return None


def a_step_in_backward_needs_no_other_parameter(config: Config) -> Problem | None:
    name = config.optimizer.optimizer
    if not config.memory.optimizer_in_backward or name in ONE_BY_ONE:
        return None
    if name in IN_BACKWARD:
        return at(config, "optimizer_in_backward", f"{name} steps in the backward pass by itself", "remove the line")
    found = f"optimizer_in_backward is not built for {name}"
    return at(config, "optimizer_in_backward", found, "write optimizer: adamw_torch_fused, or adamw_8bit")


def rounding_needs_bfloat16_weights(config: Config) -> Problem | None:
    if not config.memory.stochastic_rounding:
        return None
    if not config.precision.bfloat16:
        found = "stochastic_rounding is for weights in bfloat16, and bfloat16 is not written"
        return at(config, "stochastic_rounding", found, "add `bfloat16: true`")
    if config.adapter.adapter and config.adapter.peft_autocast_adapter_dtype is not False:
        found = "stochastic_rounding has nothing to round: an adapter is trained in float32"
        return at(config, "stochastic_rounding", found, "remove the line, or write peft_autocast_adapter_dtype: false")
    if config.optimizer.optimizer not in ROUNDED:
        found = f"stochastic_rounding is not built for {config.optimizer.optimizer}"
        return at(config, "stochastic_rounding", found, "write optimizer: adamw_torch_fused")
    return None


def weights_have_one_manager(config: Config) -> Problem | None:
    """ReLoRA and LISA change weights, states or what is trained while a run goes on."""
    others = [key for key in ("relora", "lisa_n_layers") if config.value(key)]
    levers = [key for key in ("optimizer_in_backward", "stochastic_rounding", "layer_offloading") if config.value(key)]
    if not others or not levers:
        return None
    found = f"{levers[0]} holds weights in its own way, and {others[0]} changes them while the run goes on"
    return at(config, levers[0], found, "keep one of the two")


def parameters_apart_are_not_filtered(config: Config) -> Problem | None:
    memory, settings = config.memory, config.optimizer
    key = "optimizer_in_backward" if memory.optimizer_in_backward else "stochastic_rounding"
    if not config.value(key) or (settings.grokfast_alpha is None and settings.grokfast_lamb is None):
        return None
    return at(config, key, f"{key} is written, and grokfast filters all gradients together", "keep one of the two")


def _is_reentrant(config: Config) -> bool:
    return bool((config.memory.gradient_checkpointing_kwargs or {}).get("use_reentrant"))


def compile_options_are_known(config: Config) -> Problem | None:
    options = config.memory.torch_compile_options or {}
    key = "torch_compile_options"
    unknown = next((name for name in options if name not in COMPILE_OPTIONS), None)
    if unknown is not None:
        return at(config, key, f"{key}: {unknown} is none of them", f"choose among {', '.join(COMPILE_OPTIONS)}")
    if options and config.memory.torch_compile_mode is not None:
        return at(config, key, f"{key} are written, and so is torch_compile_mode, which stands for some", "keep one")
    return None


MEMORY_RULES: tuple[Rule, ...] = (
    compile_options_are_known,
    activations_go_to_one_place,
    offloaded_inputs_are_those_of_checkpoints,
    offloaded_checkpoints_are_not_reentrant,
    offloaded_layers_are_frozen_and_checkpointed,
    reentrant_checkpoints_need_gradients_everywhere,
    selective_checkpointing_is_checkpointing,
    selective_checkpointing_is_not_reentrant,
    selective_checkpointing_keeps_on_the_device,
    products_are_not_kept_under_an_adapter,
    kept_results_stay_on_the_device,
    layers_are_chosen_for_supervised_training,
    shards_are_of_a_tiled_mlp,
    garbage_is_collected_once,
    a_step_in_backward_sees_one_gradient,
    a_step_in_backward_needs_no_other_parameter,
    rounding_needs_bfloat16_weights,
    weights_have_one_manager,
    parameters_apart_are_not_filtered,
)
