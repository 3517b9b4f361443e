"""``whet inspect``: the prepared data as a page to look at, each token with its label."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whet.cli.options import ConfigFile, arguments_of

if TYPE_CHECKING:
    from whet.config import Config

ROWS_OF_PAGE, ROWS_OF_TERMINAL = 1000, 5


def inspect(
    context: typer.Context,
    config_file: ConfigFile,
    rows: Annotated[
        int | None,
        typer.Option(
            "--rows", min=1, metavar="N", help=f"How many samples; {ROWS_OF_PAGE}, or {ROWS_OF_TERMINAL} in a terminal."
        ),
    ] = None,
    row: Annotated[
        str | None, typer.Option("--row", metavar="PLACE", help="Only the samples of one row: chat.jsonl:12.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="The page; inspect-<name>.html in output_dir if not given."),
    ] = None,
    terminal: Annotated[bool, typer.Option("--terminal", help="Print it instead of writing a page.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Serve the page to this machine until Ctrl-C.")] = False,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, metavar="N", help="With --serve; a free one if not given.")
    ] = None,
) -> None:
    """Look at the data of CONFIG as it will be trained.

    Prepares the data, or finds it prepared, and writes one HTML file that opens without a network: every token with
    its label, search and filters, packs, figures, and what was dropped and why.
    """
    from whet.cli.session import open_config
    from whet.run import inspect as inspect_run

    if terminal:
        _refuse_options_of_a_page({"--output": output is not None, "--serve": serve, "--port": port is not None})
    config = open_config(config_file, arguments_of(context))
    inspection = inspect_run(config, rows=rows or (ROWS_OF_TERMINAL if terminal else ROWS_OF_PAGE), row=row)
    if terminal:
        from whet.reports.terminal import print_inspection

        print_inspection(inspection)
        return
    from whet.reports.page import page

    text = page(inspection)
    _write(text, output or _default_output(config))
    if serve or port is not None:
        _serve(text, port or 0)


def _refuse_options_of_a_page(written: Mapping[str, bool]) -> None:
    from whet.core.errors import ConfigError, Problem

    option = next((option for option, is_written in written.items() if is_written), None)
    if option is not None:
        found = f"--terminal prints the rows, and {option} is about a page"
        raise ConfigError(Problem("whet inspect", found, "leave one of them out"))


def _default_output(config: Config) -> Path:
    """In `output_dir` where the config names one, else in the working directory."""
    named = config.origin("output_dir").kind != "default"
    folder = Path(config.output.output_dir) if named else Path()
    return folder / f"inspect-{Path(config.file).stem or 'data'}.html"


def _write(text: str, output: Path) -> None:
    from whet.core.errors import ConfigError, Problem

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.is_symlink():
            output.unlink()  # the page takes its place; what it led to stays as it is
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        found = f"'{output}' cannot be written ({error.strerror})"
        raise ConfigError(Problem("--output", found, "name a file in a folder that you may write to")) from error
    sys.stdout.write(f"{output}\n")
    sys.stdout.flush()


def _serve(text: str, port: int) -> None:
    """Serve the page until Ctrl-C, which is how it is meant to end."""
    from whet.core.log import say
    from whet.reports.server import serving

    with serving(text.encode(), port) as (server, address):
        sys.stdout.write(f"{address}\n")
        sys.stdout.flush()
        say("serving to this machine alone; Ctrl-C ends it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("\nended")
