"""Arrays mapped from files that have to stay as they were: reading a page of one that was cut ends the process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .unchanged_files import UnchangedFiles


class UnchangedMap(np.memmap):
    """A mapped array; reading a part of it raises `DataError` if its file is another one than when it was opened."""

    files: UnchangedFiles | None = None

    def __getitem__(self, index: Any) -> Any:
        """Read a part."""
        if self.files is not None:
            self.files.check(0)
        return np.asarray(super().__getitem__(index))


def unchanged(array: NDArray[Any], path: Path) -> NDArray[Any]:
    """Give `array` as one of the file at `path` as it is now; an array that is not mapped stays as it is."""
    if not isinstance(array, np.memmap):
        return array
    checked = array.view(UnchangedMap)
    checked.files = UnchangedFiles([path])
    return checked
