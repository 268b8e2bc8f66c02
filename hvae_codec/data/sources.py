"""Image sources -> uint8 [B, C, H, W] with stable names and labels: the only loader.

A source is a folder of image files or one array (`.npy`, `.npz`, zarr). It is a fixed, ordered list of names; pixels
are read when asked for, all at the model's size and channels.

    open_images(DATA, size=32, channels=3).split("train").read([0, 5, 7])    uint8 [3, 3, 32, 32]
"""

from __future__ import annotations

import hashlib
import os
import sys
from array import array
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError, UsageError
from .arrays import ArrayReader, is_array, open_array
from .pixels import EXTENSIONS, BrokenImageError, fit, read_image_file

Split = Literal["train", "val", "all"]

HELD_OUT = 10
"""Without a val/ folder, one image in this many is held out for validation, chosen by a hash of its name."""

READ_AHEAD = 4
"""Batches that `ImageSource.batches` decodes ahead of the one in use, and its threads at most."""


class Reader(Protocol):
    """Where pixels come from; positions count the images of the whole file or folder."""

    @property
    def file_bytes(self) -> NDArray[np.int64]:
        """Bytes of each image in the source, int64 [N]."""

    @property
    def resized(self) -> NDArray[np.bool_]:
        """Which images were found to be of another size, so far."""

    @property
    def alpha_dropped(self) -> NDArray[np.bool_]:
        """Which images were found to have an alpha channel, so far."""

    def read(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Pixels at `positions`, uint8 [B, C, size, size]."""

    def content(self, positions: NDArray[np.int64]) -> bytes:
        """What a fingerprint knows of the pixels."""


@dataclass(frozen=True, eq=False)
class ImageSource:
    """A fixed, ordered list of images, all delivered at one size and channel count; `open_images` makes one."""

    names: Sequence[str]
    """Path relative to the folder, with extension ("train/astronaut/00012.png"); in an array "00000017"."""
    labels: Sequence[str]
    """First folder of the name after a leading train/ or val/ ("astronaut"); "" where there is none."""
    size: int
    """Height and width of every image, in pixels."""
    channels: int
    """Channels of every image."""
    skipped: Sequence[str]
    """Names of broken files that were left out, where `skip_broken` was asked for."""
    reader: Reader
    """Where the pixels come from."""
    positions: NDArray[np.int64]
    """Place of each image in the reader, int64 [N]."""

    def __len__(self) -> int:
        return len(self.names)

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Pixels of the images at `indices`, in that order: uint8 [B, C, size, size].

        Raises `DataError` naming the file where one is broken or not what the model takes.
        """
        return self.reader.read(self.positions[np.asarray(indices, np.int64)])

    def batches(self, batch_size: int, *, start: int = 0, stop: int | None = None) -> Generator[NDArray[np.uint8]]:
        """Images `start` to `stop` in order, in batches of uint8 [B, C, size, size]; the last may be smaller.

        A few batches are decoded ahead by threads, which end with the generator. Their errors are raised here, in
        the place of the batch they belong to.
        """
        check_batch_size(batch_size)
        return self._batches(range(len(self))[start:stop], batch_size)

    def _batches(self, wanted: range, batch_size: int) -> Generator[NDArray[np.uint8]]:
        pending: deque[Future[NDArray[np.uint8]]] = deque()
        pool = ThreadPoolExecutor(min(READ_AHEAD, os.cpu_count() or 1), "read images")
        try:
            for first in range(0, len(wanted), batch_size):
                pending.append(pool.submit(self.read, wanted[first : first + batch_size]))
                if len(pending) > READ_AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> ImageSource:
        """The images at `indices`, in that order."""
        chosen = np.asarray(indices, np.int64)
        return replace(
            self,
            names=tuple(self.names[i] for i in chosen),
            labels=tuple(self.labels[i] for i in chosen),
            positions=self.positions[chosen],
        )

    def evenly(self, count: int) -> ImageSource:
        """At most `count` images, evenly spaced over this source."""
        return self if len(self) <= count else self.subset(self._evenly(count))

    def evenly_first(self, count: int) -> ImageSource:
        """The same images, those of `evenly(count)` before all others."""
        if len(self) <= count:
            return self
        first = self._evenly(count)
        return self.subset(np.concatenate([first, np.setdiff1d(np.arange(len(self)), first)]))

    def _evenly(self, count: int) -> NDArray[np.int64]:
        return np.linspace(0, len(self) - 1, count).round().astype(np.int64)

    def split(self, which: Split) -> ImageSource:
        """The images for training, those held out for validation, or all; see `split_indices`."""
        return self if which == "all" else self.subset(split_indices(self.names, which))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of size, channels, and each image's name and bytes in order; for arrays also of some pixels.

        The same on every machine and after copying; file times do not enter.
        """
        digest = hashlib.sha256(f"images {self.size} {self.channels}\n".encode())
        for name, count in zip(self.names, self.reader.file_bytes[self.positions].tolist(), strict=True):
            digest.update(f"{name}\0{count}\n".encode())
        digest.update(self.reader.content(self.positions))
        return digest.hexdigest()

    @property
    def source_bytes(self) -> int:
        """Bytes of the image files; of an array, its raw pixels."""
        return int(self.reader.file_bytes[self.positions].sum())

    @property
    def resized(self) -> int:
        """Images of another size, so cropped and resized, among those read so far; each counts once."""
        return int(self.reader.resized[self.positions].sum())

    @property
    def alpha_dropped(self) -> int:
        """Images whose alpha channel or transparent colour was dropped, among those read so far; each counts once."""
        return int(self.reader.alpha_dropped[self.positions].sum())


def open_images(path: Path | str, *, size: int, channels: int, skip_broken: bool = False) -> ImageSource:
    """Open a folder of images, or an array of them, as images of `size` × `size` pixels and `channels` channels.

    A folder is searched with its subfolders for PNG, JPEG, WebP, BMP, TIFF and GIF files (first frame); hidden and
    other files are passed over; order is by name. Arrays (`.npy`, `.npz`, zarr) are uint8 [N, H, W] or [N, H, W, C].
    With `skip_broken` every file is decoded once now, and broken ones are left out and named in `skipped`.
    Raises `DataError` where there is no image, or not the right kind of array, and from reads.
    """
    path = Path(path)
    if size < 1 or channels < 1:
        raise UsageError(f"the image size is {size} and the channels are {channels}; both must be at least 1")
    if not path.exists():
        raise DataError(f"there is no {path}; give a folder of images, or a .npy, .npz or zarr array")
    if is_array(path):
        images = open_array(path, size, channels)
        names = tuple(f"{i:08d}" for i in range(len(images)))
        return ImageSource(names, images.labels, size, channels, (), images, np.arange(len(names)))
    if not path.is_dir():
        raise DataError(f"{path} is not a folder, .npy, .npz or zarr array; put images into a folder and give that")
    return _open_folder(path, size, channels, skip_broken)


def check_batch_size(batch_size: int) -> None:
    """Raise `UsageError` where `batch_size` is none."""
    if batch_size < 1:
        raise UsageError(f"the batch size is {batch_size}; it must be at least 1")


def as_source(images: ImageSource | ArrayLike) -> ImageSource:
    """A source as it is; an array or tensor in memory, uint8 [N, C, H, W], as a source of that size.

    Raises `DataError` where it is something else.
    """
    if isinstance(images, ImageSource):
        return images
    pixels = np.asarray(images.cpu() if hasattr(images, "cpu") else images)  # a tensor may be on a GPU
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[2] != pixels.shape[3]:
        raise DataError(f"the images are {pixels.dtype} {list(pixels.shape)}; give uint8 [N, C, H, W] with H = W")
    names = tuple(f"{i:08d}" for i in range(len(pixels)))
    channels, size = pixels.shape[1], pixels.shape[2]
    reader = ArrayReader(Path("array"), pixels.transpose(0, 2, 3, 1), size, channels, ("",) * len(names))
    return ImageSource(names, reader.labels, size, channels, (), reader, np.arange(len(names)))


# --- splits ----------------------------------------------------------------------------------------------------------


def split_indices(names: Sequence[str], which: Literal["train", "val"]) -> list[int]:
    """Places in `names` of the images for training or for validation.

    - With images below both train/ and val/, those are the splits; other images belong to neither.
    - With only val/, everything outside it is for training.
    - Otherwise about one in ten of all is held out, chosen by SHA-256 of the name, so that the choice is the same on
      every machine and does not change as images are added. A class folder may be called train.
    A share that would be empty (a data set of one image) is all images instead.
    """
    tops = [name.partition("/")[0] if "/" in name else "" for name in names]
    in_train, in_val = ([i for i, top in enumerate(tops) if top == split] for split in ("train", "val"))
    if not in_val and len(in_train) < len(names):
        in_train = []  # a class folder that happens to be called train
    outside_val = in_train or [i for i, top in enumerate(tops) if top != "val"]
    if in_val and outside_val:
        return outside_val if which == "train" else in_val
    pool = in_train or list(range(len(names)))
    return [i for i in pool if is_held_out(names[i]) == (which == "val")] or pool


def is_held_out(name: str) -> bool:
    """Whether a name belongs to the tenth held out for validation: SHA-256's first 8 bytes, modulo 10, are 0.

    >>> [is_held_out(f"{i:08d}") for i in range(25)].count(True)
    3
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % HELD_OUT == 0


def label_of(name: str) -> str:
    """The class folder in an image's name.

    >>> label_of("train/astronaut/00012.png"), label_of("cats/1.png"), label_of("val/1.png"), label_of("1.png")
    ('astronaut', 'cats', '', '')
    """
    folders = name.split("/")[:-1]
    return next(iter(folders[1:] if folders and folders[0] in ("train", "val") else folders), "")


# --- folders ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FolderReader:
    """Reads image files below `root`."""

    root: Path
    names: Sequence[str]
    size: int
    channels: int
    file_bytes: NDArray[np.int64]
    resized: NDArray[np.bool_] = field(init=False)
    alpha_dropped: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        for name in ("resized", "alpha_dropped"):
            object.__setattr__(self, name, np.zeros(len(self.names), bool))

    def read(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Pixels of the files at `positions`, uint8 [B, channels, size, size]."""
        out = np.empty((len(positions), self.channels, self.size, self.size), np.uint8)
        for image, i in zip(out, positions.tolist(), strict=True):
            pixels, self.alpha_dropped[i] = read_image_file(self.root / self.names[i], self.channels)
            self.resized[i] = pixels.shape[:2] != (self.size, self.size)
            image[:] = fit(pixels, self.size)
        return out

    def content(self, positions: NDArray[np.int64]) -> bytes:
        """Nothing: names and file sizes tell folders apart without reading every file."""
        return b""


def _open_folder(root: Path, size: int, channels: int, skip_broken: bool) -> ImageSource:
    found: list[str] = []
    sizes = array("q")  # not pairs with the names: a million of these leave 60 MB behind
    for name, count in _scan(root, "", ()):
        found.append(name)
        sizes.append(count)
    if not found:
        raise DataError(f"there are no images in {root}; files ending in {', '.join(EXTENSIONS)} are read")
    order = sorted(range(len(found)), key=found.__getitem__)
    names = tuple(found[i] for i in order)
    reader = FolderReader(root, names, size, channels, np.array(sizes, np.int64)[order])
    labels = tuple(sys.intern(label_of(name)) for name in names)  # one text a class, not one an image
    source = ImageSource(names, labels, size, channels, (), reader, np.arange(len(names)))
    return _without_broken(source, root) if skip_broken else source


def _scan(folder: Path, prefix: str, above: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Name and bytes of each image file below `folder`; `above` are the real folders passed, against link loops."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"cannot list the folder {folder} ({error.strerror}); make it readable") from None
    for entry in entries:
        name = prefix + entry.name
        if entry.is_dir():
            yield from _scan(folder / entry.name, f"{name}/", (*above, real))
        elif entry.name.lower().endswith(EXTENSIONS):
            yield _checked_name(name, folder), _file_bytes(entry)


def _checked_name(name: str, folder: Path) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"the file name {name!r} in {folder} is not UTF-8, so no store can hold it; rename it"
        ) from None
    return name


def _file_bytes(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a dangling link: reading it names the file
        return 0


def _without_broken(source: ImageSource, root: Path) -> ImageSource:
    good: list[int] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, len(source), 1024):  # in parts: a pool keeps an object for every task
            names = source.names[first : first + 1024]
            whole = pool.map(lambda name: _is_whole(root / name, source.channels), names)
            good += [i for i, is_good in enumerate(whole, first) if is_good]
    if not good:
        raise DataError(f"all {len(source)} images in {root} are broken; give a folder with images that can be read")
    kept = set(good)
    skipped = tuple(name for i, name in enumerate(source.names) if i not in kept)
    return replace(source.subset(good), skipped=skipped)


def _is_whole(path: Path, channels: int) -> bool:
    try:
        read_image_file(path, channels)
    except BrokenImageError:
        return False
    return True
