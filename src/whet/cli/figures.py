"""Named figures as text."""

from __future__ import annotations

from collections.abc import Mapping

from whet.cli.tables import print_rows


def print_figures(figures: Mapping[str, float]) -> None:
    """Print each figure with its name, in the order given."""
    print_rows(("figure", "value"), [(name, format_figure(value)) for name, value in figures.items()])


def format_figure(value: float) -> str:
    """Six significant digits; whole numbers as they are.

    >>> format_figure(2.3456789), format_figure(1200.0), format_figure(1e-7)
    ('2.34568', '1200', '1e-07')
    """
    return f"{value:.6g}"
