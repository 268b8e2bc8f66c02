"""Shows tables whole on terminals of any width: what does not fit beside the rest comes below it."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterable

from rich.cells import cell_len
from rich.table import Column, Table

BORDER = 3  # characters that a column takes beside its text


def in_parts(table: Table, width: int) -> list[Table]:
    """Split `table` into tables of at most `width` characters, each with the first column and some of the others.

    Text may be wrapped at its spaces, numbers (columns justified to the right) may not.
    """
    first, *others = table.columns
    parts = [[first]]
    for column in others:
        if len(parts[-1]) > 1 and 1 + sum(map(_least_width, [*parts[-1], column])) > width:
            parts.append([first])
        parts[-1].append(column)
    return [_part(table, columns, number, len(parts)) for number, columns in enumerate(parts, 1)]


def _part(table: Table, columns: list[Column], number: int, parts: int) -> Table:
    part = copy.copy(table)
    part.columns = [dataclasses.replace(column, overflow="fold") for column in columns]  # a word is never cut
    part.title = table.title if number == 1 else None
    part.caption = table.caption if number == parts else None
    return part


def _least_width(column: Column) -> int:
    texts = map(str, [column.header, *column.cells])
    lines: Iterable[str] = itertools.chain.from_iterable(text.splitlines() for text in texts)
    if column.justify != "right" and not column.no_wrap:
        lines = itertools.chain.from_iterable(line.split() for line in lines)
    return BORDER + max(map(cell_len, lines), default=0)
