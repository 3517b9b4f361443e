"""How a command ends: the exit code and the words for each kind of end."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from whet.cli import main
from whet.cli.problems import print_problems
from whet.core.errors import DataError, Problem, StoppedAsAsked, TrainingStopped


@pytest.fixture
def command_that(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    def run(error: BaseException) -> int:
        def command() -> None:
            raise error

        monkeypatch.setitem(main._COMMANDS, "train", command)
        return main.run_command(["train"])

    return run


def test_every_problem_has_its_line_and_several_are_counted(
    command_that: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    error = DataError([Problem("a.jsonl:3", "no field 'messages'", "add it"), Problem("b", "empty", "add rows")])
    assert command_that(error) == 2
    assert capsys.readouterr().err == (
        "error: a.jsonl:3: no field 'messages' -> add it\nerror: b: empty -> add rows\n2 errors\n"
    )


def test_a_text_from_elsewhere_neither_drives_the_terminal_nor_looks_like_a_line_of_ours(
    command_that: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_that(DataError(Problem("a.jsonl:1", "it has \x1b]0;x\x07\nerror: fake", "mend it"))) == 2
    assert capsys.readouterr().err == "error: a.jsonl:1: it has ␛]0;x␇\n    error: fake -> mend it\n"


def test_a_run_that_ended_itself_exits_1_without_a_traceback(
    command_that: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_that(TrainingStopped(Problem("step 9", "the loss is not finite", "lower learning_rate"))) == 1
    assert capsys.readouterr().err == "error: step 9: the loss is not finite -> lower learning_rate\n"


def test_a_stop_that_was_asked_for_is_no_error(
    command_that: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_that(StoppedAsAsked(Problem("step 9", "stopped by Ctrl-C; out/checkpoint-9 is saved", "go on"))) == 1
    assert capsys.readouterr().err == "step 9: stopped by Ctrl-C; out/checkpoint-9 is saved -> go on\n"


def test_a_fault_of_ours_shows_its_traceback_and_where_to_report_it(
    command_that: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_that(RuntimeError("boom")) == 1
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert "RuntimeError: boom" in shown
    assert shown.splitlines()[-1].startswith("This is a fault in whet, not in your file.")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), EOFError()])
def test_ctrl_c_is_one_sentence_and_130_and_an_eof_is_a_fault(
    command_that: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    code = command_that(error)
    shown = capsys.readouterr().err
    if isinstance(error, KeyboardInterrupt):
        assert code == 130
        assert "Interrupted." in shown
        assert "Traceback" not in shown
    else:
        assert code == 1
        assert "EOFError" in shown


def test_one_problem_is_not_counted(capsys: pytest.CaptureFixture[str]) -> None:
    print_problems([Problem("x", "y", "z")])
    assert capsys.readouterr().err == "error: x: y -> z\n"
    assert sys.exc_info() == (None, None, None)
