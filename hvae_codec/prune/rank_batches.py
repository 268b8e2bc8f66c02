"""The batches that one of several processes measures, and the keys that each image's noise depends on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..data.sources import ImageSource, check_batch_size
from ..distributed import DistributedContext
from ..progress import Progress


def rank_batches(
    source: ImageSource, batch_size: int, unit: int, progress: Progress | None, processes: DistributedContext | None
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield this process's batches of `source`, each with the number of its first image; whole units of `unit` images.

    `progress` is called with the images that all processes have done, estimated from this one's.
    """
    check_batch_size(batch_size)
    processes = processes or DistributedContext()
    own = processes.rank_range(len(source), unit)
    first, done = own.start, 0
    for batch in source.batches(batch_size, start=own.start, stop=own.stop):
        yield first, batch
        first += len(batch)
        done = min((first - own.start) * processes.world_size, len(source))
        if progress is not None:
            progress(done, len(source))
    if progress is not None and done < len(source):
        progress(len(source), len(source))


def image_keys(source: ImageSource, rows: slice, seed: int) -> list[tuple[int, int]]:
    """Make a key for the noise of each of the images `rows`: the seed and the image's number in its file or folder.

    So an image has the same noise in every subset, portion, order and batch, and on every process.
    """
    return [(seed, number) for number in source.numbers[rows].tolist()]
