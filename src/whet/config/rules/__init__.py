"""What the keys say about one another: one named function for each rule, which looks and never writes.

A rule is ``(Config) -> Problem | None``. Rules stop a config, remarks only tell.
"""

from __future__ import annotations

from whet.config.config import Config
from whet.config.rules.adapters import ADAPTER_RULES
from whet.config.rules.base import Rule
from whet.config.rules.data import DATA_RULES
from whet.config.rules.experts import EXPERTS_RULES
from whet.config.rules.loop import LOOP_RULES
from whet.config.rules.loss import LOSS_RULES
from whet.config.rules.machine import MACHINE_RULES, check_runnable
from whet.config.rules.memory import MEMORY_RULES
from whet.config.rules.mixing import MIXING_RULES
from whet.config.rules.names import NAME_RULES, check_trainable
from whet.config.rules.optimizer import OPTIMIZER_RULES
from whet.config.rules.partial import PARTIAL_RULES
from whet.config.rules.quantisation import QUANTISATION_RULES
from whet.config.rules.remarks import REMARKS
from whet.config.rules.rows import row_problems, row_remarks
from whet.config.rules.streaming import STREAMING_RULES
from whet.config.rules.training import TRAINING_RULES
from whet.config.rules.trust import TRUST_RULES
from whet.core.errors import Problem

RULES: tuple[Rule, ...] = (
    *DATA_RULES,
    *MIXING_RULES,
    *STREAMING_RULES,
    *LOOP_RULES,
    *ADAPTER_RULES,
    *EXPERTS_RULES,
    *QUANTISATION_RULES,
    *TRAINING_RULES,
    *LOSS_RULES,
    *MEMORY_RULES,
    *OPTIMIZER_RULES,
    *PARTIAL_RULES,
    *NAME_RULES,
    *TRUST_RULES,
    *MACHINE_RULES,
)


def broken_rules(config: Config) -> list[Problem]:
    """Every contradiction in a config."""
    found = [rule(config) for rule in RULES]
    return [problem for problem in found if problem is not None] + row_problems(config)


def remarks(config: Config) -> list[Problem]:
    """What the user would want to know and that contradicts nothing."""
    found = [rule(config) for rule in REMARKS]
    return [problem for problem in found if problem is not None] + row_remarks(config)


__all__ = ["REMARKS", "RULES", "Rule", "broken_rules", "check_runnable", "check_trainable", "remarks"]
