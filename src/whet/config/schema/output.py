"""Where the result goes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from whet.config.schema.base import Section


class OutputSection(Section):
    """Keys about the output."""

    output_dir: str = Field("./model-out", min_length=1, description="Folder of the result, checkpoints and logs.")
    hub_model_id: str | None = Field(None, description="Repository on the hub to push to (private when created).")
    hub_strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] | None = Field(
        None, description="When to push; every_save by default."
    )
    hub_revision: str | None = Field(None, description="Branch to push to; main by default.")
    save_safetensors: bool = Field(True, description="Weights are written as safetensors; nothing else is offered.")
    parity: bool = Field(
        True,
        description="Load each written adapter or model in a fresh process, compare it with the live one, and keep the "
        "result in parity.json; one that differs ends the command with exit code 1.",
    )
