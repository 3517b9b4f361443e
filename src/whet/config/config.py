"""The configuration as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from whet.config.origins import DEFAULT, Origin
from whet.config.schema import (
    SECTIONS,
    AdapterSection,
    AttentionSection,
    BatchSection,
    DataSection,
    DistributedSection,
    ExpertsSection,
    KernelsSection,
    LoopSection,
    LossSection,
    MemorySection,
    MethodSection,
    ModelSection,
    OptimizerSection,
    OutputSection,
    PackingSection,
    PrecisionSection,
    QuantSection,
    ScoreSection,
    TemplateSection,
    TokenizerSection,
    TrackingSection,
    owner,
)
from whet.core.errors import Problem


class Config(BaseModel):
    """Everything the user wrote, checked and typed; nothing is ever written back into it.

    The YAML is flat; here a key lives in its section: ``config.optimizer.learning_rate``. Made by `load_config`.

    Attributes:
        file: the YAML's path as it was given; empty for a config made in Python.
        origins: dotted path of each value that was set ("learning_rate", "datasets.0.path") -> where.
        warnings: what the user would want to know and that stops nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    model: ModelSection
    tokenizer: TokenizerSection = TokenizerSection()
    quant: QuantSection = QuantSection()
    adapter: AdapterSection = AdapterSection()
    data: DataSection = DataSection()
    template: TemplateSection = TemplateSection()
    packing: PackingSection = PackingSection()
    batch: BatchSection = BatchSection()
    loop: LoopSection = LoopSection()
    optimizer: OptimizerSection
    precision: PrecisionSection = PrecisionSection()
    memory: MemorySection = MemorySection()
    attention: AttentionSection = AttentionSection()
    kernels: KernelsSection = KernelsSection()
    experts: ExpertsSection = ExpertsSection()
    loss: LossSection = LossSection()
    distributed: DistributedSection = DistributedSection()
    method: MethodSection = MethodSection()
    tracking: TrackingSection = TrackingSection()
    output: OutputSection = OutputSection()
    score: ScoreSection = ScoreSection()

    file: str = ""
    origins: Mapping[str, Origin] = Field(default_factory=dict, repr=False)
    warnings: tuple[Problem, ...] = Field(default=(), repr=False)

    def value(self, key: str) -> Any:
        """The value of a top-level key, by its YAML name."""
        return getattr(getattr(self, owner(key)), key)

    def values(self) -> dict[str, Any]:
        """Every top-level key and its value, as plain Python (nested blocks as dicts, rows as lists of dicts)."""
        return {key: value for name in SECTIONS for key, value in getattr(self, name).model_dump(mode="python").items()}

    def is_set(self, key: str) -> bool:
        """Whether somebody wrote this key (file, environment or command line), whatever its value."""
        return any(path == key or path.startswith(f"{key}.") for path in self.origins)

    def origin(self, path: str | Sequence[str | int]) -> Origin:
        """The origin of a value; that of the nearest enclosing block where the value itself was not written."""
        parts = [path] if isinstance(path, str) else [str(part) for part in path]
        while parts:
            found = self.origins.get(".".join(parts))
            if found is not None:
                return found
            parts = parts[:-1]
        return DEFAULT

    def where(self, path: str | Sequence[str | int]) -> str:
        """The place to name in an error: ``my.yaml:12:9``, a variable, an option; the file if the key is not set."""
        origin = self.origin(path)
        return self.file if origin is DEFAULT else origin.where
