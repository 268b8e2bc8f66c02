"""A store decoded into a folder: image files under their own names and class folders, or one array.

    OUT.partial    .decode.json    what is decoded here, and how: the same decode goes on after a kill
                   cats/1.png ...  written in order, so that the last one at most is torn

What is there is taken in whole batches, so that the pixels are those of an unbroken decode to the last bit.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import itertools
import os
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError, StoreError
from ..lookahead import write_behind
from ..model.batch_size import batch_size_of
from ..model.checkpoint import model_hash
from ..model.decoder import Decoder, decoder_hash
from ..model.hvae import HVAE
from ..progress import Progress
from ..storage.new_folder import discard, empty, finish_folder, new_folder
from .encoded_store import EncodedStore
from .png_names import NPY, png_names

Format = Literal["png", "npy"]
Batches = Iterator[NDArray[np.uint8]]
"""Pixels, [B, C, H, W]."""

PNG_THREADS = 4  # that compress images, at most
_END_OF_PNG = bytes.fromhex("0000000049454e44ae426082")  # the chunk IEND, which is the same in all files
_NO_NAME = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


class _NameError(StoreError):
    """A file that cannot be written under its name, nor if the same is decoded again."""


def decode_to_folder(
    store: EncodedStore,
    model: HVAE | Decoder,
    folder: Path,
    *,
    images: range | None = None,
    file_format: Format = "png",
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Decode the images of `store` (all, or those numbered `images`) into `folder`; returns how many.

    `png` restores names and class folders, with the ending .png; `npy` writes `images.npy`, uint8 [N, H, W, C], and
    `names.csv`. The folder appears when it is whole; killed at any moment, the same call continues, and what another
    call left there is removed. `progress` counts the images that were written before.
    Raises `DataError` if the folder, or the one that it is built in, has something else in it, or if PNG cannot hold
    the model's channels; `StoreError` if the store is of another model, damaged, or has names that cannot be files.
    """
    images = images if images is not None else range(len(store))
    files = (_PngFiles if file_format == "png" else _ArrayFile)(store, images)
    store.decoder(model)  # raises before anything is written
    batch_size = batch_size_of(model, batch_size)
    digests = hashlib.sha256(store.arrays.read("committed").tobytes()).hexdigest()  # the fingerprint is of names alone
    hash_ = decoder_hash(model) if isinstance(model, Decoder) else model_hash(model)
    job = {"store": store.metadata.fingerprint, "row_groups": digests, "model": hash_}
    job |= {"images": str(images), "format": file_format, "batch_size": str(batch_size), "device": str(model.device)}
    if not finish_folder(folder, job):
        with new_folder(folder, job) as partial:
            done = files.resume(partial, batch_size)
            with (
                _removed_on_name_error(partial),
                closing(store.decode_batches(images[done:], model, batch_size)) as decoded,
                closing(files.write(partial, done, decoded)) as counts,
            ):
                for written in itertools.accumulate(counts, initial=done):
                    if progress is not None and written > 0:
                        progress(written, len(images))
    return len(images)


@contextmanager
def _removed_on_name_error(partial: Path) -> Iterator[None]:
    try:
        yield
    except _NameError:
        discard(partial)
        raise


class _PngFiles:
    """A file for each image."""

    def __init__(self, store: EncodedStore, images: range) -> None:
        channels = store.metadata.image.channels
        if channels not in (1, 3):
            raise DataError(f"PNG files hold 1 or 3 channels, these images have {channels}; {NPY}")
        names = png_names(store.names)  # of all images, so that a name does not depend on which are decoded
        # The bytes on the disk are UTF-8 in every locale, as those of the images that were encoded.
        self._targets = [os.fsdecode(str(names[i]).encode()) for i in images]

    def resume(self, folder: Path, batch_size: int) -> int:
        """Remove what is beyond the last whole batch in `folder`; returns how many images are left."""
        whole = sum(1 for _ in itertools.takewhile(_is_whole, (folder / target for target in self._targets)))
        done = whole - whole % batch_size
        for target in self._targets[done : whole + 1]:
            with suppress(OSError):  # not there, or a folder, which writing the file will tell of
                (folder / target).unlink()
        # Hidden files are the marker, and what file systems and desktops put there.
        if sum(path.is_file() and not path.name.startswith(".") for path in folder.rglob("*")) == done:
            return done
        empty(folder)  # a power cut tore more than the last file, or the file system takes two of the names for one
        return 0

    def write(self, folder: Path, done: int, batches: Batches) -> Generator[int]:
        """Write each of `batches`, from image `done`, and yield how many images that were."""
        targets = (folder / target for target in self._targets[done:])

        # Files appear in order, from one thread. Compression takes longer, and has its own threads if there are cores.
        threads = min(PNG_THREADS, (os.cpu_count() or 1) // 2)
        with ThreadPoolExecutor(max(threads, 1), "compress PNG") as pool:

            def write(batch: NDArray[np.uint8]) -> int:
                images = _channels_last(batch)
                pngs = pool.map(_png, images) if threads > 1 else map(_png, images)
                for png, target in zip(pngs, targets, strict=False):
                    _save(png, target)
                return len(batch)

            with closing(write_behind(write, batches)) as counts:
                yield from counts


def _is_whole(png: Path) -> bool:
    try:
        with open(png, "rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(max(0, size - len(_END_OF_PNG)))
            return file.read() == _END_OF_PNG
    except OSError:  # not there, or a folder
        return False


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Compress an image, uint8 [H, W, C]."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, format="PNG")
    return file.getvalue()


def _channels_last(batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(batch.transpose(0, 2, 3, 1))


def _save(png: bytes, target: Path) -> None:
    """Write `target`, which must be new: file systems may take names for equal that differ, as in case."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "xb") as file:
            file.write(png)
    except (FileExistsError, NotADirectoryError):
        raise _NameError(f"two images would be written to {target.name}, or to a file and below it; {NPY}") from None
    except (OSError, UnicodeEncodeError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_NAME:
            raise
        why = getattr(error, "strerror", None) or error
        raise _NameError(f"{target.name!r} cannot be the name of a file here ({why}); {NPY}") from None


class _ArrayFile:
    """One array of all images, and a table of their names."""

    def __init__(self, store: EncodedStore, images: range) -> None:
        self._store, self._images = store, images
        shape = len(images), store.image_size, store.image_size, store.metadata.image.channels
        self._image_bytes, header = store.image_dims, io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        self._header = header.getvalue()

    def resume(self, folder: Path, batch_size: int) -> int:
        """Compare with `_PngFiles`."""
        file = folder / "images.npy"
        images = max(0, file.stat().st_size - len(self._header)) // self._image_bytes if file.exists() else 0
        return images - images % batch_size

    def write(self, folder: Path, done: int, batches: Batches) -> Generator[int]:
        """Compare with `_PngFiles`."""
        # Not a memory map: on a full disk, writing to one kills the process without a word.
        with open(folder / "images.npy", "r+b" if done else "wb") as array:
            array.write(self._header)
            array.truncate(len(self._header) + done * self._image_bytes)
            array.seek(0, io.SEEK_END)

            def write(batch: NDArray[np.uint8]) -> int:
                array.write(_channels_last(batch).data)
                return len(batch)

            with closing(write_behind(write, batches)) as counts:
                yield from counts
        with open(folder / "names.csv", "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["name", "label"])
            rows.writerows((self._store.names[i], self._store.labels[i]) for i in self._images)
