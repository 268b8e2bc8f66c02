"""Signals that end a process politely, SIGTERM and SIGHUP, stop a command as Ctrl-C does: it cleans up first."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Windows has no SIGHUP."""

_SOON = 0.01
"""Seconds after which a lost interrupt comes again: what lost it is over by then."""


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """While active, the first of these signals raises `KeyboardInterrupt` with its number, and later ones do nothing.

    Signals that are ignored, as under `nohup`, or have a handler keep it. In a process of `torchrun` this does nothing:
    the launcher ends the others when one has failed, and that one says why.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        for each in heard:
            signal.signal(each, signal.SIG_IGN)  # some senders repeat it; cleaning up goes on
        raise KeyboardInterrupt(number)

    heard = [number for number in _SIGNALS if _ends_this_process(number)]
    for number in heard:
        signal.signal(number, stop)
    try:
        with _lost_interrupts_again():
            yield
    finally:
        for number in heard:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _lost_interrupts_again() -> Iterator[None]:
    """While active, an interrupt that Python ignores is raised once more.

    A signal may come while Python runs what is done if an object is deleted, as importing does for each module. Python
    then prints a traceback, "Exception ignored in ...", and the command would go on, deaf to further signals.
    """
    if not (hasattr(signal, "SIGALRM") and _ends_this_process(signal.SIGALRM)):  # Windows, or the timer is in use
        yield
        return
    before = sys.unraisablehook

    def hook(ignored: sys.UnraisableHookArgs) -> None:
        if not isinstance(ignored.exc_value, KeyboardInterrupt):
            before(ignored)
            return
        reason = ignored.exc_value.args

        def interrupt(_number: int, _frame: FrameType | None) -> None:
            raise KeyboardInterrupt(*reason)

        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, _SOON)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _ends_this_process(number: int) -> bool:
    alone = "TORCHELASTIC_RUN_ID" not in os.environ and threading.current_thread() is threading.main_thread()
    return alone and signal.getsignal(number) is signal.SIG_DFL


def exit_code(stopped: KeyboardInterrupt) -> int:
    """Return 128 and the signal's number, as shells do: 130 for Ctrl-C."""
    # An interrupted `exec` of a text, as dataclasses use it, makes `python -m` end as by Ctrl-C, even if the interrupt
    # was caught (CPython's `unhandled_keyboard_interrupt`). The next one that runs to its end takes that back.
    exec("")
    return 128 + (int(stopped.args[0]) if stopped.args else signal.SIGINT)
