"""The arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whet.cli.arguments import Arguments

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="The YAML file of the run.", show_default=False)]

OVERRIDES_HELP = (
    "Any key of the YAML may follow as an option and wins over the file: --learning-rate 1e-4, --bf16, --no-bf16, "
    "--lora.r 8. 'whet config schema' lists the keys, 'whet config explain CONFIG' shows where each value comes from."
)


def arguments_of(context: typer.Context) -> Arguments:
    """What the command line held beside the command's own options."""
    arguments = context.obj
    assert isinstance(arguments, Arguments)
    return arguments
