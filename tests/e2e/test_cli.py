"""The command itself: help is light, every misuse is one clear line, and each kind of end has its exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = [
    [],
    ["train"],
    ["preprocess"],
    ["check"],
    ["inference"],
    ["chat"],
    ["merge-lora"],
    ["evaluate"],
    ["config"],
    ["config", "schema"],
    ["config", "explain"],
]

HEAVY = ["torch", "transformers", "numpy", "datasets", "pydantic", "peft", "accelerate", "pyarrow", "ruamel"]

SHOW_HEAVY_MODULES = f"""
import sys
from whet.cli.main import run_command
code = run_command(sys.argv[1:])
print("HEAVY", sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
raise SystemExit(code)
"""


def whet(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "whet", *arguments], capture_output=True, text=True, cwd=folder, timeout=120, check=False
    )


def modules_after(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SHOW_HEAVY_MODULES, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command) or "whet")
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    result = modules_after(*command, "--help")
    assert result.returncode == 0, result.stderr
    assert "Usage: whet" in result.stdout
    assert "HEAVY []" in result.stderr


@pytest.mark.parametrize("command", [command for command in COMMANDS if command], ids=" ".join)
def test_every_command_is_named_in_the_help_above_it(command: list[str]) -> None:
    listing = whet(*command[:-1], "--help").stdout
    assert f"\n  {command[-1]} " in listing


def test_version_and_help_by_the_module_are_those_of_the_command() -> None:
    from whet import __version__

    assert whet("--version").stdout == f"whet {__version__}\n"
    assert whet().stdout == whet("--help").stdout == whet("-h").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "my.yaml"], "error: whet: there is no command 'trian' -> did you mean 'train'?"),
        (["config", "explian"], "error: whet config: there is no command 'explian' -> did you mean 'explain'?"),
        (["train"], "error: whet train: no CONFIG was given -> put the YAML file first: whet train my.yaml"),
        (
            ["train", "my.yaml", "--lancher", "torchrun"],
            "error: whet train: unknown option '--lancher' -> did you mean '--launcher'?",
        ),
        (
            ["preprocess", "my.yaml", "--debug_num_exampels", "3"],
            "error: whet preprocess: unknown option '--debug_num_exampels' -> did you mean '--debug-num-examples'?",
        ),
        (
            ["train", "my.yaml", "--launcher", "ray"],
            "error: whet train: invalid value for '--launcher': 'ray' is not one of 'python', 'torchrun' -> "
            "'whet train --help' shows what it takes",
        ),
        (
            ["train", "my.yaml", "--num-processes", "2"],
            "error: whet train: --num-processes has no meaning for one process -> add --launcher torchrun",
        ),
        (
            ["train", "my.yaml", "--", "--max-restarts", "1"],
            "error: whet train: nothing takes the arguments after '--': --max-restarts 1 -> add --launcher torchrun",
        ),
        (
            ["check", "my.yaml", "second.yaml"],
            "error: whet check: got unexpected extra argument(s) (second.yaml) -> "
            "'whet check --help' shows what it takes",
        ),
        (
            ["config", "schema", "--outptu", "x.json"],
            "error: whet config schema: no such option: --outptu (Possible options: --output) -> "
            "'whet config schema --help' shows what it takes",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_misused_command_gets_one_clear_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    result = whet(*arguments)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [message]
    assert result.stdout == ""
