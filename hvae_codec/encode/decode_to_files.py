"""A store decoded into a folder: image files under their own names and class folders, or one array."""

from __future__ import annotations

import collections
import csv
import os
import re
import shutil
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
from ..store.reader import Store
from .coder import LatentCoder

Format = Literal["png", "npy"]


def decode_to_folder(
    store: Store,
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
    `names.csv`. The folder appears when it is whole. Raises `DataError` where it exists and is not empty, or where
    PNG cannot hold the model's channels; `StoreError` where the store is of another model, damaged, or names a file
    outside the folder.
    """
    images = images if images is not None else range(len(store))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists and is not empty; give another folder")
    partial = folder.absolute().with_name(f"{folder.absolute().name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        write = _write_pngs if file_format == "png" else _write_array
        done = 0
        with closing(write(store, images, _decoded(store, model, images, batch_size), partial)) as counts:
            for done in counts:
                if progress is not None:
                    progress(done, len(images))
        os.replace(partial, folder.absolute())  # "." itself cannot be replaced
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return done


def _decoded(store: Store, model: HVAE, images: range, batch_size: int) -> Iterator[NDArray[np.uint8]]:
    """Decoded batches, uint8 [B, H, W, C]."""
    coder = LatentCoder.of_store(store, model)
    for first in range(0, len(images), batch_size):
        stored = store.gather(images[first : first + batch_size])
        yield np.ascontiguousarray(coder.decode_pixels(stored).permute(0, 2, 3, 1).cpu().numpy())


def _write_pngs(store: Store, images: range, batches: Iterator[NDArray[np.uint8]], folder: Path) -> Generator[int]:
    names = png_names(store.names)  # of all images, so that a name does not depend on which are decoded
    targets = (folder / names[i] for i in images)

    def write(batch: NDArray[np.uint8]) -> int:
        for pixels, target in zip(batch, targets, strict=False):
            _save(_image(pixels), target)
        return len(batch)

    done = 0
    # Writing a small PNG takes half as long as decoding it.
    with closing(write_behind(write, batches)) as written:
        for count in written:
            done += count
            yield done


def _save(image: Image.Image, target: Path) -> None:
    """Write `target`, which must be new: file systems may take names for equal that differ, as in case."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "xb") as file:
            image.save(file, format="PNG")
    except (FileExistsError, NotADirectoryError):
        raise StoreError(
            f"two images would be written to {target.name}, or to a file and below it; decode with --format npy"
        ) from None


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    channels = pixels.shape[-1]
    if channels not in (1, 3):
        raise DataError(f"PNG files hold 1 or 3 channels, these images have {channels}; decode with --format npy")
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def _write_array(store: Store, images: range, batches: Iterator[NDArray[np.uint8]], folder: Path) -> Generator[int]:
    channels, size = store.metadata.image.channels, store.image_size
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(images), size, size, channels)}
    done = 0
    # Not a memory map: on a full disk, writing to one kills the process without a word.
    with open(folder / "images.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for batch in batches:
            file.write(batch.data)
            done += len(batch)
            yield done
    with open(folder / "names.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["name", "label"])
        rows.writerows((store.names[i], store.labels[i]) for i in images)


def png_names(names: Sequence[str]) -> list[PurePosixPath]:
    """Names with the ending .png; where two would be equal, it is added to the old ending instead.

    >>> [str(p) for p in png_names(["cats/1.jpg", "cats/2.jpg", "cats/2.png"])]
    ['cats/1.png', 'cats/2.jpg.png', 'cats/2.png']

    Raises `StoreError` where a name leads out of the folder, or two names stay equal.
    """
    paths = [_inside(name) for name in names]
    uses = collections.Counter(_stem(path) for path in paths)
    targets = [_png(path, alone=uses[_stem(path)] == 1) for path in paths]
    twice = [str(target) for target, count in collections.Counter(targets).items() if count > 1]
    if twice:
        raise StoreError(f"two images would be written to {twice[0]}; decode with --format npy")
    return targets


def _png(path: PurePosixPath, *, alone: bool) -> PurePosixPath:
    return _stem(path) if alone or path.suffix == ".png" else path.with_name(path.name + ".png")


def _stem(path: PurePosixPath) -> PurePosixPath:
    return path.with_suffix(".png")


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
