"""What was computed is written while the next is computed: one queue, bounded, and one thread.

    items      make 0 │ make 1 │ make 2 │ make 3 │
    thread            │ write 0 │ write 1 │ write 2 │ write 3 │

Compression, checksums and waiting for the disk leave Python's lock alone: the model does not wait for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")

WAITING = 2
"""Items that may wait to be written, besides the one that is; memory holds no more."""


def written_behind(items: Iterable[Item], write: Callable[[Item], None], waiting: int = WAITING) -> Generator[Item]:
    """Calls `write` for each of `items` in order, on a thread of its own, and yields each that is written.

    An error of `write` is raised here, at the latest when `waiting` further items were made. Whatever ends the
    iteration, what waits is dropped and what is being written is finished first.
    """
    unfinished: deque[tuple[Item, Future[None]]] = deque()
    pool = ThreadPoolExecutor(1, "write store")
    try:
        for item in items:
            unfinished.append((item, pool.submit(write, item)))
            while unfinished and (len(unfinished) > waiting or unfinished[0][1].done()):
                yield _finished(*unfinished.popleft())
        while unfinished:
            yield _finished(*unfinished.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _finished(item: Item, writing: Future[None]) -> Item:
    writing.result()
    return item
