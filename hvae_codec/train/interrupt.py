"""Ctrl-C during long work: finish the step at hand, then stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interruptible:
    """While active, the first interrupt is remembered, and only the second raises `KeyboardInterrupt`.

    Work between two looks at `requested` is never torn. Signals reach the main thread alone; elsewhere
    this does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Interruptible:
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
