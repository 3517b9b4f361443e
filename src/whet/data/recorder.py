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
    """What was read: the path of each option, as ``data.sequence_len`` or ``dataset.type``, and its value.

    Args:
        own: the dataset that is called ``dataset`` there, wherever it stands, as ``("datasets", 0)``; the others are
            called by their places. Without it every one is.
    """

    def __init__(self, own: tuple[str, int] | None = None) -> None:
        self.values: dict[str, Any] = {}
        self._own = own
        self._is_closed = False

    def close(self) -> None:
        """From here on only what was read may be read: its values have been given a name."""
        self._is_closed = True

    def note(self, path: str, value: Any) -> None:
        """An option is read.

        Raises:
            RuntimeError: for the first time, and that is too late; a fault of whet's.
        """
        if self._is_closed and path not in self.values:
            raise RuntimeError(f"the option {path} is read after it could name what is prepared; please report this")
        self.values[path] = value

    def place(self, key: str, number: int) -> str:
        """What a dataset is called."""
        return "dataset" if self._own in (None, (key, number)) else f"{key}[{number}]"

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
                copies[name] = tuple(
                    _copy(item, reads, f"{reads.place(name, n) if name in _DATASETS else f'{prefix}{name}[{n}]'}.")
                    for n, item in enumerate(value)
                )
            return copies[name]
        if name not in _DATASETS:
            reads.note(f"{prefix}{name}", getattr(original, name))  # as the user wrote it, in a changed copy too
        return value

    namespace = {"__getattribute__": read, "__module__": __name__, "model_config": {"defer_build": True}}
    made: Any = type(kind)
    return cast(type[BaseModel], made(f"Recorded{kind.__name__}", (kind,), namespace))


def _read_whole(value: Any) -> None:
    for item in value if isinstance(value, tuple) else (value,):
        if isinstance(item, BaseModel):
            item.__dict__  # noqa: B018 - reading it is what counts
