"""Waits for a process that does long work, outside of collectives, which have a timeout.

    it works     work ......................... ended        signs of life, counted in a store that all see
    others       look  look    look     look    look         wait as long as there are new ones

A collective that waits for hours cannot be told from one whose other side is lost; a process that stays silent can.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

BEAT = 1.0
"""Seconds between signs of life, and at most between looks at them."""


class CounterStore(Protocol):
    """Counters by key, as `torch.distributed.Store` has them for all processes that a launcher started."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to a counter, which begins at 0, and return it."""


class SilentError(Exception):
    """A process that others wait for has given no sign of life for too long."""


@contextmanager
def shown_alive(store: CounterStore, key: str, beat: float = BEAT) -> Iterator[None]:
    """Give signs of life until the work in the context has ended, well or not; then others wait no longer."""
    ended = threading.Event()

    def show() -> None:
        while not ended.wait(beat):
            store.add(f"{key} alive", 1)

    thread = threading.Thread(target=show, name="signs of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        store.add(f"{key} ended", 1)


def wait_for_end(store: CounterStore, key: str, patience: float, beat: float = BEAT) -> None:
    """Return when the work of `shown_alive` has ended.

    Raises `SilentError` if there was no new sign of life for `patience` seconds.
    """
    seen, since, pause = 0, time.monotonic(), 0.001
    while not store.add(f"{key} ended", 0):
        if (alive := store.add(f"{key} alive", 0)) != seen:
            seen, since = alive, time.monotonic()
        elif time.monotonic() - since > patience:
            raise SilentError
        time.sleep(pause)
        pause = min(2 * pause, beat)
