"""Where tasks run, in words: the option `--on`, and the engine that it means.

local:4              4 processes of this machine, which share its cores
local:gpu            a process per GPU of this machine
dask, dask:4         a Dask cluster on this machine, with a worker per core, or 4
tcp://host:8786      the Dask cluster of a scheduler; tls:// with the certificates of Dask's configuration
scheduler.json       the same, by the file that the scheduler wrote
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from .engine import Engine, Here
from .handshake import Check
from .local_processes import available_cores, local_engine, one_per_gpu, shared_cores

MOST = 1024
"""Processes on one machine; more are a slip of the keyboard."""

FORMS = "local:N, local:gpu, dask, dask:N, tcp://HOST:PORT, tls://HOST:PORT or a scheduler file (.json)"


@dataclass(frozen=True)
class OnProcesses:
    """Processes of this machine; as many as it has GPUs if `count` is None."""

    count: int | None


@dataclass(frozen=True)
class OnLocalDask:
    """A Dask cluster on this machine, for as long as the work takes."""

    count: int


@dataclass(frozen=True)
class OnScheduler:
    """A Dask cluster that runs already."""

    address: str


@dataclass(frozen=True)
class OnSchedulerFile:
    """A Dask cluster that runs already, with its address in a file."""

    path: Path


Where = OnProcesses | OnLocalDask | OnScheduler | OnSchedulerFile


def parse_where(text: str) -> Where:
    """Read the value of `--on`.

    >>> parse_where("local:4")
    OnProcesses(count=4)

    Raises `UsageError` if it is none.
    """
    if match := re.fullmatch(r"(local|dask):(\d+)", text):
        count = _checked_count(text, int(match[2]))
        return OnProcesses(count) if match[1] == "local" else OnLocalDask(count)
    if text == "local:gpu":
        return OnProcesses(None)
    if text == "dask":
        return OnLocalDask(available_cores())
    if re.fullmatch(r"(tcp|tls)://(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):\d{1,5}", text):
        return OnScheduler(text)
    if text.endswith(".json") and "://" not in text:
        return OnSchedulerFile(Path(text).expanduser())
    raise UsageError(f"--on is {text!r}; give {FORMS}")


def _checked_count(text: str, count: int) -> int:
    if not 1 <= count <= MOST:
        raise UsageError(f"--on is {text!r}; give from 1 to {MOST:,} processes")
    return count


def say_nothing(_: str) -> None:
    """Take what would be said, if nobody listens."""


@contextmanager
def engine_on(
    text: str | None,
    *,
    initializer: Callable[[], None] | None = None,
    check: Check | None = None,
    say: Callable[[str], None] = say_nothing,
) -> Iterator[Engine]:
    """Give the engine that `--on` means, this process if `text` is None, and close all of it at the end.

    initializer: picklable; called in each worker process before its first task, not in this process
    check: picklable; called once in each Dask worker, returns what is wrong there: `the folder /data is missing`
    say: is called with sentences such as the address of a dashboard

    Raises `UsageError` if `text` means nothing or takes a package that is missing, `EngineError` if a cluster is out of
    reach, has no workers, or one that cannot take part.
    """
    if text is None:
        yield Here()
        return
    with _opened(parse_where(text), initializer, check, say) as engine:
        yield engine


@contextmanager
def _opened(
    where: Where, initializer: Callable[[], None] | None, check: Check | None, say: Callable[[str], None]
) -> Iterator[Engine]:
    if isinstance(where, OnProcesses):
        environments = one_per_gpu() if where.count is None else shared_cores(where.count)
        with local_engine(environments, initializer) as engine:
            yield engine
        return
    _check_dask()
    from .dask_cluster import connected, local_cluster, read_address

    if isinstance(where, OnLocalDask):
        with (
            local_cluster(where.count, say) as address,
            connected(address, initializer, check, say, is_ours=True) as engine,
        ):
            yield engine
        return
    address = where.address if isinstance(where, OnScheduler) else read_address(where.path)
    with connected(address, initializer, check, say) as engine:
        yield engine


def _check_dask() -> None:
    try:
        import distributed  # noqa: F401 - it takes a while, and few have it
    except ImportError:
        advice = "which is not installed; pip install 'hvae-codec[dask]', or give --on local:N"
        raise UsageError(f"this --on takes the package distributed, {advice}") from None
