"""One way to look ahead: threads work on what comes next, in order and never on more than a few items.

    read ahead      items are cheap: threads read 1, 2, 3, ... while the caller uses 0
    write behind    items are costly: a thread writes 0 while the caller's generator makes 1
    fetch behind    a device computes 1, which was started, while the caller uses 0

Decoding, compression, checksums and waiting for the disk leave Python's lock alone, so the caller does not wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    threads: int,
    waiting: int,
    name: str,
    eager: bool = False,
) -> Generator[Result]:
    """Yield `work` of each of `items`, in order, from `threads` threads called `name`.

    At most `waiting` results and tasks wait behind the one that is asked for. `eager`, for items that are slow to make,
    yields a result as soon as it is there, rather than first take as many items as may wait. An error of `work` is
    raised in place of its result. When the generator ends, waiting tasks are dropped, and running ones have ended.
    """
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, name)
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            while pending and (len(pending) > waiting or (eager and pending[0].done())):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def write_behind(write: Callable[[Item], Result], items: Iterable[Item], threads: int = 1) -> Generator[Result]:
    """Yield `write` of each of `items`, called by `threads` threads, one in order, while the next items are made."""
    return map_ahead(write, items, threads=threads, waiting=max(threads, 2), name="write behind", eager=True)


def fetched_behind(started: Iterable[Callable[[], Result]], waiting: int = 1) -> Generator[Result]:
    """Yield what each of `started` gives, in order, when the next `waiting` ones have been started.

    For a device that computes by itself: it always has something to do while the host fetches and uses results.
    """
    pending: deque[Callable[[], Result]] = deque()
    for fetch in started:
        pending.append(fetch)
        if len(pending) > waiting:
            yield pending.popleft()()
    while pending:
        yield pending.popleft()()
