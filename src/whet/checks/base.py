"""What a check is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from whet.checks import CHECKS, in_order
from whet.config import Config
from whet.config.resolve import ResolvedRun
from whet.core.errors import Problem, WhetError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Subject:
    """The run to be checked. What several checks need is made once, when the first of them asks."""

    config: Config
    resolved: ResolvedRun

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The run's tokenizer, with its chat template.

        Raises:
            WhetError: it cannot be loaded; each check that needs it meets the same error.
        """
        from whet.training.tokenizer import run_tokenizer

        return run_tokenizer(self.config)


class Check(Protocol):
    """One check: yields facts worth knowing and problems found; may also raise a WhetError."""

    def __call__(self, subject: Subject) -> Iterator[str | Problem]: ...


@dataclass(frozen=True, slots=True)
class Report:
    """What one check found.

    Attributes:
        name: of the check.
        facts: sentences for the user.
        problems: what would stop the run.
    """

    name: str
    facts: tuple[str, ...]
    problems: tuple[Problem, ...]


def run_checks(subject: Subject) -> Iterator[Report]:
    """Run every check in the order of its name's line in the table; contributed ones follow.

    A problem that an earlier check has reported already is not reported again.
    """
    known: set[Problem] = set()
    for name in in_order():
        report = _run(name, CHECKS.load(name), subject)
        new = tuple(problem for problem in dict.fromkeys(report.problems) if problem not in known)
        known.update(new)
        yield Report(name, report.facts, new)


def _run(name: str, check: Check, subject: Subject) -> Report:
    facts: list[str] = []
    problems: list[Problem] = []
    try:
        for finding in check(subject):
            if isinstance(finding, Problem):
                problems.append(finding)
            else:
                facts.append(finding)
    except WhetError as error:
        problems += error.problems
    return Report(name, tuple(facts), tuple(problems))
