"""What reading has shown of images so far: what was done to them, and the checksums of their bytes.

whole.portion(rows) ──> another process reads ──> portion.seen ──> whole.note(rows, seen)
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Seen:
    """Facts of each of N images, whose arrays are written as images are read; called by several threads at once."""

    resized: NDArray[np.bool_]  # which are of another size, bool [N]
    alpha_dropped: NDArray[np.bool_]  # which have an alpha channel
    frames_dropped: NDArray[np.bool_]  # which have frames or pages after the first
    recoloured: NDArray[np.bool_]  # which were grey and are colour now, or the other way round
    depth_reduced: NDArray[np.bool_]  # which have more than 8 bits per channel
    checksums: NDArray[np.uint32]  # CRC-32 (zlib) of each image's bytes as they were when it was read last
    is_checked: NDArray[np.bool_]  # whose checksum is known; written last: who finds it set may take the checksum

    @classmethod
    def nothing(cls, count: int) -> Seen:
        """Begin with `count` images of which nothing was read."""
        return cls(*(np.zeros(count, np.uint32 if field.name == "checksums" else bool) for field in fields(cls)))

    def __setstate__(self, state: dict[str, NDArray]) -> None:
        # Some executors give arrays that cannot be written to.
        self.__dict__.update({name: np.array(values) for name, values in state.items()})

    def of(self, positions: NDArray[np.int64]) -> Seen:
        """Select the images at `positions`, by copying."""
        return Seen(*(getattr(self, field.name)[positions] for field in fields(self)))

    def note(self, positions: NDArray[np.int64], other: Seen) -> None:
        """Note what was seen elsewhere of the images at `positions`; what is not known there stays as it is here."""
        known = other.is_checked
        self.checksums[positions[known]] = other.checksums[known]
        for field in fields(self):
            if field.name != "checksums":
                getattr(self, field.name)[positions] |= getattr(other, field.name)
