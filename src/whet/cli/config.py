"""``whet config schema`` and ``whet config explain``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from whet.cli.options import ConfigFile, arguments_of


def schema(
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write it there, not to standard output.")
    ] = None,
) -> None:
    """Print the JSON Schema of a config.

    An editor that knows YAML schemas completes and checks keys with it.
    """
    import json

    from whet.config import json_schema
    from whet.core.errors import ConfigError, Problem

    text = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    if output is None:
        sys.stdout.write(text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            Problem(str(output), f"cannot be written: {error.strerror}", "choose a folder that exists and is yours")
        ) from None


def explain(
    context: typer.Context,
    config_file: ConfigFile,
    every_key: Annotated[bool, typer.Option("--all", help="The keys left at their defaults, too.")] = False,
) -> None:
    """Print each value of CONFIG with the place it comes from.

    A place is a line of the file, the environment, the command line, a default, or what was derived from other values
    and this machine.
    """
    from whet.cli.explain import print_explanation
    from whet.cli.session import open_config

    print_explanation(open_config(config_file, arguments_of(context)), every_key=every_key)
