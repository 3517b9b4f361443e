"""The sections of the YAML. Each key belongs to exactly one; the YAML itself is flat.

>>> owner("lora_r")
'adapter'
"""

from __future__ import annotations

from functools import cache

from pydantic.fields import FieldInfo

from whet.config.schema.adapter import AdapterSection
from whet.config.schema.attention import AttentionSection
from whet.config.schema.base import Section
from whet.config.schema.batch import BatchSection
from whet.config.schema.data import DataSection, DatasetConfig, Phase, PromptFormat
from whet.config.schema.distributed import DistributedSection, FsdpConfig
from whet.config.schema.experts import ExpertsSection
from whet.config.schema.kernels import KernelsSection
from whet.config.schema.loop import LoopSection
from whet.config.schema.loss import LossSection
from whet.config.schema.memory import MemorySection, SelectiveCheckpointing
from whet.config.schema.method import MethodSection
from whet.config.schema.model import ModelSection
from whet.config.schema.optimizer import LrGroup, OptimizerSection
from whet.config.schema.output import OutputSection
from whet.config.schema.packing import PackingSection
from whet.config.schema.precision import PrecisionSection
from whet.config.schema.quant import QatConfig, QuantizationConfig, QuantSection
from whet.config.schema.score import ScoreSection
from whet.config.schema.template import TemplateSection
from whet.config.schema.tokenizer import SpecialTokens, TokenizerSection
from whet.config.schema.tracking import TrackingSection

SECTIONS: dict[str, type[Section]] = {
    "model": ModelSection,
    "tokenizer": TokenizerSection,
    "quant": QuantSection,
    "adapter": AdapterSection,
    "data": DataSection,
    "template": TemplateSection,
    "packing": PackingSection,
    "batch": BatchSection,
    "loop": LoopSection,
    "optimizer": OptimizerSection,
    "precision": PrecisionSection,
    "memory": MemorySection,
    "attention": AttentionSection,
    "kernels": KernelsSection,
    "experts": ExpertsSection,
    "loss": LossSection,
    "distributed": DistributedSection,
    "method": MethodSection,
    "tracking": TrackingSection,
    "output": OutputSection,
    "score": ScoreSection,
}


@cache
def fields() -> dict[str, FieldInfo]:
    """Every top-level key and its field, in the order of the sections."""
    return {key: field for section in SECTIONS.values() for key, field in section.model_fields.items()}


@cache
def _owners() -> dict[str, str]:
    return {key: name for name, section in SECTIONS.items() for key in section.model_fields}


def owner(key: str) -> str:
    """The section that holds a key."""
    return _owners()[key]


__all__ = [
    "SECTIONS",
    "AdapterSection",
    "AttentionSection",
    "BatchSection",
    "DataSection",
    "DatasetConfig",
    "DistributedSection",
    "ExpertsSection",
    "FsdpConfig",
    "KernelsSection",
    "LoopSection",
    "LossSection",
    "LrGroup",
    "MemorySection",
    "MethodSection",
    "ModelSection",
    "OptimizerSection",
    "OutputSection",
    "PackingSection",
    "Phase",
    "PrecisionSection",
    "PromptFormat",
    "QatConfig",
    "QuantSection",
    "QuantizationConfig",
    "ScoreSection",
    "Section",
    "SelectiveCheckpointing",
    "SpecialTokens",
    "TemplateSection",
    "TokenizerSection",
    "TrackingSection",
    "fields",
    "owner",
]
