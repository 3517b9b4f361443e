"""What a newcomer types by habit: answered with what to type instead, and never with a wrong guess."""

from __future__ import annotations

import pytest

from whet.cli.elsewhere import COMMANDS, OPTIONS
from whet.cli.main import build_app, run_command


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert run_command(argv) == 2
    return capsys.readouterr().err


def names_of_commands() -> set[str | None]:
    app = build_app()
    return {command.name for command in (*app.registered_commands, *app.registered_groups)}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_of_another_program_is_answered_with_ours(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert name not in names_of_commands(), "it is a command now: take it out of the table"
    assert said(capsys, name, "my.yaml") == f"error: whet: there is no command '{name}' -> {COMMANDS[name]}\n"


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_of_another_program_is_answered_with_ours(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from whet.config.schema import fields

    assert name.removeprefix("--").replace("-", "_") not in fields(), "it is a key now: take it out of the table"
    assert said(capsys, "push", "my.yaml", name) == f"error: whet push: unknown option '{name}' -> {OPTIONS[name]}\n"


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ("--resume", "did you mean '--resume-from-checkpoint'?"),
        ("--num", "did you mean '--num-processes'?"),
        ("--num_proceses", "did you mean '--num-processes'?"),
    ],
)
def test_an_option_cut_short_or_mistyped_is_completed(
    option: str, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        said(capsys, "train", "my.yaml", option, "2") == f"error: whet train: unknown option '{option}' -> {advice}\n"
    )


def test_help_is_never_what_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--help" not in said(capsys, "train", "my.yaml", "--shelp").split("->")[0]
    assert "did you mean '--help'" not in said(capsys, "train", "my.yaml", "--shelp")
