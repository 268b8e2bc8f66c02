"""Ctrl-C or a polite kill during long work: finish the step at hand, then stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruptible:
    """While active, the first SIGINT or SIGTERM is remembered, and only a second SIGINT raises `KeyboardInterrupt`.

    Schedulers and `torchrun` send SIGTERM, some more than once, before they kill; so a second SIGTERM changes nothing.
    Signals reach the main thread alone; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Interruptible:
        numbers = _SIGNALS if threading.current_thread() is threading.main_thread() else ()
        self._before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
