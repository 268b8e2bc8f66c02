"""A folder that takes the name of another: at no moment has neither the name, and a kill on the way can be repaired.

PATH.partial ──┐            ┌──> PATH           the new one
               ├─ exchange ─┤
PATH ──────────┘            └──> PATH.replaced  the old one, then removed
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .files import exchange, sync, write_atomically


@dataclass(frozen=True)
class FolderSwap:
    """How a new folder becomes `path`, and what is known of the folders on the way."""

    path: Path
    mark: Path  # a file beside it, which says which of the two is the new one
    identity: Callable[[Path], str | None]  # tells the two apart; None of a folder that is not whole
    remove: Callable[[Path], None]  # removes a folder if it is one of ours

    @property
    def partial(self) -> Path:
        """The new folder, before it has the name."""
        return self.path.with_name(self.path.name + ".partial")

    @property
    def replaced(self) -> Path:
        """The old folder, after it had the name."""
        return self.path.with_name(self.path.name + ".replaced")

    def take_name(self) -> None:
        """Rename the new folder; an old one is removed once the new one has its name."""
        if not self.path.exists():
            self.partial.rename(self.path)
            sync(self.path.parent)
            return
        self.remove(self.replaced)
        write_atomically(self.mark, f"{self.identity(self.partial)}".encode(), root=self.path.parent)
        if exchange(self.partial, self.path):
            self.partial.rename(self.replaced)
        else:
            self.path.rename(self.replaced)
            self.partial.rename(self.path)
        sync(self.path.parent)
        self.remove(self.replaced)

    @property
    def is_unfinished(self) -> bool:
        """Whether a kill has left something on the way."""
        return self.mark.exists() or os.path.lexists(self.replaced)

    def finish(self) -> bool:
        """Repair what a kill has left; whether the new folder has the name now.

        If neither has it, the old one gets it back; otherwise the old one is removed.
        """
        if not os.path.lexists(self.path) and self.identity(self.replaced):
            self.replaced.rename(self.path)
        now = self.identity(self.path)
        is_new = self.mark.is_file() and now == self.mark.read_text()
        if is_new and self.identity(self.partial) != now:
            self.remove(self.partial)  # the old one, if the two have swapped names
        if now:
            self.remove(self.replaced)
        self.mark.unlink(missing_ok=True)
        return is_new
