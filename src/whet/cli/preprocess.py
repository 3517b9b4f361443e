"""``whet preprocess``: rows to tokens and labels, on disk, with nothing trained."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from whet.cli.options import ConfigFile, arguments_of
from whet.core.errors import ConfigError, Problem
from whet.core.printable import write_line

if TYPE_CHECKING:
    from whet.data.cleaning import Unused


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
    explain: Annotated[
        bool, typer.Option("--explain", help="Prepare nothing: say whether the set is there, and if not, what changed.")
    ] = False,
    clean: Annotated[
        float | None,
        typer.Option(
            "--clean",
            min=1,
            metavar="DAYS",
            help="Prepare nothing: remove prepared sets and chunk files not used for DAYS days; "
            "with --explain, only list them.",
        ),
    ] = None,
) -> None:
    """Read the datasets of CONFIG and write the prepared set.

    Prints what was read, kept and dropped, and why. Training afterwards finds the set by its content.
    """
    from whet.cli.session import open_config
    from whet.cli.show_tokens import print_samples
    from whet.run import clean_prepared, explain_prepared
    from whet.run import preprocess as prepare_run

    if refresh and (explain or clean is not None):
        found = f"--refresh prepares, {'--explain' if explain else '--clean'} prepares nothing"
        raise ConfigError(Problem("whet preprocess", found, "leave one of them out"))
    config = open_config(config_file, arguments_of(context))
    if clean is not None:
        print_unused(clean_prepared(config, clean, remove=not explain), removed=not explain)
        return
    if explain:
        for line in explain_prepared(config).lines():
            write_line(line)
        return
    prepared, tokenizer = prepare_run(config, refresh=refresh)
    if debug or debug_text_only:
        print_samples(prepared, tokenizer, count=debug_num_examples, text_only=debug_text_only)


def print_unused(unused: Sequence[Unused], *, removed: bool) -> None:
    """What was removed, or would be: a line for each set, and one for each other kind of thing."""
    from whet.cli.tables import print_rows

    lines: list[tuple[str, str, str, str]] = [
        (one.what, str(one.path), f"{one.num_bytes / 1e6:,.1f} MB", f"{one.days:.0f} days")
        for one in unused
        if one.what == "set"
    ]
    others = {one.what: [other for other in unused if other.what == one.what] for one in unused if one.what != "set"}
    for what, those in others.items():
        megabytes = sum(one.num_bytes for one in those) / 1e6
        lines.append(
            (what, f"{len(those):,}", f"{megabytes:,.1f} MB", f"{min(one.days for one in those):.0f} days or more")
        )
    print_rows(("what", "removed" if removed else "would be removed", "size", "not used for"), lines)
    if not unused:
        sys.stdout.write("nothing to remove\n")
