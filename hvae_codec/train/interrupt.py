"""Ctrl-C or a polite kill during long work: finish the step at hand, then stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruptible:
    """While active, the first SIGINT or SIGTERM is remembered, and only a second SIGINT raises `KeyboardInterrupt`.

    Work between two looks at `requested` is never torn. Schedulers and `torchrun` send SIGTERM, some more than once,
    before they kill; so a second SIGTERM changes nothing. Signals reach the main thread alone; elsewhere this does
    nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Interruptible:
        if self._main:
            self._before = [signal.signal(number, self._handle) for number in _SIGNALS]
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            for number, handler in zip(_SIGNALS, self._before, strict=True):
                signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
