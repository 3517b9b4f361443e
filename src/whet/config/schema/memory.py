"""Trading time for memory, and compiling."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from whet.config.schema.base import Section


class MemorySection(Section):
    """Keys about activation memory and compilation."""

    gradient_checkpointing: bool | Literal["offload", "offload_disk"] = Field(
        False, description="Compute activations again in the backward pass instead of keeping them."
    )
    gradient_checkpointing_kwargs: dict[str, Any] | None = Field(
        None, description="Arguments of gradient checkpointing; {use_reentrant: false} by default."
    )
    torch_compile: bool | Literal["auto"] = Field(False, description="Compile the model.")
    torch_compile_backend: str | None = Field(None, description="Backend of torch.compile.")
    torch_compile_mode: Literal["default", "reduce-overhead", "max-autotune"] | None = Field(
        None, description="Mode of torch.compile."
    )
