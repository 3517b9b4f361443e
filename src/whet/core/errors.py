"""Everything that can go wrong, as one tree.

    WhetError                  something the user can mend; printed without a traceback, exit code 2
    ├── ConfigError            the YAML, the environment or the command line
    ├── DataError              a source, a row, a template
    ├── ModelError             a model, a tokenizer, an adapter, a device
    ├── ArtefactError          a checkpoint, a merge, an export
    │   └── ParityError        what was written is not the model that was trained; exit code 1
    └── TrainingStopped        the run ended itself to protect its result; exit code 1
        └── StoppedAsAsked     somebody asked it to end; told without "error:"

    RowError                   one row cannot be used; the ledger counts it, the policy decides
    └── RowLeftOut             the user's own code leaves a row out; it is counted, and stops nothing

A fault of ours is any other exception: it shows its traceback and exits with code 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from whet.core.secrets import redact


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: where it is, what was found there, and what to do about it.

    >>> print(Problem("a.yaml:3:1", "unknown key 'learing_rate'", "did you mean 'learning_rate'?"))
    a.yaml:3:1: unknown key 'learing_rate' -> did you mean 'learning_rate'?
    """

    where: str
    found: str
    fix: str
    key: str | None = None

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.found} -> {self.fix}"


class WhetError(Exception):
    """One or more problems that the person at the keyboard can mend."""

    exit_code = 2

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__(redact("\n".join(str(problem) for problem in self.problems)))

    def __reduce__(self) -> tuple[type[WhetError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


class ConfigError(WhetError):
    """The configuration is wrong: in the YAML, the environment or on the command line."""


class DataError(WhetError):
    """A source cannot be read, or its rows are not what the config says they are."""


class ModelError(WhetError):
    """A model, tokenizer or adapter cannot be loaded or used as asked."""


class ArtefactError(WhetError):
    """A checkpoint, merged model or export cannot be read, written or trusted."""


class ParityError(ArtefactError):
    """What was written is not the model that was trained: kept under a name that says so, and not to be used."""

    exit_code = 1


class TrainingStopped(WhetError):
    """The run ended itself because going on would have spoilt its result."""

    exit_code = 1


class StoppedAsAsked(TrainingStopped):
    """Somebody asked the run to stop (Ctrl-C, a signal, a file) and it is kept: no error, and told as none."""


class RowError(Exception):
    """One row cannot become a training sample.

    Args:
        reason: a short phrase, the same for every row with this fault ("no assistant turn"); rows are counted by it.
        detail: what exactly was found in this row.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(reason, detail)

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class RowLeftOut(RowError):
    """The user's own code wants no sample from this row: no fault, whatever `on_bad_row` says, but counted like one."""
