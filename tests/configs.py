"""Configs made in Python, for tests of the data stage."""

from __future__ import annotations

from typing import Any

from whet.config.config import Config
from whet.config.schema import DataSection, MethodSection, ModelSection, OptimizerSection, TemplateSection
from whet.config.schema.data import DatasetConfig

_SECTIONS: dict[str, Any] = {"data": DataSection, "template": TemplateSection, "method": MethodSection}


def config_with(*datasets: dict[str, Any], **keys: Any) -> Config:
    """A config with these datasets (``path`` may be left out) and these top-level keys."""
    sections: dict[str, dict[str, Any]] = {name: {} for name in _SECTIONS}
    for key, value in keys.items():
        name = next(name for name, section in _SECTIONS.items() if key in section.model_fields)
        sections[name][key] = value
    sections["data"]["datasets"] = tuple(DatasetConfig(**{"path": "rows.jsonl", **dataset}) for dataset in datasets)
    return Config(
        model=ModelSection(base_model="none"),
        optimizer=OptimizerSection(learning_rate=1e-3),
        **{name: _SECTIONS[name](**values) for name, values in sections.items()},
    )
