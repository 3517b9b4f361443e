"""Rules about several devices, and about what a given machine can run.

The keys of FSDP and DeepSpeed are checked with the config; that they do not run yet is said when a run starts, by
`check_runnable`, so that data can be prepared with the same file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from whet.config.config import Config
from whet.config.optimizers import IN_BACKWARD
from whet.config.rules.base import Rule, at
from whet.config.rules.loss import cut_cross_entropy_needs_16_bits, the_head_that_is_asked_for_is_installed
from whet.core.errors import Problem
from whet.core.types import Hardware


def one_way_to_shard(config: Config) -> Problem | None:
    distributed = config.distributed
    if distributed.deepspeed is None or not (distributed.fsdp or distributed.fsdp_config):
        return None
    return at(config, "deepspeed", "deepspeed and fsdp are both written", "keep one of them")


def fsdp_has_one_version(config: Config) -> Problem | None:
    distributed = config.distributed
    inner = distributed.fsdp_config.fsdp_version if distributed.fsdp_config else None
    if inner is None or distributed.fsdp_version in (None, inner):
        return None
    return at(
        config,
        "fsdp_version",
        f"fsdp_version is {distributed.fsdp_version}, and {inner} in fsdp_config",
        "keep one of them",
    )


def unpinned_offloading_is_fsdp2(config: Config) -> Problem | None:
    options = config.distributed.fsdp_config
    if options is None or options.cpu_offload_pin_memory is not False:
        return None
    version = options.fsdp_version or config.distributed.fsdp_version
    if version == 2 and options.offload_params:
        return None
    return at(
        config,
        "fsdp_config",
        "fsdp_config.cpu_offload_pin_memory: false is for FSDP 2 with offload_params",
        "write fsdp_version: 2 and offload_params: true, or remove it",
    )


MACHINE_RULES: tuple[Rule, ...] = (
    one_way_to_shard,
    fsdp_has_one_version,
    unpinned_offloading_is_fsdp2,
)


def check_runnable(config: Config, hardware: Hardware) -> list[Problem]:
    """What keeps a valid config from training on this machine."""
    found = [rule(config, hardware) for rule in RUN_RULES]
    return [problem for problem in found if problem is not None]


def sharding_comes_later(config: Config, _: Hardware) -> Problem | None:
    for key in ("fsdp", "fsdp_config", "fsdp_version", "deepspeed"):
        if config.value(key):
            return at(
                config,
                key,
                f"{key} is understood, and does not run in this version",
                "remove it: several processes train with DDP (--launcher torchrun)",
            )
    return None


def bfloat16_needs_its_device(config: Config, hardware: Hardware) -> Problem | None:
    precision = config.precision
    key = "bfloat16" if precision.bfloat16 else "bf16"
    wanted = precision.bfloat16 or precision.bf16 in (True, "full")
    if not wanted or hardware.device != "cuda" or hardware.bf16:
        return None
    return at(
        config, key, f"{key}: {hardware.device_name or 'this GPU'} has no bfloat16", "write bf16: false and fp16: true"
    )


def tensorfloat_needs_its_device(config: Config, hardware: Hardware) -> Problem | None:
    if config.precision.tf32 is not True or hardware.device != "cuda" or hardware.bf16:
        return None
    found = f"tf32: {hardware.device_name or 'this GPU'} has no TensorFloat-32"
    return at(config, "tf32", found, "write tf32: auto, or remove the line")


def float16_needs_an_accelerator(config: Config, hardware: Hardware) -> Problem | None:
    key = "fp16" if config.precision.fp16 else "float16"
    if hardware.device != "cpu":
        return None
    if config.precision.torch_dtype == "float16":
        found = "torch_dtype is float16, in which a CPU does not train"
        return at(config, "torch_dtype", found, "write torch_dtype: bfloat16, or remove the line")
    if not config.value(key):
        return None
    return at(
        config, key, f"{key} is true, and a CPU does not train in float16", "write bf16: true, or remove the line"
    )


def products_in_8_bits_need_their_device(config: Config, hardware: Hardware) -> Problem | None:
    capability = hardware.compute_capability
    if not config.precision.fp8 or (capability is not None and capability >= (8, 9)):
        return None
    here = "a CPU" if hardware.device == "cpu" else hardware.device_name or "this GPU"
    found = f"fp8: {here} has no products in 8-bit floats (compute capability 8.9 and above: Ada, Hopper)"
    return at(config, "fp8", found, "write bf16: true instead")


def placement_is_for_one_process(config: Config, hardware: Hardware) -> Problem | None:
    if hardware.world_size == 1:
        return None
    for key in ("device_map", "max_memory"):
        if config.value(key) is not None:
            return at(
                config, key, f"{key} is for one process, and this run has {hardware.world_size}", "remove the line"
            )
    return None


def layers_are_drawn_in_one_process(config: Config, hardware: Hardware) -> Problem | None:
    if config.model.lisa_n_layers is None or hardware.world_size == 1:
        return None
    found = f"lisa_n_layers: DDP fixes at the start what is trained, and this run has {hardware.world_size} processes"
    return at(config, "lisa_n_layers", found, "train in one process, or remove the line")


def updates_in_backward_are_for_one_process(config: Config, hardware: Hardware) -> Problem | None:
    name = config.optimizer.optimizer
    if name not in IN_BACKWARD or hardware.world_size == 1:
        return None
    found = f"optimizer: {name} changes weights before {hardware.world_size} processes have averaged their gradients"
    return at(config, "optimizer", found, "train in one process, or write adamw_8bit")


def the_base_model_is_not_written_over(config: Config, _: Hardware) -> Problem | None:
    base, output = Path(config.model.base_model).expanduser(), Path(config.output.output_dir)
    if not (base.exists() and output.exists() and base.samefile(output)):
        return None
    found = f"output_dir '{output}' is the folder of base_model, which the run would write over"
    return at(config, "output_dir", found, "write another folder")


def the_base_model_is_not_merged_over(config: Config, _: Hardware) -> Problem | None:
    merged = Path(config.output.output_dir) / "merged"
    base = Path(config.model.base_model).expanduser()
    if not base.is_dir():
        base = Path(config.file).parent / config.model.base_model
    over = base.is_dir() and base.resolve().is_relative_to(merged.resolve())
    if not (config.adapter.merge_adapters and over):
        return None
    found = f"merge_adapters writes '{merged}' in the end, where the base_model lies"
    fix = f"write another output_dir, or remove the line and merge by whet merge-lora {config.file} --merged-dir"
    return at(config, "merge_adapters", found, fix)


def a_step_in_backward_is_one_pass_of_one_process(config: Config, hardware: Hardware) -> Problem | None:
    if not config.memory.optimizer_in_backward:
        return None
    if hardware.world_size > 1:
        found = f"optimizer_in_backward steps before {hardware.world_size} processes have added their gradients"
        return at(config, "optimizer_in_backward", found, "remove the line, or run one process")
    if (config.batch.batch_size or 0) > config.batch.micro_batch_size:
        found = "optimizer_in_backward steps after every pass, and batch_size takes several"
        return at(config, "batch_size", found, f"write batch_size: {config.batch.micro_batch_size}")
    return None


RUN_RULES: tuple[Callable[[Config, Hardware], Problem | None], ...] = (
    sharding_comes_later,
    bfloat16_needs_its_device,
    tensorfloat_needs_its_device,
    float16_needs_an_accelerator,
    products_in_8_bits_need_their_device,
    placement_is_for_one_process,
    layers_are_drawn_in_one_process,
    updates_in_backward_are_for_one_process,
    a_step_in_backward_is_one_pass_of_one_process,
    the_base_model_is_not_written_over,
    the_base_model_is_not_merged_over,
    the_head_that_is_asked_for_is_installed,
    cut_cross_entropy_needs_16_bits,
)
