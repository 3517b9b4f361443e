"""Rules about mixtures of experts."""

from __future__ import annotations

from whet.config.config import Config
from whet.config.resolve import wanted_experts
from whet.config.rules.base import Rule, at
from whet.core.errors import Problem


def experts_have_one_implementation(config: Config) -> Problem | None:
    wanted = wanted_experts(config)
    if len(set(wanted.values())) < 2:
        return None
    (first, name), *others = wanted.items()
    key, other = next((key, other) for key, other in others if other != name)
    return at(config, key, f"{key} asks for {other}, and {first} for {name}", "keep one of them")


def scatter_or_sonic(config: Config) -> Problem | None:
    if not (config.experts.use_scattermoe and config.experts.use_sonicmoe):
        return None
    return at(config, "use_sonicmoe", "use_scattermoe and use_sonicmoe are both true", "keep one of them")


EXPERTS_RULES: tuple[Rule, ...] = (experts_have_one_implementation, scatter_or_sonic)
