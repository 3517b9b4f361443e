"""Configs that write down which of their values are read.

A prepared set is named by what made it. Which options those are is not listed by hand: the pipeline is given a config
made here, and what it reads is the list.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

from pydantic import BaseModel

from whet.config import Config

_FREE = frozenset({"file", "origins", "warnings"})
"""Fields that say where values come from; they shape no sample."""


class Reads:
    """What was read: the path of each option, as ``data.sequence_len`` or ``dataset.type``, and its value."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def of(self, config: Config) -> Config:
        """The same config, whose reads are written down here."""
        return cast(Config, _copy(config, self, ""))


def _copy(model: BaseModel, reads: Reads, prefix: str) -> BaseModel:
    kind = _recording(type(model))
    copy = kind.__new__(kind)
    object.__setattr__(copy, "__dict__", {**model.__dict__, "_recorded": (reads, prefix, {}, model)})
    for name in ("__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__"):
        object.__setattr__(copy, name, getattr(model, name))
    return copy


_DATASETS = frozenset({"datasets", "test_datasets"})
_WHOLE = frozenset({"__dict__", "model_dump", "model_dump_json"})
"""Attributes through which every field may be read, those of blocks in it too."""


@cache
def _recording(kind: type[BaseModel]) -> type[BaseModel]:
    """A subclass whose fields report that they are read."""
    fields = frozenset(kind.model_fields) - _FREE

    def read(self: BaseModel, name: str) -> Any:
        if name in _WHOLE:
            for field in fields:
                _read_whole(getattr(self, field))
        value = object.__getattribute__(self, name)
        if name not in fields:
            return value
        reads, prefix, copies, original = object.__getattribute__(self, "__dict__")["_recorded"]
        if isinstance(value, BaseModel):
            if name not in copies:
                copies[name] = _copy(value, reads, f"{prefix}{name}.")
            return copies[name]
        if isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            if name not in copies:
                within = "dataset." if name in _DATASETS else f"{prefix}{name}."
                copies[name] = tuple(_copy(item, reads, within) for item in value)
            return copies[name]
        if name not in _DATASETS:
            reads.values[f"{prefix}{name}"] = getattr(original, name)  # as the user wrote it, in a changed copy too
        return value

    namespace = {"__getattribute__": read, "__module__": __name__, "model_config": {"defer_build": True}}
    made: Any = type(kind)
    return cast(type[BaseModel], made(f"Recorded{kind.__name__}", (kind,), namespace))


def _read_whole(value: Any) -> None:
    for item in value if isinstance(value, tuple) else (value,):
        if isinstance(item, BaseModel):
            item.__dict__  # noqa: B018 - reading it is what counts
