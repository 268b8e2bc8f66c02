"""The CRC-32s of the images that a run was trained and validated on, so that a run that continues notices edited ones.

    RUN/images.npz    of training and of held-out images: their fingerprint, and the CRC-32 of each that was read

It is written with the states, as it is, since packing takes longer than writing. Times of files are not in it: these
are remembered in the user's cache (`data.content`), so that few images are read again when a run continues. That takes
a second for a million names, so it is done when twice as many images are known as the last time, and when all are.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..data.content import content_checksums, remember_content
from ..data.sources import ImageSource
from ..errors import DataError
from ..progress import Progress
from ..storage.files import write_atomically

IMAGES_FILE = "images.npz"


class SeenImages:
    """What is known of the images of a run; of several processes, by what the first one has read."""

    def __init__(self, run: Path, training: ImageSource, validation: ImageSource) -> None:
        self._file, self._sources = run / IMAGES_FILE, {"training": training, "held-out": validation}
        saved = _read(self._file)
        self._known = {which: _known(saved, which, source) for which, source in self._sources.items()}
        self._saved = 0  # images that were known when the file was written last
        self._remembered = 0  # images that were known when they were remembered last

    def check(self, *, other_data: bool, check: bool = False, progress: Progress | None = None) -> None:
        """Raise `DataError` that names an image whose bytes are not those that the run has seen.

        If `other_data` are allowed, they count as seen from now on. For `check` and `progress` see `content_checksums`.
        Images without files, of a Python data set or in memory, are read again with `check` alone.
        """
        for which, source in self._sources.items():
            can_be_told = source.container.stamps is not None or source.container.checksums_are_stated
            known = self._known[which]
            seen = np.flatnonzero(known >= 0) if can_be_told or check else np.zeros(0, np.int64)
            found = content_checksums(source, seen, check=check, progress=progress)
            changed = seen[found != known[seen]]
            if len(changed) and not other_data:
                raise DataError(_changed(self._file.parent, which, source.names[changed[0]], len(changed)))
            known[seen] = found

    def save(self) -> None:
        """Write down what was read since, if anything was."""
        for which, source in self._sources.items():
            read = source.container.seen.is_checked[source.positions]
            self._known[which][read] = source.container.seen.checksums[source.positions[read]]
        known = sum(int((checksums >= 0).sum()) for checksums in self._known.values())
        if known == self._saved:
            return
        write_atomically(self._file, self._content())
        self._saved = known
        if known >= 2 * self._remembered or known == sum(len(checksums) for checksums in self._known.values()):
            self._remember(known)

    def _remember(self, known: int) -> None:
        self._remembered = known
        for source in {id(source.container): source for source in self._sources.values()}.values():
            remember_content(source)

    def _content(self) -> bytes:
        arrays: dict[str, NDArray] = {}
        for which, source in self._sources.items():
            arrays |= {which: self._known[which], f"{which} fingerprint": np.array(source.fingerprint)}
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **arrays)
        return content.getvalue()


def _read(file: Path) -> Mapping[str, NDArray]:
    """Read what a run has seen; nothing if it is an older one, or if the file is damaged."""
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return {}


def _known(saved: Mapping[str, NDArray], which: str, source: ImageSource) -> NDArray[np.int64]:
    """The CRC-32 of each image, int64 [N], -1 if it was never read, or of other images."""
    checksums, fingerprint = saved.get(which), saved.get(f"{which} fingerprint")
    if checksums is None or str(fingerprint) != source.fingerprint or checksums.shape != (len(source),):
        return np.full(len(source), -1, np.int64)
    return checksums.astype(np.int64)


def _changed(run: Path, which: str, name: str, count: int) -> str:
    others = f" and {count - 1:,} others were" if count > 1 else " was"
    return (
        f"the {which} image {name}{others} changed since {run} was trained on it; put back what it was, or give "
        "--allow-other-data to go on with the images as they are"
    )
