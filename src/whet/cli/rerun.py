"""``whet rerun``: a recorded run, done again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from whet.cli.options import arguments_of

RecordFile = Annotated[
    Path, typer.Argument(metavar="RUN_JSON", help="run.json of a run, or the folder that holds it.", show_default=False)
]


def rerun(
    context: typer.Context,
    record_file: RecordFile,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse to start where anything is not as it was.")] = False,
) -> None:
    """Train again as a run.json says: the same values and seeds, in a new output folder beside the old one.

    What is not as it was (data, base model, tokenizer, packages, machine) is said before the first step. On the same
    machine the losses are the same, bit for bit. --output-dir names another folder.
    """
    from whet import earlier
    from whet.cli.session import prepare_session
    from whet.config.recorded import config_of_record
    from whet.core.log import say, warn
    from whet.record import RUNNING

    prepare_session()
    arguments = arguments_of(context)
    file, record = earlier.read_run(record_file)
    config, said = config_of_record(record, str(file), earlier.place_of_rerun(file), arguments.overrides)
    if "RANK" not in os.environ:
        for sentence in said:
            say(f"rerun: {sentence}")
        for problem in config.warnings:
            warn(problem)
        if record.get("outcome") != "finished":
            unknown = "it runs, or was killed" if record.get("outcome") == RUNNING else record.get("outcome")
            say(f"rerun: that run did not finish: {unknown}")
        say(f"rerun: {file} again, in {config.output.output_dir}")
    processes = earlier.num_processes(file, record)
    if processes > 1 and "WORLD_SIZE" not in os.environ:
        from whet.cli.torchrun import launch_ranks, says_how_many

        place = ["--output-dir", config.output.output_dir]
        words = ["rerun", str(file), *(["--strict"] if strict else []), *place, *arguments.overrides]
        is_said = says_how_many(arguments.launcher)
        if not is_said:
            earlier.refuse_too_many(file, processes)
            say(f"rerun: in {processes} processes, as that run")
        launch_ranks(config, words, arguments.launcher, None if is_said else processes)
        return
    from whet.cli.torchrun import refuse_launcher_options
    from whet.distributed.launch import leave_ranks
    from whet.run import train

    refuse_launcher_options(None, arguments.launcher)
    train(config, resume=False, repeats=earlier.Repeated(file, record, strict))
    leave_ranks()
