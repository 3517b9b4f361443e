"""``whet evaluate``: the losses of the model on the evaluation sets, and nothing changed."""

from __future__ import annotations

from typing import Annotated

import typer

from whet.cli.options import ConfigFile, arguments_of


def evaluate(
    context: typer.Context,
    config_file: ConfigFile,
    untrained: Annotated[bool, typer.Option("--untrained", help="The base model as it was before the run.")] = False,
) -> None:
    """Measure the model that CONFIG trained on its evaluation data.

    Takes test_datasets, or the val_set_size split of the training data. Prints every figure by name, and writes the
    loss of every example to eval/examples.jsonl in the output folder.
    """
    from whet.cli.figures import print_figures
    from whet.cli.session import open_config
    from whet.run import evaluate as evaluate_run

    figures = evaluate_run(open_config(config_file, arguments_of(context)), untrained=untrained)
    print_figures(figures)
