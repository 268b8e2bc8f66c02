"""Who writes which row groups if several processes write one store: shards are owned, never shared.

    row group    0    1    2    3    4    5    6
    worker      0/3  1/3  2/3  0/3  1/3  2/3  0/3

For machines that share a file system or a bucket and no scheduler, as job arrays do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import UsageError


@dataclass(frozen=True)
class Worker:
    """One of the processes that write a store; `Worker()` is one alone, which owns everything."""

    number: int = 0  # from 0
    count: int = 1  # of all that write the store

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            every = "0/1" if self.count <= 1 else f"0/{self.count} to {self.count - 1}/{self.count}"
            raise UsageError(f"there is no worker {self}; workers are counted from 0, so give {every}")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Worker:
        """The worker k/n; `UsageError` if `text` is none.

        >>> Worker.parse("1/4")
        Worker(number=1, count=4)
        """
        if not (match := re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)):
            raise UsageError(f"the worker is {text!r}; give its number, from 0, and how many there are, such as 0/4")
        return cls(*map(int, match.groups()))

    def owns(self, row_group: int) -> bool:
        """Whether this worker is the one that writes a row group."""
        return row_group % self.count == self.number
