"""Ctrl-C, a polite kill or a closed terminal during long work: finish the step at hand, then stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Windows has no SIGHUP."""


class Interruptible:
    """While active, the first SIGINT, SIGTERM or SIGHUP is remembered; only a second SIGINT raises `KeyboardInterrupt`.

    Schedulers and `torchrun` send SIGTERM, some more than once, before they kill; so a second SIGTERM changes nothing.
    A signal that is ignored stays so, as SIGHUP under `nohup`. Signals reach the main thread alone; elsewhere this does
    nothing.
    """

    def __init__(self) -> None:
        self.signal = signal.SIGINT  # the first one that came; another process's is unknown
        self.requested = False

    def __enter__(self) -> Interruptible:
        numbers = _SIGNALS if threading.current_thread() is threading.main_thread() else []
        heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._handle) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.requested:
            self.signal, self.requested = signal.Signals(number), True
