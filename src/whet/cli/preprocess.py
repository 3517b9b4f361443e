"""``whet preprocess``: rows to tokens and labels, on disk, with nothing trained."""

from __future__ import annotations

from typing import Annotated

import typer

from whet.cli.options import ConfigFile, arguments_of


def preprocess(
    context: typer.Context,
    config_file: ConfigFile,
    refresh: Annotated[bool, typer.Option("--refresh", help="Prepare again, though a prepared set is there.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print samples, each token coloured by its label.")] = False,
    debug_num_examples: Annotated[
        int, typer.Option("--debug-num-examples", min=1, metavar="N", help="How many samples --debug prints.")
    ] = 1,
    debug_text_only: Annotated[
        bool, typer.Option("--debug-text-only", help="With --debug: the text alone, without ids.")
    ] = False,
) -> None:
    """Read the datasets of CONFIG and write the prepared set.

    Prints what was read, kept and dropped, and why. Training afterwards finds the set by its content.
    """
    from whet.cli.session import open_config
    from whet.cli.show_tokens import print_samples
    from whet.run import preprocess as prepare_run

    config = open_config(config_file, arguments_of(context))
    prepared, tokenizer = prepare_run(config, refresh=refresh)
    if debug or debug_text_only:
        print_samples(prepared, tokenizer, count=debug_num_examples, text_only=debug_text_only)
