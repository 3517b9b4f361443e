"""What the user writes: one YAML file, the environment and the command line, as one frozen, checked value.

load_config   a file (and WHET_* variables, and command-line words) -> Config, or every problem at once
make_config   the same from Python values
resolve       Config and Hardware -> ResolvedRun, with everything that was left open decided
check_runnable  what keeps a valid config from training on a machine
check_trainable  what keeps it from training anywhere, although its data can be prepared
explain       every value and where it came from
json_schema   for editors
"""

from __future__ import annotations

from whet.config.config import Config
from whet.config.explain import explain
from whet.config.json_schema import json_schema
from whet.config.load import load_config, make_config
from whet.config.origins import Origin
from whet.config.resolve import ResolvedRun, resolve
from whet.config.rules import check_runnable, check_trainable
from whet.config.schema import DatasetConfig

__all__ = [
    "Config",
    "DatasetConfig",
    "Origin",
    "ResolvedRun",
    "check_runnable",
    "check_trainable",
    "explain",
    "json_schema",
    "load_config",
    "make_config",
    "resolve",
]
