"""Rows on standard output: aligned for a person, separated by tabs for a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from whet.core.printable import printable
from whet.core.secrets import redact


def print_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text; the header is for people only, so that a pipe gets data alone. Secrets are hidden."""
    rows = [[printable(redact(cell)) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        sys.stdout.writelines("\t".join(row) + "\n" for row in rows)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
