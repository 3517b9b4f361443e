"""A table of named figures on standard output: aligned for a person, tab-separated for a pipe."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table


def print_figures(figures: Mapping[str, float]) -> None:
    """Print ``name value`` for each figure, in the order given."""
    if not sys.stdout.isatty():
        sys.stdout.writelines(f"{name}\t{format_figure(value)}\n" for name, value in figures.items())
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in figures.items():
        table.add_row(name, format_figure(value))
    Console().print(table)


def format_figure(value: float) -> str:
    """Six significant digits; whole numbers as they are.

    >>> format_figure(2.3456789), format_figure(1200.0), format_figure(1e-7)
    ('2.34568', '1200', '1e-07')
    """
    return f"{value:.6g}"
