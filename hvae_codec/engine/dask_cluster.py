"""Dask as an executor: a cluster on this machine, or one that runs already.

The driver judges errors of tasks, so Dask does not try those again; what it tries again are tasks whose workers died.
Results are released as they are read. Tasks get new keys each time: equal calls are two tasks, as they write files.

Workers of a running cluster should have one thread each, and those with a GPU see that one alone:

    CUDA_VISIBLE_DEVICES=0 dask worker --nthreads 1 --memory-limit 0 tcp://host:8786
    CUDA_VISIBLE_DEVICES=1 dask worker --nthreads 1 --memory-limit 0 tcp://host:8786

A scheduler runs the code that it is sent by whoever reaches its port: keep that in a network you trust, or use TLS.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import dask
from distributed import Client, LocalCluster, Security, WorkerPlugin
from distributed.core import rpc
from distributed.utils import silence_logging_cmgr

from ..errors import EngineError, UsageError
from .executor_engine import ExecutorEngine
from .handshake import Check, Introduction, check_introductions, introduce

CONNECT_SECONDS = 5
"""Dask's default of 30 s holds a run up for that long if a worker that is asked for something has died."""

WORKERS_SECONDS = 60
"""How long to wait for a first worker."""

SETTINGS = {
    "distributed.comm.timeouts.connect": f"{CONNECT_SECONDS}s",
    "distributed.scheduler.allowed-failures": 0,  # of a cluster made here: the driver counts, and isolates suspects
}


@contextmanager
def local_cluster(count: int, say: Callable[[str], None]) -> Iterator[str]:
    """Run a cluster of `count` workers with one thread each on this machine; give its scheduler's address.

    Raises `EngineError` if it does not start.
    """
    with dask.config.set(SETTINGS), _started(count) as cluster:
        say(f"Dask's dashboard: {cluster.dashboard_link}")
        yield cluster.scheduler_address


def _started(count: int) -> LocalCluster:
    try:
        return LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,  # kill no worker at a guessed share of the memory
            dashboard_address="127.0.0.1:0",  # any free port
            silence_logs=logging.CRITICAL,  # errors of tasks are the driver's to tell
        )
    except (RuntimeError, OSError) as error:
        raise EngineError(
            f"Dask cannot start {count} workers on this machine ({_first_line(error)}); give --on local:{count}"
        ) from None


@contextmanager
def connected(
    address: str,
    initializer: Callable[[], None] | None,
    check: Check | None,
    say: Callable[[str], None],
    *,
    is_ours: bool = False,
) -> Iterator[ExecutorEngine]:
    """Give an engine on the cluster of a scheduler whose workers have all introduced themselves.

    The scheduler of a cluster that `is_ours` has `SETTINGS`, so it tries no task again whose worker died; others do.
    Raises `EngineError` if there is no scheduler, no worker within a minute, or a worker that cannot take part.
    """
    with dask.config.set(SETTINGS), silence_logging_cmgr(logging.CRITICAL), _client(address) as client:
        _wait_for_workers(client, address, say)
        check_introductions(_introductions(client, check))
        with _initialized(client, initializer):
            executor: Executor = client.get_executor(pure=False)
            yield ExecutorEngine(executor, place=f"the Dask cluster of {address}", may_repeat=not is_ours)


def read_address(path: Path) -> str:
    """Read the address in a scheduler file. Raises `UsageError` if the file has none."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["address"])
    except OSError as error:
        why = error.strerror
    except (ValueError, KeyError, TypeError):
        why = "no JSON with an address"
    raise UsageError(f"{path} is no scheduler file ({why}); dask scheduler --scheduler-file {path} writes one")


@contextmanager
def _client(address: str) -> Iterator[Client]:
    _check_scheduler(address)
    client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    try:
        yield client
    finally:
        client.close(timeout=CONNECT_SECONDS)


def _introductions(client: Client, check: Check | None) -> dict[str, Introduction | BaseException]:
    """Ask the scheduler, which reads tasks before it hands them on, and all workers who they are."""
    said: dict[str, Introduction | BaseException] = {}
    try:
        said["the scheduler"] = client.run_on_scheduler(introduce)
    except Exception as error:
        said["the scheduler"] = error
    workers = client.run(introduce, check, on_error="return")
    return said | {f"worker {address}": introduction for address, introduction in workers.items()}


def _check_scheduler(address: str) -> None:
    """Raise `EngineError` if what is at an address is no scheduler, for which a `Client` may wait for ever."""
    try:
        with ThreadPoolExecutor(1) as pool:  # the caller may have an event loop of its own, as notebooks do
            kind = pool.submit(asyncio.run, asyncio.wait_for(_kind(address), CONNECT_SECONDS)).result()
    except Exception as error:  # each kind of stranger at a port has its own
        why = f"none within {CONNECT_SECONDS} s" if isinstance(error, TimeoutError) else _first_line(error)
        tls = ", and its certificates in Dask's configuration, distributed.comm.tls"
        raise EngineError(
            f"no Dask scheduler answers at {address} ({why}); start one with `dask scheduler`, or give the address "
            f"that it prints{tls if address.startswith('tls:') else ''}"
        ) from None
    if kind != "Scheduler":
        raise EngineError(f"at {address} is a Dask {kind.lower()}; give the address of its scheduler")


async def _kind(address: str) -> str:
    """Ask a Dask server what it is, such as `Scheduler` or `Worker`."""
    arguments = Security().get_connection_args("client")
    async with rpc(address, timeout=CONNECT_SECONDS, connection_args=arguments) as server:
        return str((await server.identity())["type"])


def _first_line(error: Exception) -> str:
    """Return what an error says, in one line.

    >>> _first_line(TimeoutError())
    'TimeoutError'
    """
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _wait_for_workers(client: Client, address: str, say: Callable[[str], None]) -> None:
    if client.nthreads():
        return
    say(f"Waiting for a worker of {address} ...")
    try:
        client.wait_for_workers(1, timeout=WORKERS_SECONDS)
    except TimeoutError:
        raise EngineError(
            f"the Dask scheduler at {address} has had no workers for {WORKERS_SECONDS} s; start some with "
            f"`dask worker --nthreads 1 {address}`"
        ) from None


class _Initializer(WorkerPlugin):
    """Prepares workers, also those that come later or again."""

    def __init__(self, initializer: Callable[[], None]) -> None:
        self.initializer = initializer

    def setup(self, worker: object) -> None:
        """Prepare one."""
        self.initializer()


@contextmanager
def _initialized(client: Client, initializer: Callable[[], None] | None) -> Iterator[None]:
    if initializer is None:
        yield
        return
    name = f"hvae-codec-{client.id}"
    client.register_plugin(_Initializer(initializer), name=name)
    try:
        yield
    finally:
        if client.status == "running":
            client.unregister_worker_plugin(name)
