"""Batches through a model beside each other: lanes, each a thread with its share of the cores. Results come in order.

    batches   0  1  2  3  4 ...
    lane 0    |0----|2----|4--
    lane 1    |1-----|3----|      an operation of a lane runs on cores / lanes threads

The operations of a small model are too short to be spread over cores: two batches beside each other take a tenth less
time than one on two cores and then the other. And what else there is to do, reading and writing files, takes time from
one lane while the other goes on, where all cores would wait at the end of each operation for the one that was taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from ..config import ModelConfig
from .likelihood import make_likelihood
from .precision import full_float32

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_LANES = 4
"""Python runs one thread at a time, and to launch a small model's operations takes about a tenth of their time."""

SMALL_BATCH = 16 * 2**20
"""Bytes that a batch takes between two blocks, or at the output, up to which a model gains by lanes. A larger one keeps
all cores busy, and would only need its memory several times."""


def lane_count(config: ModelConfig, batch_size: int, device: torch.device) -> int:
    """Lanes that batches of `batch_size` images are best run in; 1 on a GPU.

    The number of batches plays no part: on how many cores an operation runs decides how its results are rounded, and
    that of an image must not depend on how many others are encoded with it.
    """
    output = config.resolution**2 * make_likelihood(config).out_channels
    largest = 4 * batch_size * max(output, *(stage.state_size for stage in config.stages))
    if device.type != "cpu" or largest > SMALL_BATCH:
        return 1
    return min(MOST_LANES, torch.get_num_threads())


def in_lanes(work: Callable[[Item], Result], items: Iterable[Item], lanes: int) -> Generator[Result]:
    """Results of `work` on each of `items`, in order; `work` runs in `lanes` threads at the same time.

    Little more than `lanes` items are taken ahead of the result in use. An error of `work` is raised in the place of
    its result, one of `items` when it is met. Close the generator where it may be left early: the threads end with it.
    Threads that first use PyTorch while lanes start may take a lane's cores for the default.
    """
    if lanes == 1:
        yield from map(work, items)
        return
    threads, pending = torch.get_num_threads(), deque[Future[Result]]()
    pool = ThreadPoolExecutor(lanes, "lane", _take_cores, (max(1, threads // lanes),))
    try:
        with full_float32():  # here, once: that each lane restores it at its own time must change nothing
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > lanes:
                    result = pending.popleft().result()
                    torch.set_num_threads(threads)  # what a lane sets for itself, threads that start later take over
                    yield result
            while pending:
                yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


def _take_cores(count: int) -> None:
    # Asked first: a thread that was not takes the process's number at its first operation, whatever it was told before.
    torch.get_num_threads()
    torch.set_num_threads(count)
