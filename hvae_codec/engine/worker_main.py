"""What a worker process does: tasks come in over one pipe, results go out over another, one after the other.

It ends when the pipe of tasks does, so that it never outlives the process that started it, however that one ends.
Ctrl-C is for that one alone. What tasks print goes to standard error.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, BinaryIO

from .frames import receive_frame, send_frame
from .outcomes import SENTENCES


def main() -> None:
    """Serve tasks until this process is ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tasks, replies = _own_pipes()
    messages: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read, args=(tasks, messages), daemon=True).start()
    initialize: bytes | None = messages.get()
    while True:
        message = messages.get()
        if initialize is not None and (failure := _reply(initialize)) != _NOTHING:
            send_frame(replies, failure)
            continue
        initialize = None
        send_frame(replies, _reply(message))


def _own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Take the pipes from where tasks could read and print by accident."""
    tasks, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr] # or what was printed ends with the process
    return tasks, replies


def _read(tasks: BinaryIO, messages: SimpleQueue[bytes]) -> None:
    """Pass messages on; end this process, whatever it does, when there can be no more."""
    try:
        while True:
            messages.put(receive_frame(tasks))
    except (EOFError, OSError):
        sys.stderr.flush()
        os._exit(0)


def _reply(message: bytes) -> bytes:
    """Call what a message holds, a function and its arguments; return whether that went well, and what came of it."""
    try:
        function, args, kwargs = pickle.loads(message)
        return pickle.dumps((True, function(*args, **kwargs)), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        return _dumped(error)


def _dumped(error: Exception) -> bytes:
    """Return the reply that carries an error; one that is a bug has the traceback as a note."""
    if not isinstance(error, SENTENCES):
        error.add_note("In a worker process:\n" + "".join(traceback.format_exception(error)).rstrip())
    error.__cause__ = error.__context__ = None
    try:
        reply = pickle.dumps((False, error.with_traceback(None)), pickle.HIGHEST_PROTOCOL)
        pickle.loads(reply)
    except Exception:  # a class that does not survive pickling
        substitute = RuntimeError(f"{type(error).__name__}: {error}")
        substitute.__notes__ = getattr(error, "__notes__", [])
        return pickle.dumps((False, substitute), pickle.HIGHEST_PROTOCOL)
    return reply


def call(function: Callable[..., Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> bytes:
    """Make the message that has a worker call `function`; undone by `_reply`."""
    return pickle.dumps((function, args, kwargs or {}), pickle.HIGHEST_PROTOCOL)


def nothing() -> None:
    """Do what a worker does first if it is given nothing to do first."""


_NOTHING = pickle.dumps((True, None), pickle.HIGHEST_PROTOCOL)
"""The reply to what returns None."""
