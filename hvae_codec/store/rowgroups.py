"""Which images are in which row group: the only arithmetic of them.

images        0 ... 255 | 256 ... 511 | 512 ...
row group         0     |      1      |    2
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import StoreError


@dataclass(frozen=True)
class RowGroups:
    """The row groups of `images` images, `size` in each but the last, which may have fewer.

    >>> groups = RowGroups(600, 256)
    >>> len(groups), groups.rows(2), groups.of(511), groups.whole
    (3, range(512, 600), 1, 2)
    """

    images: int
    size: int

    def __len__(self) -> int:
        return -(-self.images // self.size)

    def rows(self, row_group: int) -> range:
        """Numbers of the images in a row group; `StoreError` if there is none of this number."""
        if not 0 <= row_group < len(self):
            raise StoreError(f"there is no row group {row_group}; the store has {len(self)}, counted from 0")
        return range(row_group * self.size, min((row_group + 1) * self.size, self.images))

    def of(self, image: int) -> int:
        """The row group that an image is in."""
        return image // self.size

    @property
    def whole(self) -> int:
        """Row groups that have no room for more images."""
        return self.images // self.size


def runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of each stretch of consecutive numbers.

    >>> list(runs([4, 5, 6, 2, 9, 10]))
    [(4, 6), (2, 2), (9, 10)]
    """
    starts = [k for k, number in enumerate(numbers) if k == 0 or number != numbers[k - 1] + 1]
    for start, end in itertools.pairwise([*starts, len(numbers)]):
        yield numbers[start], numbers[end - 1]
