"""Image sources -> uint8 [B, C, H, W] with stable names and labels: the only loader.

A source is a selection from one container: image files in a folder, a zip, tars or Parquet files, arrays, a published
set in its own files, or a Python data set.

    open_images(DATA, size=32, channels=3).split("train").read([0, 5, 7])    uint8 [3, 3, 32, 32]
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError, UsageError
from ..lookahead import map_ahead
from ..storage.bucket import BucketLocation
from ..storage.location import AnyPath
from ..texts.packed import as_texts
from ..texts.sequence import BLOCK, Texts
from .arrays import ArrayContainer, is_array, open_array
from .cifar import is_cifar, open_cifar
from .containers import Container
from .datasets import DatasetContainer, ImageDataset, is_dataset, shape_of_first
from .file_sets import is_range
from .folders import open_folder
from .foreign import is_foreign, refuse_foreign
from .idx import is_idx, open_idx
from .npz import is_npz, open_npz
from .parquet import is_parquet, open_parquet
from .preprocessing import Preprocessing
from .row_groups import RowGroups
from .seen import Seen
from .splits import Part, Split, Splits, find_splits, split_by_hash
from .stamps import Stamps
from .tars import is_compressed_tar, is_tars, open_tars, refuse_compressed_tar
from .urls import data_path, has_columns_at, open_url
from .zips import is_zip, open_zip

READ_AHEAD = 4  # batches that `ImageSource.batches` decodes ahead of the one in use, and its threads at most

_GIVE = "give a folder of images, a .zip, .tar or .parquet of them, or a .npy, .npz or zarr array"

KINDS: tuple[tuple[Callable[[Path], bool], Callable[..., Container]], ...] = (
    (is_array, open_array),
    (is_npz, open_npz),
    (is_idx, open_idx),
    (is_cifar, open_cifar),
    (is_zip, open_zip),
    (is_tars, open_tars),
    (is_parquet, open_parquet),
    (is_compressed_tar, refuse_compressed_tar),
    (is_foreign, refuse_foreign),
    (Path.is_dir, open_folder),
)
"""Kinds of container: whether one lies at a path, and what opens it. The first one counts: any may be a folder."""


WITH_COLUMNS: tuple[Callable[..., Container], ...] = (open_parquet,)
"""What opens containers whose images may be in one of several columns; takes `column`."""


@dataclass(frozen=True, eq=False)
class ImageSource:
    """A fixed, ordered list of images, all delivered at one size and channel count; `open_images` makes one."""

    names: Texts  # path in the container, such as "train/astronaut/00012.png"; in an array "00000017"
    labels: Texts  # class, by the folder in the name, such as "astronaut", or as stated; "" if there is none
    size: int  # height and width of every image, in pixels
    channels: int  # channels of every image
    skipped: Mapping[str, str]  # names of files that were left out, if `skip_unusable` was asked for: "broken", "grey"
    container: Container  # where the pixels come from
    positions: NDArray[np.int64]  # position of each image in the container, int64 [N]
    held_out: bool | None = None  # whether training leaves these images out; None if no `split` says so

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", as_texts(self.names))
        object.__setattr__(self, "labels", as_texts(self.labels))

    def __len__(self) -> int:
        return len(self.names)

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read the images at `indices`, in that order: uint8 [B, C, size, size].

        Raises `DataError` naming the file if one is broken or not what the model takes.
        """
        return self.container.read(self.positions[np.asarray(indices, np.int64)])

    def checksums(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint32]:
        """Return the CRC-32 (zlib) of the bytes of the images at `indices`, uint32 [B], as they were read last.

        Bytes are an image's file or, of an array, its elements in C order. Those of images that were never read are
        read now; raises `DataError` if they cannot be.
        """
        positions = self.positions[np.asarray(indices, np.int64)]
        for position in positions[~self.container.seen.is_checked[positions]].tolist():
            self.container.checksum(position)
        return self.container.seen.checksums[positions]

    def batches(self, batch_size: int, *, start: int = 0, stop: int | None = None) -> Generator[NDArray[np.uint8]]:
        """Yield images `start` to `stop` in order, in batches of uint8 [B, C, size, size]; the last may be smaller.

        A few batches are decoded ahead by threads, which end with the generator; an error is raised in place of its
        batch.
        """
        check_batch_size(batch_size)
        parts = self.container.announced(self.positions[start:stop], batch_size)
        threads = min(READ_AHEAD, os.cpu_count() or 1)
        return map_ahead(self.container.read, parts, threads=threads, waiting=READ_AHEAD, name="read images")

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> ImageSource:
        """Select the images at `indices`, in that order."""
        chosen = np.asarray(indices, np.int64)
        positions = self.positions[chosen]
        # Of all images, these are the same; one array serves both then.
        within = positions if self.names is self.container.names else np.arange(len(self))[chosen]
        return replace(self, names=self.names.take(within), labels=self.labels.take(within), positions=positions)

    def portion(self, indices: Sequence[int] | NDArray[np.int64]) -> ImageSource:
        """Take the images at `indices`, in that order, to be read in another process: small, and it can be pickled.

        Of images in memory, and of a Python data set, a portion holds the pixels; of others, where they lie. Names,
        labels, pixels, `numbers` and errors are those of this source; the splits are not known. What a portion has
        `seen` is for `note` of this source.
        """
        positions = self.positions[np.asarray(indices, np.int64)]
        return replace(_source_of(self.container.portion(positions)), held_out=self.held_out)

    @property
    def numbers(self) -> NDArray[np.int64]:
        """Position of each image in the data set as it was opened, also in a portion of it, int64 [N]."""
        return self.container.numbers_of(self.positions)

    @property
    def seen(self) -> Seen:
        """What reading has shown of the images so far."""
        return self.container.seen.of(self.positions)

    def note(self, indices: Sequence[int] | NDArray[np.int64], seen: Seen) -> None:
        """Note what was `seen` of the images at `indices` in a portion of them."""
        self.container.seen.note(self.positions[np.asarray(indices, np.int64)], seen)

    def evenly(self, count: int) -> ImageSource:
        """Select at most `count` images, evenly spaced over this source."""
        return self if len(self) <= count else self.subset(self._evenly(count))

    def evenly_first(self, count: int) -> ImageSource:
        """Reorder the images: those of `evenly(count)` before all others."""
        first = self._evenly(min(count, len(self)))
        return self.subset(np.concatenate([first, np.setdiff1d(np.arange(len(self)), first)]))

    def _evenly(self, count: int) -> NDArray[np.int64]:
        return np.linspace(0, len(self) - 1, count).round().astype(np.int64)

    def split(self, which: Split) -> ImageSource:
        """Select the images for training, those held out for validation, those of test folders, or all.

        `find_splits` says which these are. If no image can be held out, "val" is all images, and `held_out` is False.
        Raises `DataError` if there is no image of that split.
        """
        if which == "all":
            return self
        if not self.has_split(which):
            raise DataError(_no_images(self, which))
        chosen = self.subset(self.splits.indices(which))
        return replace(chosen, held_out=which != "train" and self.splits.is_held_out)

    def has_split(self, part: Part) -> bool:
        """Whether there are images of that split."""
        return len(self.splits.indices(part)) > 0

    @cached_property
    def groups(self) -> RowGroups | None:
        """Which images the container reads at once; None if it reads each alone."""
        groups = self.container.groups()
        return None if groups is None else groups.select(self.positions)

    @property
    def before_skipping(self) -> ImageSource:
        """All images of the container, also those that were left out."""
        return _source_of(self.container)

    @cached_property
    def splits(self) -> Splits:
        """What the images are for; raises `ValueError` if this is a portion, as names elsewhere may decide that."""
        if self.container.numbers is not None:
            raise ValueError("a portion does not know what its images are for; ask the source that it was taken from")
        if self.preprocessing.splits == "none":
            return split_by_hash(self.names)
        stated = self.container.parts
        return find_splits(self.names, None if stated is None else stated.of(self.positions))

    @cached_property
    def split_names(self) -> Texts:
        """What each image is for in its container, whatever was selected of it: "train", "val", "test" or "".

        An image of a test folder is "test", also if there is no val folder and it is used for validation.
        """
        is_whole = np.array_equal(self.positions, np.arange(len(self.container)))
        whole = self if is_whole else self.before_skipping
        return whole.splits.names(len(whole)).take(self.positions)

    @property
    def file_bytes(self) -> NDArray[np.int64]:
        """Bytes of each image file or, of an array, of its elements, int64 [N]."""
        return self.container.file_bytes[self.positions]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of size, channels, and each image's name and bytes in order; for arrays also of some pixels.

        Also of the preprocessing that decides the pixels, unless it is the default. The same on every machine and after
        copying; file times do not enter.
        """
        digest = hashlib.sha256(f"images {self.size} {self.channels}\n".encode())
        if self.preprocessing.pixel_options:
            digest.update(f"{json.dumps(self.preprocessing.pixel_options, sort_keys=True)}\n".encode())
        for first, names in zip(range(0, len(self), BLOCK), self.names.blocks(BLOCK), strict=True):
            counts = self.file_bytes[first : first + BLOCK].tolist()
            lines = [f"{name}\0{count}\n" for name, count in zip(names, counts, strict=True)]
            digest.update("".join(lines).encode())
        digest.update(self.container.content(self.positions))
        return digest.hexdigest()

    @property
    def preprocessing(self) -> Preprocessing:
        """What is done to the images before they are delivered."""
        return self.container.preprocessing

    @property
    def source_bytes(self) -> int:
        """Bytes of the image files; of an array, its raw pixels."""
        return int(self.file_bytes.sum())

    @property
    def resized(self) -> int:
        """Images of another size, so cropped and resized, among those read so far; each counts once."""
        return int(self.container.seen.resized[self.positions].sum())

    @property
    def alpha_dropped(self) -> int:
        """Images whose alpha channel or transparent colour was dropped, among those read so far; each counts once."""
        return int(self.container.seen.alpha_dropped[self.positions].sum())

    @property
    def frames_dropped(self) -> int:
        """Images with several frames or pages, of which only the first is read, among those read so far."""
        return int(self.container.seen.frames_dropped[self.positions].sum())

    @property
    def recoloured(self) -> int:
        """Images that were grey and are colour now, or the other way round, among those read so far."""
        return int(self.container.seen.recoloured[self.positions].sum())

    @property
    def depth_reduced(self) -> int:
        """Images that had more than 8 bits per channel, among those read so far."""
        return int(self.container.seen.depth_reduced[self.positions].sum())


Images = ImageSource | ArrayLike | ImageDataset
"""What functions take as images: a source, uint8 [N, C, H, W] in memory, or a Python data set."""


def open_images(
    path: AnyPath | str | ImageDataset,
    *,
    size: int,
    channels: int,
    skip_unusable: bool = False,
    skip_broken: bool = False,
    **preprocessing: Any,
) -> ImageSource:
    """Open the images at `path`, or of a Python data set, as `size` × `size` pixels of `channels` channels.

    A folder is searched with its subfolders for PNG, JPEG, WebP, BMP, TIFF, GIF (first frame), PPM and AVIF files, but
    not for hidden ones, nor below a folder that holds a run, a store or an analysis; order is by name. Zips, tars and
    sets of them (a folder of tars, or "x-{000..127}.tar") and Hugging Face's Parquet files are like folders of these.
    Arrays (`.npy`, `.npz`, zarr) are uint8 [N, H, W] or [N, H, W, C]. MNIST, CIFAR, ImageNet 32 and others are opened
    in the files that they are published in. Zips, tars and Parquet files may be at URLs, `s3://` and `gs://`; a file://
    is a path. A data set has a length, and gives an image, or one with a label, for each number below it. Further
    arguments are options of `Preprocessing`, such as crop="celeba", depth=8, splits="none" if a class is called test,
    or column="img", the images of a container that may have several columns of them. With `skip_unusable` (before:
    `skip_broken`), every file is decoded once now; those that cannot be used (broken, of other channels, too deep, too
    large or small, not regular files) are left out and named in `skipped`. Raises `DataError` if there is no image, or
    if the container is damaged or of another kind, or `UnreachableError` if a bucket does not answer; reads may raise
    them too. Raises `UsageError` if an option has no such value, a URL is of another kind, or a column is given and the
    container has none.
    """
    how = Preprocessing(**preprocessing)
    _check_colour(how, channels)
    if size < 1 or channels < 1:
        raise UsageError(f"the image size is {size} and the channels are {channels}; both must be at least 1")
    container = _open(path, how, size=size, channels=channels)
    container.preprocess(how)
    source = _source_of(container)
    return _without_unusable(source) if skip_unusable or skip_broken else source


def _check_colour(how: Preprocessing, channels: int) -> None:
    wanted = {"rgb": 3, "grey": 1}.get(how.colour, channels)
    if wanted != channels:
        raise UsageError(
            f"--colour is {how.colour}, and the model takes images of {channels} "
            f"channel{'s' if channels > 1 else ''}; leave it out, or train with --set model.channels={wanted}"
        )


def has_columns(path: AnyPath | str) -> bool:
    """Whether the images at `path` may be in one of several columns; raises `DataError` if nothing opens it."""
    location = data_path(path)
    return has_columns_at(location) if isinstance(location, BucketLocation) else _opener(location) in WITH_COLUMNS


def _open(path: AnyPath | str | ImageDataset, how: Preprocessing, *, size: int, channels: int) -> Container:
    if not isinstance(path, str | os.PathLike | BucketLocation):
        return DatasetContainer(path, how.column, size=size, channels=channels)
    place, opened = data_path(path), time.time_ns()
    column = {} if how.column is None else _column_of(place, how.column)
    if isinstance(place, BucketLocation):
        return open_url(place, size=size, channels=channels, **column)
    container = _opener(place)(place, size=size, channels=channels, **column)
    if container.stamps is None and not container.checksums_are_stated:  # all images in one file, or in a few
        container.stamps = Stamps.of_path(place, opened, len(container))
    return container


def _column_of(path: AnyPath, column: str) -> dict[str, str]:
    if not has_columns(path):
        raise UsageError(f"--column is {column!r}, and {path} has no columns of images; leave it out")
    return {"column": column}


def _opener(path: Path) -> Callable[..., Container]:
    """Find what opens `path`; raises `DataError` if nothing does."""
    if not path.exists() and not is_range(path):
        raise DataError(f"there is no {path}; {_GIVE}")
    if path.exists() and not (path.is_file() or path.is_dir()):  # opening a pipe would wait for ever
        raise DataError(f"{path} is not a regular file but a pipe, a device or a socket; {_GIVE}")
    opener = next((opener for is_kind, opener in KINDS if is_kind(path)), None)
    if opener is None:
        problem = "is a range of files of another kind" if is_range(path) else "is not a folder or another container"
        raise DataError(f"{path} {problem}; {_GIVE}")
    return opener


def _source_of(container: Container) -> ImageSource:
    everything = np.arange(len(container))
    return ImageSource(container.names, container.labels, container.size, container.channels, {}, container, everything)


def _without_unusable(source: ImageSource) -> ImageSource:
    container = source.container
    unusable = container.unusable()
    if len(unusable) == len(source):
        [(usual, _)] = Counter(unusable.values()).most_common(1)
        example = container.problem(next(i for i, reason in unusable.items() if reason == usual))
        raise DataError(f"none of the {len(source):,} images in {container.path} can be used: {example}")
    skipped = {source.names[i]: reason for i, reason in unusable.items()}
    left = np.delete(source.positions, list(unusable))
    _check_parts_are_left(source, left, skipped)
    return replace(source.subset(left), skipped=skipped)


def _check_parts_are_left(source: ImageSource, left: NDArray[np.int64], skipped: Mapping[str, str]) -> None:
    """Raise `DataError` if no image is left of those for training, or of those held out: others would stand in."""
    splits = source.splits
    held_out: Part = "val" if splits.folders.get("val") else "test"
    for part in ("train", held_out):
        stated, images = splits.folders.get(part, ()), splits.indices(part)
        if stated and len(images) and not np.isin(images, left).any():
            example = source.names[images[0]]
            where, other = " and ".join(stated), {"train": "trained on"}.get(part, "held out")
            raise DataError(
                f"none of the {len(images):,} images in {where} of {source.container.path} can be used ({example} is "
                f"{skipped[example]}), and no others may be {other} in their place; put usable ones there, or give "
                "the other images by themselves"
            )


def _no_images(source: ImageSource, which: Part) -> str:
    path, folders, stated = source.container.path, source.splits.folders, source.container.parts
    if which == "test" and source.preprocessing.splits == "none":
        return f"{path} was opened with --splits none, so no image is said to be for testing; choose another split"
    if which == "test":
        where = "is said to be for testing" if stated else "is in a folder test/, testing/, eval/ or evaluation/"
        return f"no image in {path} {where}; choose another split"
    where = " and ".join([*folders["val"], *folders["test"]])
    problem = f"all images in {path} are held out (in {where}), so none is for training"
    return f"{problem}; give training images as well{'' if stated else ', or one of these folders by itself'}"


def check_batch_size(batch_size: int) -> None:
    """Raise `UsageError` if `batch_size` is below 1."""
    if batch_size < 1:
        raise UsageError(f"the batch size is {batch_size}; it must be at least 1")


def is_opened(images: Images) -> bool:
    """Whether something may have been done to `images` before the model; an array in memory is as it is."""
    return isinstance(images, ImageSource) or is_dataset(images)


def as_source(images: Images) -> ImageSource:
    """Return a source as it is, or wrap an array or tensor in memory, uint8 [N, C, H, W], as one of that size.

    A Python data set becomes one of its first image's size and channels. Raises `DataError` if it is something else.
    """
    if isinstance(images, ImageSource):
        return images
    if is_dataset(images):
        size, channels = shape_of_first(images)
        return open_images(images, size=size, channels=channels)
    pixels = np.asarray(images.cpu() if hasattr(images, "cpu") else images)  # a tensor may be on a GPU
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[2] != pixels.shape[3]:
        raise DataError(f"the images are {pixels.dtype} {list(pixels.shape)}; give uint8 [N, C, H, W] with H = W")
    _, channels, size, _ = pixels.shape
    return _source_of(ArrayContainer(Path("array"), pixels.transpose(0, 2, 3, 1), size=size, channels=channels))
