"""The two faces of a chat: a person at a terminal, and lines from a pipe."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import closing

from rich.console import Console

from whet.cli.problems import print_problems
from whet.core.errors import Problem, WhetError
from whet.core.printable import printable
from whet.serving.conversation import Answer, Conversation, Leave, Reply
from whet.serving.engine import Engine
from whet.serving.sampling import Sampling

FAILED_CODE = 2

# Python's stand-ins for bytes that are not UTF-8.
_SURROGATE = re.compile("[\ud800-\udfff]")


def chat(engine: Engine, sampling: Sampling, *, prompt: str | None, system: str | None, keep_history: bool) -> int:
    """Answer one prompt, the lines of a pipe, or a person, until there is no more to answer.

    Returns:
        The exit code: 2 if a line from a pipe could not be answered, else 0.

    Raises:
        WhetError: the one prompt could not be answered.
    """
    conversation = Conversation(engine, sampling, system, keep_history)
    if prompt is not None:
        _write_answer(conversation.ask(prompt).pieces)
        return 0
    if not sys.stdin.isatty():
        return _answer_pipe(conversation)
    _talk(conversation)
    return 0


def _answer_pipe(conversation: Conversation) -> int:
    code = 0
    for number, line in enumerate(sys.stdin, start=1):
        if not line.strip():
            continue
        try:
            if _SURROGATE.search(line):
                raise WhetError(Problem(f"line {number}", "the prompt is not UTF-8", "send it as UTF-8"))
            reply = conversation.reply(line.rstrip("\r\n"))
            if isinstance(reply, Leave):
                break
            _write_reply(reply)
        except WhetError as error:
            print_problems(error.problems)
            code = FAILED_CODE
    return code


def _write_reply(reply: Reply) -> None:
    if isinstance(reply, Answer):
        _write_answer(reply.pieces)
    elif not isinstance(reply, Leave):
        sys.stdout.write(f"{reply.text}\n")


def _write_answer(pieces: Iterator[str]) -> None:
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def _talk(conversation: Conversation) -> None:
    _turn_on_line_editing()
    console = Console(highlight=False)
    console.print(f"[bold]{conversation.engine.description}[/bold]")
    console.print("[dim]/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.[/dim]\n")
    while True:
        try:
            line = input("you> ").strip()
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            console.print("\n[dim]/quit or Ctrl-D leaves.[/dim]")
            continue
        if not line:
            continue
        try:
            reply = conversation.reply(line)
            if isinstance(reply, Leave):
                return
            _show(reply, console)
        except WhetError as error:
            for problem in error.problems:
                console.print(f"error: {printable(str(problem))}", style="red", markup=False)
        except KeyboardInterrupt:
            console.print(" [dim][stopped][/dim]", markup=True)
        console.print()


def _show(reply: Reply, console: Console) -> None:
    if isinstance(reply, Answer):
        # Closed at once when Ctrl-C comes, so that nothing goes on generating behind the next prompt.
        with closing(reply.pieces) as pieces:
            for piece in pieces:
                console.file.write(printable(piece))
                console.file.flush()
        console.file.write("\n")
    elif not isinstance(reply, Leave):
        console.print(printable(reply.text), style="cyan", markup=False)


def _turn_on_line_editing() -> None:
    """Arrow keys and recall at the prompt; Python on some systems (Windows, minimal builds) comes without it."""
    try:
        import readline  # noqa: F401  # importing it is what turns it on
    except ImportError:
        return
