"""What the user writes: one YAML file, the environment and the command line, as one frozen, checked value."""

from __future__ import annotations

from whet.config.config import Config
from whet.config.origins import Origin
from whet.config.schema import DatasetConfig

__all__ = ["Config", "DatasetConfig", "Origin"]
