"""What an encode does if an array has no room for the code of an image: it makes room, and goes on.

Its arrays have types that fit the ranking's images, with a margin (`code_dtypes`). An image that is like none of these
must not cost what was encoded before it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..progress import Progress
from ..store.narrowing import CodeRangeError
from ..store.quantiser import ClippedError
from ..store.widening import widen
from ..store.writer import StoreWriter

_WITHOUT_WORKERS = (
    "end the other workers, and run the same command without --worker, which makes room and goes on; workers may take "
    "over again then"
)


def write_with_room(
    writer: StoreWriter,
    write: Callable[[StoreWriter], None],
    widening: Progress | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> StoreWriter:
    """Have `write` write all that is missing, and whatever array has no room for a code be widened; the last writer.

    Raises what `write` and `widen` do: `ClippedError` if the codec has no such code, and what was written is removed
    then; `CodeRangeError` if there are several workers, since others may be writing.
    """
    while True:
        try:
            with writer.discarded_on(ClippedError, unless=(CodeRangeError,)):
                write(writer)
        except CodeRangeError as error:
            if writer.worker.count > 1:
                raise error.with_remedy(_WITHOUT_WORKERS) from None
            (on_warning or logging.getLogger(__name__).warning)(
                f"{error.problem}; z{error.resolution} is rewritten with 16 bits, and the encode goes on"
            )
            dtypes = {**writer.spec.array_dtypes, error.resolution: "int16"}
            writer = widen(writer, dtypes, progress=widening)
        else:
            return writer
