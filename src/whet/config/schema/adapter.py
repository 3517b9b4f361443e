"""Low-rank adapters: LoRA, QLoRA and their variants."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from whet.config.schema.base import Natural, NaturalNumber, Positive, PositiveNumber, Section, Share


class AdapterSection(Section):
    """Keys about the adapter."""

    adapter: str | None = Field(None, description="`lora` or `qlora`; empty trains every weight of the model.")
    lora_model_dir: str | None = Field(None, description="Folder of a trained adapter to go on from.")
    lora_r: Positive = Field(8, description="Rank of the adapter.")
    lora_alpha: Positive = Field(16, description="Scale of the adapter: its output is multiplied by alpha / rank.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Share of the adapter's inputs dropped while training.")
    lora_target_modules: str | tuple[str, ...] | None = Field(
        None, description="Names of the modules to adapt, or one regular expression over full names."
    )
    lora_target_linear: bool = Field(False, description="Adapt every linear layer except the output head.")
    lora_target_parameters: str | tuple[str, ...] | None = Field(
        None, description="Names of bare parameters to adapt, as the expert tensors of mixture models."
    )
    lora_modules_to_save: tuple[str, ...] | None = Field(
        None, description="Modules trained in full beside the adapter, such as embed_tokens and lm_head."
    )
    lora_exclude_modules: str | tuple[str, ...] | None = Field(
        None, description="Modules left alone although a target matches them."
    )
    lora_fan_in_fan_out: bool = Field(False, description="The targets store (in, out) weights, as GPT-2's Conv1D does.")
    lora_rank_pattern: dict[str, Positive] | None = Field(None, description="Regular expression -> rank of its layers.")
    lora_alpha_pattern: dict[str, Positive] | None = Field(
        None, description="Regular expression -> alpha of its layers."
    )
    peft_use_dora: bool = Field(False, description="Learn magnitude and direction apart (DoRA).")
    peft_use_rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) (rank-stabilised LoRA).")
    peft_init_lora_weights: bool | str | None = Field(
        None, description="How the adapter starts: true (B is zero), gaussian or orthogonal."
    )
    peft_layers_to_transform: tuple[Natural, ...] | None = Field(None, description="Numbers of the layers to adapt.")
    peft_layers_pattern: tuple[str, ...] | None = Field(
        None, description="Name of the list of layers that peft_layers_to_transform counts in."
    )
    peft_trainable_token_indices: tuple[Natural, ...] | dict[str, tuple[Natural, ...]] | None = Field(
        None, description="Token ids whose embedding rows are trained beside the adapter."
    )
    peft_autocast_adapter_dtype: bool | None = Field(
        None, description="Keep adapter weights in float32 when the base is 16-bit (PEFT's default is true)."
    )
    allow_other_base: bool = Field(
        False, description="Use an adapter on a base model with other weights than those it was trained on."
    )
    merge_adapters: bool = Field(False, description="Write the merged model after training.")
    loraplus_lr_ratio: PositiveNumber | None = Field(
        None, description="LoRA+: learning rate of the B matrices over that of the A matrices."
    )
    loraplus_lr_embedding: NaturalNumber = Field(1e-6, description="LoRA+: learning rate of adapted embeddings.")
    relora: bool = Field(
        False, description="ReLoRA: merge the adapter into the base every jagged_restart_steps, and start it anew."
    )
    relora_prune_ratio: Share | None = Field(
        None, description="ReLoRA: share of Adam's state that a restart sets to 0; 0.9, or 0.999 under reset, if empty."
    )
    relora_prune_method: Literal["magnitude", "random", "reset"] = Field(
        "magnitude", description="ReLoRA: which entries of it: the smallest, or drawn at random."
    )
    relora_cpu_offload: bool = Field(False, description="ReLoRA: merge on the CPU, a layer at a time.")
    lora_qkv_kernel: bool | None = Field(
        None, description="Compute q, k and v with their adapters as one step; by default where it can be."
    )
    lora_mlp_kernel: bool | None = Field(
        None, description="Compute a gated MLP with its adapters as one step; by default where it can be."
    )
    lora_o_kernel: bool | None = Field(
        None, description="Compute every other adapted projection as one step; by default where it can be."
    )
