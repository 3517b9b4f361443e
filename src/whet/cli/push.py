"""``whet push``: what a run has made, to the hub and to the trackers that do not have it yet."""

from __future__ import annotations

import typer

from whet.cli.options import ConfigFile, arguments_of
from whet.core.printable import write_line


def push(context: typer.Context, config_file: ConfigFile) -> None:
    """Send what CONFIG's run has made and others do not have yet.

    The result, and checkpoints that hub_strategy asks for, go to hub_model_id; figures that a tracker missed when it
    was lost go to that tracker. What is there already is not sent again, so the command may be repeated.
    """
    from whet.cli.session import open_config
    from whet.run import push as push_run

    for line in push_run(open_config(config_file, arguments_of(context))):
        write_line(line)
