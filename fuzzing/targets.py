"""Every target, by its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fuzzing import of_data, of_models, of_runs
from fuzzing.target import Target

TARGETS: Mapping[str, Target] = {**of_data.TARGETS, **of_runs.TARGETS, **of_models.TARGETS}

FINDINGS = Path(__file__).with_name("findings")


def inputs(name: str) -> dict[str, bytes]:
    """The seeds of a target, and what has broken it once."""
    found = dict(TARGETS[name].seeds())
    for path in sorted((FINDINGS / name).glob("*")):
        found[path.name] = path.read_bytes()
    return found
