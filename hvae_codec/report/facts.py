"""Facts about something: plain data for scripts, and tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ..storage.location import Location


@dataclass(frozen=True)
class Facts:
    """Of one store or run."""

    path: Path | Location
    data: dict[str, Any]
    pairs: dict[str, str]
    tables: Sequence[Table] = ()  # shown below the pairs

    def render(self) -> list[Table]:
        """Make the tables for the terminal."""
        pairs = Table(title=str(self.path), show_header=False, title_justify="left")
        pairs.add_column(style="bold")
        for pair in self.pairs.items():
            pairs.add_row(*pair)
        return [pairs, *self.tables]
