"""How ``whet check`` tells what it found."""

from __future__ import annotations

import sys

from whet import stages
from whet.checks.base import Report, Subject, run_checks
from whet.config import Config, ResolvedRun, check_runnable, check_trainable, resolve
from whet.core.errors import ConfigError, WhetError
from whet.core.printable import write_line
from whet.core.secrets import redact
from whet.distributed.hardware import probe

# Width of the column of names.
_INDENT = 11


def check_and_print(config: Config) -> None:
    """Run every check, print what is known on standard output, and say whether the run is ready.

    Raises:
        WhetError: everything that is wrong, at once.
    """
    hardware = probe()
    problems = [*check_trainable(config), *check_runnable(config, hardware)]
    if problems:
        raise ConfigError(problems)
    resolved = resolve(config, hardware)
    _print_section("config", _config_facts(resolved))
    stages.import_libraries(config)
    with stages.compiler_put_off():
        for report in run_checks(Subject(config, resolved)):
            _print_report(report)
            problems += report.problems
    if problems:
        sys.stdout.flush()
        raise WhetError(problems)
    write_line(f"ready      whet train {config.file}")


def _config_facts(resolved: ResolvedRun) -> list[str]:
    batch = f"{resolved.global_batch_size} rows of up to {resolved.sequence_len:,} tokens each step"
    facts = [
        f"{resolved.config.file}: {resolved.method} on {resolved.hardware.device_name or resolved.device}, {batch}"
    ]
    return [*facts, *(f"{key}: {sentence}" for key, sentence in resolved.choices.items())]


def _print_report(report: Report) -> None:
    facts = list(report.facts)
    if report.problems:
        count = len(report.problems)
        facts.append("1 problem, see below" if count == 1 else f"{count} problems, see below")
    _print_section(report.name, facts)


def _print_section(name: str, facts: list[str]) -> None:
    for number, fact in enumerate(facts):
        title = name if number == 0 else ""
        write_line(f"{title:<{_INDENT}}{redact(fact)}")
