"""One YAML file, the environment and the command line -> a Config, or every problem at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from whet.config.config import Config
from whet.config.files import located, missing_files
from whet.config.keys import Findings, canonical, ours
from whet.config.overrides import from_command_line, from_environment
from whet.config.rules import broken_rules, remarks
from whet.config.secret_values import secrets_in
from whet.config.source import Node, read_yaml
from whet.config.tree import Setting, origins_of, overlay, plant
from whet.config.validation import sections_of
from whet.core.errors import ConfigError, Problem
from whet.core.secrets import remember


def load_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    *,
    check_files: bool = True,
) -> Config:
    """Read a config: defaults < the file < ``.env`` and ``WHET_*`` < the command line.

    Args:
        path: the YAML file.
        overrides: words of the command line, as ``--learning-rate 1e-4 --no-bf16 --lora.r=8``.
        environ: variables to read; None takes the process's own and those of a ``.env`` in the working folder.
        check_files: report local files and folders that are named and not there.

    Raises:
        ConfigError: everything that is wrong, in the order of the file.
    """
    findings = Findings()
    root, problems = read_yaml(Path(path), str(path))
    findings.problems += problems
    options, problems = from_command_line(overrides)
    findings.problems += problems
    variables, problems = from_environment(environ)
    findings.problems += problems
    return build(root, [*variables, *options], str(path), findings, check_files=check_files)


def make_config(values: Mapping[str, Any], *, check_files: bool = True) -> Config:
    """A config of Python values under the YAML's flat keys, checked exactly as a file is.

    Raises:
        ConfigError: everything that is wrong; places are dotted paths.
    """
    return build(plant(values), [], "", Findings(), check_files=check_files)


def build(root: Node, settings: Sequence[Setting], file: str, findings: Findings, *, check_files: bool) -> Config:
    """A config of a tree and what is laid over it.

    Args:
        file: the YAML's path, beside which files are looked for; empty where there is none.
        findings: with what was found wrong so far.

    Raises:
        ConfigError: everything that is wrong.
    """
    root, problems = overlay(canonical(root, findings), settings)
    findings.problems += problems
    remember(secrets_in(root))  # before anything is said of it
    entries = located(ours(root, findings), Path(file).parent)
    sections = sections_of(entries, file, findings)
    draft = Config.model_validate({**sections, "file": file, "origins": origins_of(entries)})
    findings.problems += _judged(broken_rules(draft), findings.spoilt)
    if check_files:
        findings.problems += _judged(missing_files(draft), findings.spoilt)
    if findings.problems:
        raise ConfigError(sorted(dict.fromkeys(findings.problems), key=_place))
    warnings = sorted([*findings.warnings, *remarks(draft)], key=_place)
    return draft.model_copy(update={"warnings": tuple(warnings)})


def _judged(problems: Iterable[Problem], spoilt: set[str]) -> list[Problem]:
    """Problems that do not rest on a key whose own value is wrong already."""
    words = {problem: set(re.findall(r"\w+", f"{problem.found} {problem.key}")) for problem in problems}
    return [problem for problem, mentioned in words.items() if not mentioned & spoilt]


def _place(problem: Problem) -> tuple[int, int]:
    """Order of the file; what stands elsewhere comes last."""
    position = re.search(r":(\d+):(\d+)$", problem.where)
    return (int(position[1]), int(position[2])) if position else (1 << 31, 0)
