"""Executors whose processes die or fail at certain row groups, and what runs in them, where they find it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvae_codec.engine.local_processes import LocalProcesses, shared_cores


@dataclass(frozen=True)
class Deaths:
    """At which row groups processes end themselves: once before or after the work, or always."""

    notes: Path  # a folder in which each death is noted
    before: frozenset[int] = frozenset()
    after: frozenset[int] = frozenset()
    always: frozenset[int] = frozenset()

    def __call__(self, work: Callable[[Any], Any], item: Any) -> Any:
        row_group = getattr(item, "row_group", None)
        note = self.notes / str(row_group)
        is_first = not note.exists()
        if row_group in self.always or (row_group in self.before and is_first):
            self._die(note)
        result = work(item)
        if row_group in self.after and is_first:
            self._die(note)
        return result

    def _die(self, note: Path) -> None:
        note.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class DyingProcesses(LocalProcesses):
    """Two processes of one thread each, of which some end themselves."""

    def __init__(self, deaths: Deaths) -> None:
        super().__init__(shared_cores(2))
        self.deaths = deaths

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(self.deaths, fn, *args, **kwargs)
