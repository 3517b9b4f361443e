"""``whet train``: from one YAML file to a fine-tuned model."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from whet.cli.options import ConfigFile, arguments_of


class Launcher(StrEnum):
    """Who starts the process or processes of the run."""

    PYTHON = "python"
    TORCHRUN = "torchrun"


def train(
    context: typer.Context,
    config_file: ConfigFile,
    resume_from_checkpoint: Annotated[
        str | None,
        typer.Option(
            "--resume-from-checkpoint",
            metavar="[PATH]",
            help="Go on from this checkpoint; without a PATH, from the newest complete one in output_dir.",
        ),
    ] = None,
    launcher: Annotated[
        Launcher,
        typer.Option("--launcher", help="python runs in this process; torchrun starts one process per device."),
    ] = Launcher.PYTHON,
    num_processes: Annotated[
        int | None,
        typer.Option(
            "--num-processes", min=1, metavar="N", help="Processes for torchrun; one per accelerator if not given."
        ),
    ] = None,
) -> None:
    """Fine-tune a model as CONFIG says.

    A run that is resumed with another config than it had is refused where that would make it another run;
    --allow-change KEY (once for each key) lets it.

    With --launcher torchrun, what follows a bare -- is handed to torchrun.
    """
    from whet.cli.session import open_config
    from whet.cli.torchrun import launch_ranks, refuse_launcher_options, resume_tokens

    arguments = arguments_of(context)
    resume = _resume_value(resume_from_checkpoint)
    if launcher is Launcher.PYTHON:
        refuse_launcher_options(num_processes, arguments.launcher)
    config = open_config(config_file, arguments)
    if launcher is Launcher.TORCHRUN:
        words = ["train", str(config_file), *resume_tokens(resume), *arguments.overrides]
        launch_ranks(config, words, arguments.launcher, num_processes)
        return
    from whet.distributed.launch import leave_ranks
    from whet.run import train as train_run

    train_run(config, resume=resume)
    leave_ranks()


def _resume_value(text: str | None) -> str | bool | None:
    """``true`` and ``false`` as YAML has them; anything else is a path."""
    if text is None:
        return None
    return {"true": True, "false": False}.get(text.lower(), text)
