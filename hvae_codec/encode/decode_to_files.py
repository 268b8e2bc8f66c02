"""A store decoded into a folder: image files under their own names and class folders, or one array."""

from __future__ import annotations

import collections
import csv
import itertools
import os
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError, StoreError
from ..lookahead import write_behind
from ..model.hvae import HVAE
from ..progress import Progress
from ..storage.new_folder import new_folder
from .encoded_store import EncodedStore

Format = Literal["png", "npy"]
Batches = Iterator[NDArray[np.uint8]]
"""Pixels, [B, H, W, C]."""


def decode_to_folder(
    store: EncodedStore,
    model: HVAE,
    folder: Path,
    *,
    images: range | None = None,
    file_format: Format = "png",
    batch_size: int = 64,
    progress: Progress | None = None,
) -> int:
    """Decode the images of `store` (all, or those numbered `images`) into `folder`; returns how many.

    `png` restores names and class folders, with the ending .png; `npy` writes `images.npy`, uint8 [N, H, W, C], and
    `names.csv`. The folder appears when it is whole. Raises `DataError` if it exists and is not empty, or if PNG cannot
    hold the model's channels; `StoreError` if the store is of another model, damaged, or names a file outside the
    folder.
    """
    images = images if images is not None else range(len(store))
    with new_folder(folder) as partial:
        write = _write_pngs if file_format == "png" else _write_array
        decoded = store.decode_batches(images, model, batch_size)
        batches = (np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)) for pixels in decoded)
        with closing(write(store, images, batches, partial)) as counts:
            for done in itertools.accumulate(counts):
                if progress is not None:
                    progress(done, len(images))
    return len(images)


def _write_pngs(store: EncodedStore, images: range, batches: Batches, folder: Path) -> Generator[int]:
    """Write each of `batches`, and yield how many images that were; so does `_write_array`."""
    names = png_names(store.names)  # of all images, so that a name does not depend on which are decoded
    # The bytes on the disk are UTF-8 in every locale, as those of the images that were encoded.
    targets = (folder / os.fsdecode(str(names[i]).encode()) for i in images)

    def write(batch: NDArray[np.uint8]) -> int:
        for pixels, target in zip(batch, targets, strict=False):
            _save(pixels, target)
        return len(batch)

    return write_behind(write, batches)  # writing a small PNG takes half as long as decoding it


def _save(pixels: NDArray[np.uint8], target: Path) -> None:
    """Write `target`, which must be new: file systems may take names for equal that differ, as in case."""
    channels = pixels.shape[-1]
    if channels not in (1, 3):
        raise DataError(f"PNG files hold 1 or 3 channels, these images have {channels}; decode with --format npy")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "xb") as file:
            Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(file, format="PNG")
    except (FileExistsError, NotADirectoryError):
        raise StoreError(
            f"two images would be written to {target.name}, or to a file and below it; decode with --format npy"
        ) from None


def _write_array(store: EncodedStore, images: range, batches: Batches, folder: Path) -> Generator[int]:
    channels, size = store.metadata.image.channels, store.image_size
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(images), size, size, channels)}
    # Not a memory map: on a full disk, writing to one kills the process without a word.
    with open(folder / "images.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for batch in batches:
            file.write(batch.data)
            yield len(batch)
    with open(folder / "names.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["name", "label"])
        rows.writerows((store.names[i], store.labels[i]) for i in images)


def png_names(names: Sequence[str]) -> list[PurePosixPath]:
    """Names with the ending .png; if two would be equal, it is added to the old ending instead.

    >>> [str(p) for p in png_names(["cats/1.jpg", "cats/2.jpg", "cats/2.png"])]
    ['cats/1.png', 'cats/2.jpg.png', 'cats/2.png']

    Raises `StoreError` if a name leads out of the folder, or two names stay equal.
    """
    paths = [_inside(name) for name in names]
    pngs = [path.with_suffix(".png") for path in paths]
    uses = collections.Counter(pngs)
    targets = [
        png if uses[png] == 1 or png == path else path.with_name(f"{path.name}.png")
        for path, png in zip(paths, pngs, strict=True)
    ]
    for target, count in collections.Counter(targets).items():
        if count > 1:
            raise StoreError(f"two images would be written to {target}; decode with --format npy")
    return targets


def _inside(name: str, *, windows: bool = os.name == "nt") -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    # A drive leads elsewhere; a device does on Windows alone, and here "12:30.png" and "con.png" are names like others.
    elsewhere = PureWindowsPath(name).anchor or (windows and any(map(_is_special_on_windows, path.parts)))
    if elsewhere or not path.name or ".." in path.parts or "\0" in name:
        raise StoreError(f"the store names an image {name!r}, which leads out of the folder; decode with --format npy")
    return path


def _is_special_on_windows(part: str) -> bool:
    """Whether Windows takes `part` for a device, a stream of another file, or a name without the dots at its end."""
    device = re.fullmatch(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])( *\..*)?", part, re.IGNORECASE)
    return bool(device) or ":" in part or part != part.rstrip(". ")
