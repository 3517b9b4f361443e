"""``whet check``: everything that can be known to be wrong before the first step."""

from __future__ import annotations

import typer

from whet.cli.options import ConfigFile, arguments_of


def check(context: typer.Context, config_file: ConfigFile) -> None:
    """Find the mistakes in CONFIG, its model and its data before training does.

    Nothing is trained, downloaded or left behind. Exit code 0 when the run is ready, 2 when it is not.
    """
    from whet.cli.session import open_config

    config = open_config(config_file, arguments_of(context))
    # After the config is known to be right: what follows imports torch.
    from whet.cli.check_report import check_and_print

    check_and_print(config)
