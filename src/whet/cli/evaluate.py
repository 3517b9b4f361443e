"""``whet evaluate``: the losses of the model on the evaluation sets, and nothing changed."""

from __future__ import annotations

import typer

from whet.cli.options import ConfigFile, arguments_of


def evaluate(context: typer.Context, config_file: ConfigFile) -> None:
    """Measure the model of CONFIG on its evaluation data.

    Takes test_datasets, or the val_set_size split of the training data. Prints every figure by name.
    """
    from whet.cli.figures import print_figures
    from whet.cli.session import open_config
    from whet.run import evaluate as evaluate_run

    figures = evaluate_run(open_config(config_file, arguments_of(context)))
    print_figures(figures)
