"""Trading time for memory, and compiling."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from whet.config.schema.base import Positive, Section


class SelectiveCheckpointing(Section):
    """What a checkpointed layer keeps all the same."""

    save: tuple[str, ...] = Field(
        ("attention",), min_length=1, description="What is kept: attention, matmul, or operators such as aten.silu."
    )
    save_sliding_window: bool = Field(False, description="Keep it in layers of sliding-window attention too.")
    recompute_layer_types: tuple[str, ...] = Field(
        ("sliding_attention", "chunked_attention"), description="Types of layers that keep nothing."
    )
    offload: bool = Field(False, description="Not built; must be false.")


class MemorySection(Section):
    """Keys about activation memory and compilation."""

    gradient_checkpointing: bool | Literal["offload", "offload_disk"] = Field(
        False,
        description="Compute activations again in the backward pass; offload: keep layers' inputs on the host "
        "or in files.",
    )
    gradient_checkpointing_every: Positive = Field(
        1, description="Compute every so many layers again; the others keep their activations."
    )
    gradient_checkpointing_kwargs: dict[str, Any] | None = Field(
        None, description="Arguments of gradient checkpointing; {use_reentrant: false} by default."
    )
    selective_checkpointing: bool | SelectiveCheckpointing | None = Field(
        None, description="What checkpointed layers keep all the same; true keeps the results of attention."
    )
    activation_offloading: bool | Literal["legacy", "disk", "hidden_states"] = Field(
        False,
        description="Keep activations in host memory until the backward pass; legacy: waiting for each copy; disk: in "
        "files of output_dir; hidden_states: the inputs of checkpointed layers alone.",
    )
    layer_offloading: bool = Field(
        False, description="Keep the frozen weights of layers in host memory, and fetch each layer before its turn."
    )
    tiled_mlp: bool = Field(False, description="Compute each MLP in shards of the row, forward and backward.")
    tiled_mlp_num_shards: Positive | None = Field(
        None, description="How many shards; tokens / hidden size, rounded up, by default."
    )
    optimizer_in_backward: bool = Field(
        False, description="Step each parameter as soon as its gradient is known, and free the gradient."
    )
    stochastic_rounding: bool = Field(
        False, description="Round updated bfloat16 weights up or down at random, right on average."
    )
    torch_empty_cache_steps: Positive | None = Field(
        None, description="Give the device's unused cached memory back every so many steps."
    )
    gc_collect_steps: int | None = Field(
        None, ge=-1, description="Collect Python's garbage every so many steps; -1: at epochs' ends and evaluations."
    )
    gc_steps: int | None = Field(None, ge=-1, description="Old: torch_empty_cache_steps and gc_collect_steps in one.")
    torch_compile: bool | Literal["auto"] = Field(
        False, description="Compile the repeated layers; auto: where rows have one length and the steps repay it."
    )
    torch_compile_backend: str | None = Field(None, description="Backend of torch.compile.")
    torch_compile_mode: Literal["default", "reduce-overhead", "max-autotune"] | None = Field(
        None, description="Mode of torch.compile."
    )
    torch_compile_options: dict[str, bool | int | float | str] | None = Field(
        None, description="Options of the inductor backend, such as epilogue_fusion."
    )
