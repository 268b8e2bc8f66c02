"""Processes of this machine as an executor: `--on local:N`, `--on local:gpu`.

    slot 0   thread ── pipe ── process        one task at a time in each, so that a process
    slot 1   thread ── pipe ── process        that ends takes one task with it, and that one is known

A process that is stopped (SIGSTOP) and continued later is waited for; one that ended is replaced.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any

from ..errors import UsageError
from .executor_engine import ExecutorEngine
from .worker_process import WorkerProcess

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Variables that libraries read when they are imported."""

_Call = tuple[Future[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class LocalProcesses(Executor):
    """Runs each task in one of several processes; a task whose process ends gets `WorkerEnded`, others nothing.

    environments: the environment variables of each process, all of them
    initializer: picklable; called in each process before its first task, and its errors are that task's
    """

    def __init__(
        self, environments: Sequence[Mapping[str, str]], initializer: Callable[[], None] | None = None
    ) -> None:
        self._max_workers = len(environments)
        self._waiting: SimpleQueue[_Call | None] = SimpleQueue()
        self._is_shut_down = False
        self._lock = threading.Lock()
        self._workers = [WorkerProcess(each, initializer) for each in environments]
        self._slots = [threading.Thread(target=self._serve, args=(each,), daemon=True) for each in self._workers]
        for slot in self._slots:
            slot.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Send a call; raises `RuntimeError` after `shutdown`."""
        with self._lock:
            if self._is_shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            future: Future[Any] = Future()
            self._waiting.put((future, fn, args, kwargs))
            return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; processes end when they have none."""
        with self._lock:
            first, self._is_shut_down = not self._is_shut_down, True
        if cancel_futures:
            self._cancel_waiting()
        for _ in self._slots if first or cancel_futures else ():
            self._waiting.put(None)
        if wait:
            for slot in self._slots:
                slot.join()

    def kill(self) -> None:
        """Take no more calls, drop those that wait, and end all processes at once."""
        self.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.kill()
        self.shutdown()

    def _cancel_waiting(self) -> None:
        while True:
            try:
                waiting = self._waiting.get_nowait()
            except Empty:
                return
            if waiting is not None:
                waiting[0].cancel()

    def _serve(self, worker: WorkerProcess) -> None:
        """Hand calls to one process until there are none."""
        _leave_interrupts_to_others()
        while (waiting := self._waiting.get()) is not None:
            _answer(worker, *waiting)
            del waiting  # and the result, which a slot that waits would keep
        worker.close()


def _answer(
    worker: WorkerProcess, future: Future[Any], fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = worker.run(fn, args, kwargs)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


def _leave_interrupts_to_others() -> None:
    """Block Ctrl-C in this thread, and so in processes that it starts, until they ignore it themselves."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


@contextmanager
def local_engine(
    environments: Sequence[Mapping[str, str]], initializer: Callable[[], None] | None = None
) -> Iterator[ExecutorEngine]:
    """Give an engine of one process per environment, see `LocalProcesses`; none of them is left at the end."""
    processes = LocalProcesses(environments, initializer)
    try:
        yield ExecutorEngine(processes, place="this machine")
    finally:
        processes.kill()


def shared_cores(count: int) -> list[dict[str, str]]:
    """Make the environments of `count` processes that share this machine's cores; set variables stay as they are."""
    threads = str(max(1, available_cores() // count))
    return [{**dict.fromkeys(THREADS, threads), **os.environ}] * count


def one_per_gpu() -> list[dict[str, str]]:
    """Make the environments of processes that have one GPU each. Raises `UsageError` if there is none."""
    gpus = visible_gpus()
    if not gpus:
        raise UsageError("--on local:gpu finds no GPU; give --on local:N for N processes on the CPU")
    return [{**each, "CUDA_VISIBLE_DEVICES": gpu} for each, gpu in zip(shared_cores(len(gpus)), gpus, strict=True)]


def visible_gpus() -> list[str]:
    """List the GPUs as CUDA_VISIBLE_DEVICES does: by that variable, or else all that the driver has."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu.strip() for gpu in chosen.split(",") if gpu.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(number) for number, line in enumerate(x for x in listed.splitlines() if x.startswith("GPU "))]


def available_cores() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
