"""A process that runs tasks one at a time, as the process that started it sees it.

It is a Python of its own rather than a fork: threads of torch do not survive one, and settings of the environment, such
as the number of threads, are read when libraries are imported. Nor is the main script imported there again, as
`multiprocessing` would: scripts need no `if __name__ == "__main__"`.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from ..errors import EngineError, UsageError
from .frames import receive_frame, send_frame
from .outcomes import WorkerEnded
from .worker_main import call, nothing

_START = (
    "import ast, sys; sys.path[:] = ast.literal_eval(sys.argv[1]); "
    "from hvae_codec.engine.worker_main import main; main()"
)
_PIPE_ERRORS = (BrokenPipeError,) if os.name != "nt" else (OSError,)
"""What writing to a process that has ended raises; on Windows, EINVAL."""

_SECONDS = 5.0
"""How long a process that closed its pipe may take to end."""


class WorkerProcess:
    """Starts a process if it is first needed, and a new one if it ended.

    environment: the process's environment variables
    initializer: called there before the first task
    """

    def __init__(self, environment: Mapping[str, str], initializer: Callable[[], None] | None) -> None:
        self._environment = dict(environment)
        self._first = call(_and_nothing_else, (initializer,)) if initializer else call(nothing)
        self._process: subprocess.Popen[bytes] | None = None
        self._is_killed = False
        self._lock = threading.Lock()

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what `function` gives there, or raise its error.

        Raises `WorkerEnded` if the process ends before it answers, `EngineError` if none can be started.
        """
        _check_importable(function)
        message = call(function, args, kwargs)
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            send_frame(process.stdin, message)
            succeeded, result = pickle.loads(receive_frame(process.stdout))
        except (EOFError, *_PIPE_ERRORS):
            raise WorkerEnded(self._ending()) from None
        if not succeeded:
            raise result
        return result

    def kill(self) -> None:
        """End the process, in the middle of a task if there is one; none is started again."""
        with self._lock:
            self._is_killed = True
            process = self._process
        if process is not None:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Let a process without a task end."""
        if self._process is not None:
            self._ending()

    def _running(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._is_killed:
                raise WorkerEnded("the engine was closed")
            if self._process is None:
                self._process = self._started()
            return self._process

    def _started(self) -> subprocess.Popen[bytes]:
        arguments = [sys.executable, "-c", _START, repr(sys.path)]
        try:
            process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._environment)
        except OSError as error:
            raise EngineError(f"no process can be started ({error.strerror}); use fewer workers") from None
        assert process.stdin is not None
        with suppress(*_PIPE_ERRORS):  # the first task tells
            send_frame(process.stdin, self._first)
        return process

    def _ending(self) -> str:
        """Close the pipes of a process that ends, make way for the next one, and say how it ended."""
        process = self._process
        assert process is not None
        self._process = None
        for pipe in (process.stdin, process.stdout):
            _close(pipe)
        try:
            code = process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        return f"signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"


def _close(pipe: Any) -> None:
    with suppress(*_PIPE_ERRORS):  # part of a message may not have been sent
        pipe.close()


def _and_nothing_else(initializer: Callable[[], Any]) -> None:
    """Call an initializer, whatever it returns."""
    initializer()


def _check_importable(function: Callable[..., Any]) -> None:
    """Raise `UsageError` if a function stands where workers do not find it."""
    if getattr(function, "__module__", None) == "__main__":
        name = getattr(function, "__qualname__", repr(function))
        raise UsageError(f"{name} is defined in the script that runs; move it into a module, so that workers find it")
