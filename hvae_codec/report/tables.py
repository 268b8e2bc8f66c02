"""Tables for the terminal that several reports share."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table


def pairs_table(title: str, pairs: Mapping[str, str]) -> Table:
    """Make a table of names with their values."""
    rich = Table(title=title, show_header=False, title_justify="left")
    rich.add_column(style="bold")
    rich.add_column()
    for name, value in pairs.items():
        rich.add_row(name, value)
    return rich


def size_table(title: str, sizes: Mapping[str, float], images: int, image_dims: int) -> Table:
    """Make a table of the bytes of the same images in several forms, and how many times the last one each is."""
    rich = Table(title=title, title_justify="left")
    rich.add_column("")
    for heading in ("bytes", "bytes an image", "bits/dim", "times the store"):
        rich.add_column(heading, justify="right")
    last = list(sizes.values())[-1]
    for name, size in sizes.items():
        cells = (f"{size:,.0f}", f"{size / images:,.1f}", f"{8 * size / images / image_dims:.3f}", f"{size / last:.1f}")
        rich.add_row(name, *cells)
    return rich
