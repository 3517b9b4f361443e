"""What of a preparation is refused, and what is warned of, once every row is accounted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from whet.core.errors import DataError, Problem
from whet.core.log import warn
from whet.data.ledger import Ledger, bad_row_problems, nothing_kept_problem, too_long_problem
from whet.data.sample_table import EncodedPart
from whet.data.samples import Kind


@dataclass(frozen=True, slots=True)
class Demands:
    """What is asked of a dataset's account.

    Attributes:
        where: place in the YAML of its path.
        most: tokens of a sample.
        bad_rows_end, long_rows_end: whether rows that cannot be used, or are too long, are an error.
    """

    where: str
    most: int
    bad_rows_end: bool
    long_rows_end: bool


def refuse_mixed(parts: Sequence[EncodedPart]) -> None:
    """Raise DataError unless all samples of a set are of one kind."""
    kinds: dict[Kind, EncodedPart] = {}
    for part in parts:
        for chunk in part.chunks:
            if chunk.account.samples:
                kinds.setdefault(chunk.account.kind, part)
    if len(kinds) > 1:
        (one, first), (other, second), *_ = kinds.items()
        found = f"'{second.name}' gives samples of another kind ({other}) than '{first.name}' ({one})"
        raise DataError(Problem(second.where, found, "use types of one kind in a run"))


def refuse_ledgers(ledgers: Sequence[Ledger], demands: Sequence[Demands]) -> None:
    """Raise one DataError for everything that is wrong with the rows."""
    problems = ledger_problems(ledgers, demands)
    if problems:
        raise DataError(problems)


def with_rows(error: DataError, ledgers: Sequence[Ledger], demands: Sequence[Demands]) -> DataError:
    """An error about the samples that are left, with why there are no more: perhaps the rows need mending."""
    of_rows = ledger_problems(ledgers, demands) if demands else []
    if of_rows:
        return DataError([*of_rows, *error.problems])
    dropped, read = sum(ledger.num_dropped for ledger in ledgers), sum(ledger.read for ledger in ledgers)
    if not dropped:
        return error
    why = f" ({dropped:,} of {read:,} rows were dropped)"
    return DataError(replace(problem, found=problem.found + why) for problem in error.problems)


def ledger_problems(ledgers: Sequence[Ledger], demands: Sequence[Demands]) -> list[Problem]:
    """Everything that is wrong with the rows."""
    problems: list[Problem] = []
    for ledger, asked in zip(ledgers, demands, strict=True):
        found = list(bad_row_problems(ledger)) if asked.bad_rows_end else []
        too_long = too_long_problem(ledger, asked.most) if asked.long_rows_end else None
        if too_long:
            found.append(too_long)
        nothing = nothing_kept_problem(ledger, asked.where, asked.most)
        problems += found or ([nothing] if nothing else [])
    return problems


def warn_of_overlap(manifest: Mapping[str, Any], where: str) -> None:
    """An evaluation on rows that are trained on says nothing about other rows."""
    overlap = manifest.get("eval_overlap", {})
    count = overlap.get("exact", 0) + overlap.get("near", 0)
    if count:
        (one, other), *_ = overlap["examples"]
        found = f"{count:,} of {overlap['rows']:,} test rows are training rows too ({one} = {other})"
        fix = "take them out, or set `eval_overlap: drop`"
        warn(Problem(where, found, fix, "eval_overlap"))


def warn_of_date(day: str, where: str) -> None:
    """Said once: all datasets are told the same day."""
    found = f"the chat template writes the date of preparation, {day}, into samples; every day they are others"
    fix = f'give it a date that stays in chat_template_kwargs; templates like Llama 3\'s read `date_string: "{day}"`'
    warn(Problem(where, found, fix, "chat_template"))
