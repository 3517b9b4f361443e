"""Which base model, and how it is loaded."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from whet.config.schema.base import Positive, Section


class ModelSection(Section):
    """Keys about the base model."""

    base_model: str = Field(min_length=1, description="Folder or hub id of the model to start from.")
    base_model_config: str | None = Field(
        None, description="Folder or hub id of the model's config.json, when it is not beside the weights."
    )
    model_type: str | None = Field(
        None, description="Model class of transformers, such as LlamaForCausalLM; AutoModelForCausalLM by default."
    )
    cls_model_config: str | None = Field(None, description="Config class of transformers; AutoConfig by default.")
    overrides_of_model_config: dict[str, Any] | None = Field(
        None, description="Values that replace those of the model's config.json (written model_config)."
    )
    overrides_of_model_kwargs: dict[str, Any] | None = Field(
        None, description="Extra arguments of from_pretrained (written model_kwargs)."
    )
    revision_of_model: str | None = Field(
        None, description="Branch, tag or commit of the model on the hub (also written model_revision)."
    )
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model or tokenizer.")
    reinit_weights: bool = Field(False, description="Start from random weights of the model's architecture.")
    device_map: str | dict[str, int | str] | None = Field(
        None, description="Placement of the layers, as transformers understands it; one process only."
    )
    max_memory: dict[int | str, int | str] | None = Field(
        None, description="Most memory per device while loading, such as {0: 20GiB, cpu: 60GiB}."
    )
    unfrozen_parameters: tuple[str, ...] | None = Field(
        None, description="Regular expressions; only parameters whose name matches one are trained."
    )
    lisa_n_layers: Positive | None = Field(None, description="LISA: train so many layers at a time, drawn at random.")
    lisa_step_interval: Positive | None = Field(None, description="LISA: steps until other layers are drawn.")
    lisa_layers_attribute: str = Field("model.layers", description="LISA: where the model keeps its list of layers.")
    spectrum_top_fraction: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Spectrum: train this share of the matrices of each kind, those with most signal over noise.",
    )
    spectrum_model_name: str | None = Field(
        None, description="Spectrum: Axolotl's name of ready-made measurements; whet measures base_model itself."
    )
