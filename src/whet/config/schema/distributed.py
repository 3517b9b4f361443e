"""Several devices."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from whet.config.schema.base import Positive, Section

StateDict = Literal["FULL_STATE_DICT", "LOCAL_STATE_DICT", "SHARDED_STATE_DICT"]


class FsdpConfig(Section):
    """Options of fully sharded data parallelism; each may be written with the prefix `fsdp_`."""

    fsdp_version: Literal[1, 2] | None = Field(None, description="FSDP 1 or 2.")
    activation_checkpointing: bool | None = Field(None, description="Checkpoint activations in the wrapped layers.")
    offload_params: bool | None = Field(None, description="Keep parameters on the CPU between uses.")
    sync_module_states: bool | None = Field(None, description="Send rank 0's weights to all ranks at the start.")
    cpu_ram_efficient_loading: bool | None = Field(None, description="Load the checkpoint on rank 0 alone.")
    cpu_offload_pin_memory: bool | None = Field(None, description="Page-lock offloaded parameters.")
    use_orig_params: bool | None = Field(None, description="Keep the original parameters visible.")
    state_dict_type: StateDict | None = Field(None, description="How checkpoints are written.")
    final_state_dict_type: StateDict | None = Field(None, description="How the final model is written.")
    auto_wrap_policy: Literal["TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP"] | None = Field(
        None, description="What is wrapped."
    )
    transformer_layer_cls_to_wrap: str | tuple[str, ...] | None = Field(
        None, description="Class of the layers to wrap, such as LlamaDecoderLayer."
    )
    min_num_params: Positive | None = Field(None, description="Smallest module that SIZE_BASED_WRAP wraps.")
    reshard_after_forward: bool | None = Field(None, description="Free gathered parameters after the forward pass.")
    mixed_precision_policy: str | None = Field(None, description="Precision of parameters and reductions.")
    limit_all_gathers: bool | None = Field(None, description="FSDP 1: at most two gathers in flight.")
    sharding_strategy: str | int | None = Field(None, description="FSDP 1: what is sharded.")
    backward_prefetch: str | None = Field(None, description="FSDP 1: when the next gather of the backward pass starts.")
    forward_prefetch: bool | None = Field(None, description="FSDP 1: start the next gather of the forward pass early.")


class DistributedSection(Section):
    """Keys about several devices."""

    fsdp: tuple[str, ...] | None = Field(None, description="FSDP 1 options, such as full_shard and auto_wrap.")
    fsdp_version: Literal[1, 2] | None = Field(None, description="FSDP 1 or 2.")
    fsdp_config: FsdpConfig | None = Field(None, description="Options of FSDP.")
    deepspeed: str | dict[str, Any] | None = Field(None, description="DeepSpeed settings, or the JSON file of them.")
    ddp_timeout: Positive | None = Field(None, description="Seconds a collective may take.")
    ddp_bucket_cap_mb: Positive | None = Field(None, description="Size of a gradient bucket in megabytes.")
    ddp_broadcast_buffers: bool | None = Field(None, description="Send rank 0's buffers with every forward pass.")
    ddp_find_unused_parameters: bool | None = Field(None, description="Allow parameters that get no gradient.")
