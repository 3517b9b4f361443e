"""whet: fine-tune language models from one YAML file.

    import whet
    config = whet.load_config("my.yaml")
    result = whet.train(config)

Every name is imported when it is first used, so that ``import whet`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whet.config import Config, make_config
    from whet.config.load import load_config
    from whet.core.errors import (
        ArtefactError,
        ConfigError,
        DataError,
        ModelError,
        Problem,
        TrainingStopped,
        WhetError,
    )
    from whet.run import RunResult, evaluate, merge, preprocess, quantize, train

__version__ = "0.1.0"

_HOMES = {
    "Config": "whet.config",
    "load_config": "whet.config",
    "make_config": "whet.config",
    "ArtefactError": "whet.core.errors",
    "ConfigError": "whet.core.errors",
    "DataError": "whet.core.errors",
    "ModelError": "whet.core.errors",
    "Problem": "whet.core.errors",
    "TrainingStopped": "whet.core.errors",
    "WhetError": "whet.core.errors",
    "RunResult": "whet.run",
    "evaluate": "whet.run",
    "merge": "whet.run",
    "preprocess": "whet.run",
    "quantize": "whet.run",
    "train": "whet.run",
}

__all__ = [
    "ArtefactError",
    "Config",
    "ConfigError",
    "DataError",
    "ModelError",
    "Problem",
    "RunResult",
    "TrainingStopped",
    "WhetError",
    "__version__",
    "evaluate",
    "load_config",
    "make_config",
    "merge",
    "preprocess",
    "quantize",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'whet' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
