"""Every derived number, once: a config and a machine give a `ResolvedRun`, which is never changed and never read back.

Each automatic choice leaves a sentence in ``ResolvedRun.choices``, for the run's announcement and its record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from whet.config.config import Config
from whet.config.heads import CHUNKED, CUT, LIGER, PACKAGES, PLUGINS, Head
from whet.config.names import ATTENTION_MAPPED, ATTENTION_SHORT, FLASH_ATTENTION
from whet.config.optimizers import IN_BACKWARD
from whet.core.errors import ConfigError, Problem
from whet.core.types import Hardware

DEFAULT_PREPARED_PATH = "last_run_prepared"


@dataclass(frozen=True)
class ResolvedRun:
    """The config with everything that was left open decided for one machine.

    Attributes:
        config: what was written.
        hardware: the machine it was decided for.
        method: "sft" or "dpo".
        device: "cpu", "cuda" or "mps".
        world_size: processes of the run.
        dtype: type the weights are loaded in: "float32", "bfloat16" or "float16".
        autocast_dtype: type of mixed precision, or None.
        tf32: allow TensorFloat-32 products.
        quantization: "none", "nf4", "fp4" or "int8".
        micro_batch_size: rows of one forward pass on one device.
        gradient_accumulation_steps: forward passes of one optimiser step.
        global_batch_size: rows of one optimiser step, over all devices.
        eval_batch_size: rows of one evaluation pass on one device.
        sequence_len, eval_sequence_len: tokens of a row.
        sample_packing, eval_sample_packing: whether rows are packs.
        pad_to_sequence_len: whether every row is padded to sequence_len.
        pad_to_multiple_of: length every row is padded to a multiple of, or None.
        attn_implementation: "auto", or the name that was asked for and can run here.
        experts_implementation: who computes the experts of a mixture model; "auto" where nothing was asked for.
        head: who computes the output head and the loss: "whet", "liger" or "cut_cross_entropy".
        gradient_checkpointing: whether activations are computed again in the backward pass.
        gradient_checkpointing_kwargs: its arguments; ``use_reentrant`` is False unless written otherwise.
        activation_offloading: "none", "host", "legacy", "disk" or "hidden_states".
        layer_offloading: whether frozen layers' weights wait in host memory.
        torch_compile: whether the model is compiled.
        max_grad_norm: gradients are scaled down to it; 0 for no limit.
        optimizer, lr_scheduler: their names.
        report_to: trackers, as transformers names them.
        seed: of everything random.
        num_proc: processes for preparing data.
        output_dir, prepared_path: folders.
        chat_template: name of the template: "tokenizer_default", "jinja" or a shipped one.
        choices: key -> the sentence that explains what was chosen for it.
    """

    config: Config
    hardware: Hardware
    method: str
    device: str
    world_size: int
    dtype: str
    autocast_dtype: str | None
    tf32: bool
    quantization: str
    micro_batch_size: int
    gradient_accumulation_steps: int
    global_batch_size: int
    eval_batch_size: int
    sequence_len: int
    eval_sequence_len: int
    sample_packing: bool
    eval_sample_packing: bool
    pad_to_sequence_len: bool
    pad_to_multiple_of: int | None
    attn_implementation: str
    experts_implementation: str
    head: Head
    gradient_checkpointing: bool
    gradient_checkpointing_kwargs: Mapping[str, Any]
    activation_offloading: str
    layer_offloading: bool
    torch_compile: bool
    max_grad_norm: float
    optimizer: str
    lr_scheduler: str
    report_to: tuple[str, ...]
    seed: int
    num_proc: int
    output_dir: str
    prepared_path: str
    chat_template: str
    choices: Mapping[str, str] = field(default_factory=dict)


def resolve(config: Config, hardware: Hardware) -> ResolvedRun:
    """Decide everything the config leaves open, for one machine.

    Raises:
        ConfigError: batch_size cannot be reached with this number of processes.
    """
    choices: dict[str, str] = {}
    dtype, autocast_dtype = _precision(config, hardware, choices)
    accumulation = _accumulation(config, hardware.world_size, choices)
    micro = config.batch.micro_batch_size
    packed = config.packing.sample_packing
    return ResolvedRun(
        config=config,
        hardware=hardware,
        method=_method(config),
        device=hardware.device,
        world_size=hardware.world_size,
        dtype=dtype,
        autocast_dtype=autocast_dtype,
        tf32=_tf32(config, hardware, choices),
        quantization=_quantization(config),
        micro_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        global_batch_size=micro * accumulation * hardware.world_size,
        eval_batch_size=config.batch.eval_batch_size or micro,
        sequence_len=config.data.sequence_len,
        eval_sequence_len=config.data.eval_sequence_len or config.data.sequence_len,
        sample_packing=packed,
        eval_sample_packing=packed
        if config.packing.eval_sample_packing is None
        else config.packing.eval_sample_packing,
        pad_to_sequence_len=bool(config.packing.pad_to_sequence_len),
        pad_to_multiple_of=config.packing.pad_to_multiple_of,
        attn_implementation=_attention(config, hardware, choices),
        experts_implementation=next(iter(wanted_experts(config).values()), "auto"),
        head=_head(config, hardware, choices),
        gradient_checkpointing=bool(config.memory.gradient_checkpointing),
        gradient_checkpointing_kwargs=MappingProxyType(
            {"use_reentrant": False, **(config.memory.gradient_checkpointing_kwargs or {})}
        ),
        activation_offloading=_activation_offloading(config, hardware, choices),
        layer_offloading=_layer_offloading(config, hardware, choices),
        torch_compile=_compile(config, choices),
        max_grad_norm=_max_grad_norm(config, choices),
        optimizer=config.optimizer.optimizer,
        lr_scheduler=config.optimizer.lr_scheduler,
        report_to=_trackers(config),
        seed=config.loop.seed,
        num_proc=config.data.dataset_num_proc or max(1, hardware.num_cpus),
        output_dir=config.output.output_dir,
        prepared_path=config.data.dataset_prepared_path or DEFAULT_PREPARED_PATH,
        chat_template=_chat_template(config, choices),
        choices=MappingProxyType(choices),
    )


def _method(config: Config) -> str:
    """Name of the training method, as the registry of methods has it or will."""
    if config.method.reward_model:
        return "reward_model"
    if config.method.process_reward_model:
        return "process_reward_model"
    return config.method.rl or "sft"


def _precision(config: Config, hardware: Hardware, choices: dict[str, str]) -> tuple[str, str | None]:
    """Type of the weights, and of mixed precision."""
    dtype, autocast_dtype = _dtypes(config, hardware, choices)
    return config.precision.torch_dtype or dtype, autocast_dtype


def _dtypes(config: Config, hardware: Hardware, choices: dict[str, str]) -> tuple[str, str | None]:
    """The same, where `torch_dtype` does not say the former.

    Mixed precision keeps weights that move in float32. Under an adapter the base does not, so it is loaded in the
    16-bit type itself; under `relora` it takes in every adapter, most of which 16 bits would round away.
    """
    precision = config.precision
    for pure in ("float32", "bfloat16", "float16"):
        if getattr(precision, pure):
            return pure, None
    mixed = _mixed_type(config, hardware, choices)
    if mixed is None:
        return "float32", None
    moves = not config.adapter.adapter or config.adapter.relora
    return ("float32", mixed) if moves else (mixed, mixed)


def _mixed_type(config: Config, hardware: Hardware, choices: dict[str, str]) -> str | None:
    precision = config.precision
    if precision.fp16:
        return "float16"
    if precision.bf16 != "auto":
        return "bfloat16" if precision.bf16 else None
    if hardware.device == "cuda" and hardware.bf16:
        choices["bf16"] = f"auto -> mixed precision in bfloat16: {hardware.device_name or 'the GPU'} computes in it"
        return "bfloat16"
    reason = {
        "cpu": "float32 is exact; this CPU multiplies bfloat16 in hardware, faster, and `bf16: true` asks for it"
        if hardware.bf16
        else "this CPU has no bfloat16 arithmetic; `bf16: true` asks for it all the same",
        "mps": "float32 is exact on Apple GPUs; `bf16: true` asks for bfloat16 all the same",
    }.get(hardware.device, f"{hardware.device_name or 'this GPU'} has no bfloat16; `fp16: true` asks for float16")
    choices["bf16"] = f"auto -> float32: {reason}"
    return None


def _tf32(config: Config, hardware: Hardware, choices: dict[str, str]) -> bool:
    if config.precision.tf32 != "auto":
        return config.precision.tf32 and hardware.device == "cuda"
    allowed = hardware.device == "cuda" and hardware.bf16  # both came with the Ampere generation
    if allowed:
        choices["tf32"] = "auto -> on: this GPU multiplies float32 matrices in TensorFloat-32"
    return allowed


def _quantization(config: Config) -> str:
    if config.quant.load_in_4bit:
        return config.quant.bnb_4bit_quant_type
    return "int8" if config.quant.load_in_8bit else "none"


def _accumulation(config: Config, world_size: int, choices: dict[str, str]) -> int:
    batch = config.batch
    if batch.batch_size is None:
        return batch.gradient_accumulation_steps or 1
    per_pass = batch.micro_batch_size * world_size
    if batch.batch_size % per_pass:
        raise ConfigError(
            Problem(
                config.where("batch_size"),
                f"batch_size is {batch.batch_size}, and one pass takes {per_pass} rows "
                f"(micro_batch_size {batch.micro_batch_size} on {world_size} processes)",
                f"write a multiple of {per_pass}",
                "batch_size",
            )
        )
    steps = batch.batch_size // per_pass
    choices["gradient_accumulation_steps"] = f"{steps}: batch_size {batch.batch_size} in passes of {per_pass} rows"
    return steps


def _attention(config: Config, hardware: Hardware, choices: dict[str, str]) -> str:
    name = config.attention.attn_implementation
    if name is None:
        return "auto"
    if name in ATTENTION_MAPPED:
        choices["attn_implementation"] = f"{name} -> auto: {ATTENTION_MAPPED[name]}"
        return "auto"
    if name in ATTENTION_SHORT:
        name = ATTENTION_SHORT[name]
        choices["attn_implementation"] = f"{config.attention.attn_implementation} -> {name}, for which it is short"
    if name in FLASH_ATTENTION and hardware.device != "cuda":
        choices["attn_implementation"] = (
            f"{name} -> auto: flash attention runs on CUDA alone; here whet chooses one with the same results"
        )
        return "auto"
    return name


_MEMORY_IS_THE_HOSTS = {"cpu": "the memory of a CPU is host memory", "mps": "an Apple GPU shares the host's memory"}


def _activation_offloading(config: Config, hardware: Hardware, choices: dict[str, str]) -> str:
    memory = config.memory
    if isinstance(memory.gradient_checkpointing, str):
        key, kind = "gradient_checkpointing", {"offload": "host", "offload_disk": "disk"}[memory.gradient_checkpointing]
    elif isinstance(memory.activation_offloading, str):
        key, kind = "activation_offloading", memory.activation_offloading
    else:
        key, kind = "activation_offloading", "host" if memory.activation_offloading else "none"
    reason = _MEMORY_IS_THE_HOSTS.get(hardware.device)
    if kind in ("none", "disk") or reason is None:
        return kind
    written, rest = ("offload", "true") if key == "gradient_checkpointing" else (kind.replace("host", "true"), "off")
    choices[key] = f"{written} -> {rest}: {reason}"
    return "none"


def _layer_offloading(config: Config, hardware: Hardware, choices: dict[str, str]) -> bool:
    wanted = config.memory.layer_offloading
    reason = _MEMORY_IS_THE_HOSTS.get(hardware.device)
    if wanted and reason:
        choices["layer_offloading"] = f"true -> off: {reason}"
    return wanted and reason is None


def _head(config: Config, hardware: Hardware, choices: dict[str, str]) -> Head:
    loss = config.loss
    if loss.plugins:
        choices["plugins"] = "; ".join(f"{name.rsplit('.', 1)[-1]}: {PLUGINS[name]}" for name in loss.plugins)
    if loss.flash_attn_cross_entropy or loss.flash_attn_cross_entropy_loss:
        choices["flash_attn_cross_entropy"] = "true -> whet's own head, whose loss is fused with it on every device"
    if loss.chunked_cross_entropy is False and not asked_heads(config):
        choices["chunked_cross_entropy"] = "false -> whet's own head all the same: its chunks change no numbers"
    if loss.liger_use_token_scaling:
        choices["liger_use_token_scaling"] = "true -> use_dft: each token is weighted by its own probability"
    key, head = next(iter(asked_heads(config).items()), ("", CHUNKED))
    if head == CHUNKED or hardware.device == "cuda":
        return head
    package = PACKAGES[head][0].replace("_", "-")
    choices[key] = f"true -> whet's own head: {package} runs on CUDA alone; numbers and memory are the same"
    return CHUNKED


def _compile(config: Config, choices: dict[str, str]) -> bool:
    """Whether layers may be compiled; with `auto` the run decides when it knows its own speed."""
    if config.memory.torch_compile != "auto":
        return config.memory.torch_compile
    reason = None
    if not (config.packing.pad_to_sequence_len or config.packing.pad_to_multiple_of):
        reason = "rows differ in length, and each length would be compiled (pad_to_sequence_len: true fixes them)"
    elif config.adapter.adapter:
        reason = "an adapter's layers have fused kernels of their own"
    choices["torch_compile"] = f"auto -> off: {reason}" if reason else "auto -> after some steps, if it repays its time"
    return reason is None


def _max_grad_norm(config: Config, choices: dict[str, str]) -> float:
    name, limit = config.optimizer.optimizer, config.loop.max_grad_norm
    if name not in IN_BACKWARD or not limit:
        return limit
    choices["max_grad_norm"] = f"{limit:g} -> 0: {name} has changed the weights when the norm is known"
    return 0.0


def _trackers(config: Config) -> tuple[str, ...]:
    tracking = config.tracking
    wandb = bool(tracking.wandb_project) if tracking.use_wandb is None else tracking.use_wandb
    mlflow = tracking.use_mlflow
    if mlflow is None:
        mlflow = bool(tracking.mlflow_tracking_uri or tracking.mlflow_experiment_name)
    asked = {
        "tensorboard": tracking.use_tensorboard,
        "wandb": wandb and tracking.wandb_mode != "disabled",
        "mlflow": mlflow,
    }
    return tuple(name for name, wanted in asked.items() if wanted)


def _chat_template(config: Config, choices: dict[str, str]) -> str:
    template = config.template
    if template.chat_template:
        return template.chat_template
    if template.chat_template_jinja:
        choices["chat_template"] = "jinja: the text of chat_template_jinja"
        return "jinja"
    return "tokenizer_default"


def wanted_experts(config: Config) -> dict[str, str]:
    """Each key that names an implementation of a mixture's experts -> the one it names; rules want them to agree."""
    section = config.experts
    is_served = section.expert_backend in ("scattermoe", "sonicmoe")
    found = {
        "experts_implementation": section.experts_implementation,
        "expert_backend": "whet_experts" if is_served else section.expert_backend,
        "use_scattermoe": "whet_experts" if section.use_scattermoe else "auto",
        "use_sonicmoe": "whet_experts" if section.use_sonicmoe else "auto",
        "moe_grouped_backend": "auto" if section.moe_grouped_backend == "auto" else "whet_experts",
    }
    return {key: name for key, name in found.items() if name != "auto"}


def asked_heads(config: Config) -> dict[str, Head]:
    """Each key that asks for a head -> the one it asks for; one key at most may."""
    loss = config.loss
    asked: tuple[tuple[str, bool | None, Head], ...] = (
        ("cut_cross_entropy", loss.cut_cross_entropy, CUT),
        ("chunked_cross_entropy", loss.chunked_cross_entropy, CHUNKED),
        ("liger_cross_entropy", loss.liger_cross_entropy, LIGER),
        ("liger_fused_linear_cross_entropy", loss.liger_fused_linear_cross_entropy, LIGER),
    )
    return {key: head for key, is_asked, head in asked if is_asked}
