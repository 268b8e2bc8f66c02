"""Holds images: a folder or another container of image files, or an array.

A kind of container is one pair of functions in `sources.KINDS`. One of image files subclasses `FileContainer` and says
how to open a file; one of images decoded by others subclasses `DecodingContainer`; one of pixels subclasses
`Container`.
"""

from __future__ import annotations

import copy
import io
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath
from typing import BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..lookahead import map_ahead
from ..storage.location import AnyPath, real_path
from ..texts.classes import ClassTexts
from ..texts.packed import PackedTexts
from ..texts.sequence import Texts
from .announced import WINDOW_BYTES, announced
from .heads import ImageHead, read_head
from .pixels import (
    DecodedImage,
    UnusableImageError,
    broken_image,
    channels_of,
    fit,
    read_image,
    unfit_image,
    wrong_channels,
)
from .preprocessing import Preprocessing
from .row_groups import CACHE_BYTES, RowGroups
from .seen import Seen
from .splits import StatedParts, labels_by_folder
from .stamps import Stamps

LARGE_FILE = 2**26  # bytes from which a file is not held in memory; decoding may need but a part of it
_PIECE = 2**20  # bytes of a file that are read at once for its checksum

LOOKED_AT = 64  # images, evenly spaced, whose heads tell whether a set has any of the model's channels


@dataclass(eq=False)
class Container(ABC):
    """Images in a fixed order, all delivered at one size and channel count; positions count all of them."""

    path: AnyPath
    names: Texts  # sorted, and unique
    labels: Texts  # the class of each image; "" if it has none
    file_bytes: NDArray[np.int64]  # bytes of each image in the container, int64 [N]
    size: int
    channels: int
    passed_over: Sequence[str] = ()  # folders below `path` that hold results of this package, not images
    other_files: Mapping[str, int] = field(default_factory=dict)  # ending to number of the files that are not read
    parts: StatedParts | None = None  # what the images are for, if the container says it and not their names
    by_folder: NDArray[np.bool_] | None = None  # whose label is but a folder in the name, bool [N]; None if no one's
    numbers: NDArray[np.int64] | None = None  # position of each image in what this is a portion of; None if it is none
    stamps: Stamps | None = None  # when the images' files were changed last; None if that cannot be told

    numbered_names: ClassVar[bool] = False  # whether names are positions, which images of another container continue
    checksums_are_stated: ClassVar[bool] = False  # whether the container says the CRC-32s of all images
    sizes_are_exact: ClassVar[bool] = True  # whether an image of another size in bytes is another image

    def __post_init__(self) -> None:
        self.preprocessing = Preprocessing()
        """What is done to the images before they are delivered; see `preprocess`."""
        self.seen = Seen.nothing(len(self.names))
        """What reading has shown of the images so far."""
        self.group_cache_bytes = CACHE_BYTES
        """Bytes of groups that may stay in memory, if images are read in groups; see `groups`."""

    def preprocess(self, how: Preprocessing) -> None:
        """Let `how` be done to the images from now on.

        Raises `DataError` if the model cannot take the images even so, as far as that is known without reading them.
        """
        if how.splits != self.preprocessing.splits and self.by_folder is not None:
            other = ClassTexts.joined([ClassTexts.of(self.labels), labels_by_folder(self.names, how.splits)])
            stated, by_folder = np.split(other.codes, 2)
            self.labels = ClassTexts(other.classes, np.where(self.by_folder, by_folder, stated))
        self.preprocessing = how

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def read(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read the images at `positions`: uint8 [B, channels, size, size]."""

    @abstractmethod
    def checksum(self, position: int) -> int:
        """Compute the CRC-32 (zlib) of the bytes of the image at `position`, which are read and not decoded.

        These are its file's or, of an array, its elements in C order. Raises `DataError` if they cannot be read.
        """

    def read_checksum(self, position: int) -> int:
        """Compute it from the bytes as they are now, also if the container states it; raises like `checksum`."""
        return self.checksum(position)

    def note_checksum(self, position: int, checksum: int) -> int:
        """Note the CRC-32 of the image at `position`, and return it; called by several threads at once."""
        self.seen.checksums[position] = checksum
        self.seen.is_checked[position] = True  # last: who finds it may take the number
        return checksum

    def portion(self, positions: NDArray[np.int64]) -> Container:
        """Take the images at `positions`, in that order: all that another process needs to read them, and no more.

        What is returned is small, if the images lie in files, and can be pickled; it lists nothing when it is opened,
        and a file that was changed since this was opened is the same error as here. It does not know what the images
        are for, nor what else lies beside them. What it has `seen` is for `Seen.note` of this.
        """
        chosen = copy.copy(self)
        chosen._narrow(positions)
        return chosen

    def _narrow(self, positions: NDArray[np.int64]) -> None:
        """Let go of all but the images at `positions`; sets attributes anew, as the whole has the same objects."""
        self.numbers = self.numbers_of(positions)
        self.names = PackedTexts.of(self.names.take(positions))
        self.labels = ClassTexts.of([*self.labels.take(positions)])  # of these classes alone
        self.file_bytes = self.file_bytes[positions]
        self.by_folder = None if self.by_folder is None else self.by_folder[positions]
        self.passed_over, self.other_files, self.parts, self.stamps = (), {}, None, None
        self.seen = self.seen.of(positions)

    def numbers_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Find the positions of images in the whole that was opened, of which this may be a portion, int64 [n]."""
        return positions if self.numbers is None else self.numbers[positions]

    @abstractmethod
    def head(self, position: int) -> ImageHead:
        """Describe the image at `position` without decoding it.

        Raises `UnusableImageError` if not even that can be read; called by several threads at once.
        """

    def prefetch(self, positions: NDArray[np.int64]) -> None:  # noqa: B027 - most containers are near
        """Begin to read what `read` will need for the images at `positions`, if it is far away; here nothing."""

    def announced(self, positions: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
        """Give `positions` in parts of `size`; those of the next few MiB are prefetched meanwhile."""
        return announced(positions, size, self.prefetch, self.file_bytes)

    def content(self, positions: NDArray[np.int64]) -> bytes:
        """Give bytes that stand for the images' content in a fingerprint, without reading all of it; here none."""
        return b""

    def groups(self) -> RowGroups | None:
        """Say which images are read at once, in a group; None if each is read alone."""
        return None

    @property
    def roots(self) -> Sequence[PurePath]:
        """The files and folders that the images lie in, absolute and without links; none if they are in memory."""
        return [real_path(self.path)] if self.path.exists() else []

    def locations(self, positions: NDArray[np.int64]) -> list[str] | None:
        """Say where each image lies, the same in any container of its kind; None if that cannot be told."""
        return None

    def problem(self, position: int) -> UnusableImageError | None:
        """Find out why the model cannot take the image at `position`; None if it can."""
        return None

    def unusable(self) -> dict[int, str]:
        """Find the positions of images that the model cannot take, and why, which may take reading all of them."""
        return {}


class DecodingContainer(Container):
    """Images that are decoded one by one."""

    @abstractmethod
    def decode(self, position: int) -> DecodedImage:
        """Decode the image at `position`; called by several threads at once.

        Raises `UnusableImageError` if the model cannot take it.
        """

    @abstractmethod
    def channels_at(self, position: int) -> int:
        """Return the channels of the image at `position` before they are converted, 0 if that cannot be told."""

    def where(self, position: int) -> AnyPath:
        """Say where the image at `position` is, for messages."""
        return self.path / self.names[position]

    def read(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Decode the images at `positions`, each cropped and resized if it is of another size."""
        out = np.empty((len(positions), self.channels, self.size, self.size), np.uint8)
        for image, i in zip(out, self._one_by_one(positions), strict=True):
            try:
                decoded = self._usable(i)
            except UnusableImageError as error:
                raise DataError(f"{error}, or pass --skip-unusable") from None
            self._note_decoded(i, decoded)
            image[:] = fit(decoded.pixels, self.size, self.preprocessing)
        return out

    def _note_decoded(self, i: int, decoded: DecodedImage) -> None:
        seen = self.seen
        _, seen.alpha_dropped[i], seen.frames_dropped[i], seen.recoloured[i], seen.depth_reduced[i] = decoded
        seen.resized[i] = decoded.pixels.shape[:2] != (self.size, self.size)

    def problem(self, position: int) -> UnusableImageError | None:
        """Find out why the image at `position` cannot be used, by decoding it."""
        try:
            self._usable(position)
        except UnusableImageError as error:
            return error
        return None

    def unusable(self) -> dict[int, str]:
        """Find the positions of images that cannot be used, and why, by decoding every one."""
        threads = os.cpu_count() or 1
        positions = self._one_by_one(np.arange(len(self)))
        reasons = map_ahead(self._reason, positions, threads=threads, waiting=64 * threads, name="check images")
        return {i: reason for i, reason in enumerate(reasons) if reason}

    def _one_by_one(self, positions: NDArray[np.int64]) -> Iterator[int]:
        largest = int(self.file_bytes[positions].max(initial=1))
        parts = self.announced(positions, max(1, min(64, WINDOW_BYTES // (16 * largest))))  # a window has many parts
        return (position for part in parts for position in part.tolist())

    def _reason(self, position: int) -> str:
        problem = self.problem(position)  # not kept: it holds the pixels decoded so far
        return problem.reason if problem else ""

    def _usable(self, position: int) -> DecodedImage:
        """Decode the image at `position`, and check that it is one of a set for this model, and large enough."""
        decoded, where = self.decode(position), self.where(position)
        if decoded.recoloured and not self.takes_other_channels:
            raise wrong_channels(where, 4 - self.channels, self.channels)
        if problem := unfit_image(decoded.pixels, where, self.size, self.preprocessing):
            raise problem
        return decoded

    def portion(self, positions: NDArray[np.int64]) -> Container:
        """Take the images at `positions`, which know whether the whole has some of the model's channels."""
        if self.preprocessing.colour == "auto":
            _ = self._has_the_models_channels  # mostly its first image tells
        return super().portion(positions)

    @property
    def takes_other_channels(self) -> bool:
        """Whether grey images become colour and colour images grey here, as far as that is wanted."""
        return self.preprocessing.colour != "auto" or self._has_the_models_channels

    @cached_property
    def _has_the_models_channels(self) -> bool:
        """Whether some image is grey if the model is, or colour: otherwise this is a set for another model."""
        positions = np.unique(np.linspace(0, len(self) - 1, LOOKED_AT).round().astype(int))
        return any(self.channels_at(position) == self.channels for position in self._one_by_one(positions))


class FileContainer(DecodingContainer):
    """Image files of any of the formats in `pixels`; names and sizes tell two containers apart."""

    @abstractmethod
    def open(self, position: int) -> BinaryIO:
        """Open the file of the image at `position`; called by several threads at once."""

    def decode(self, position: int) -> DecodedImage:
        """Decode the file of the image at `position`."""
        where = self.where(position)
        try:
            with self.open(position) as file:
                return self._decoded(position, file, where)
        except OSError as error:
            raise broken_image(where, error) from None

    def checksum(self, position: int) -> int:
        """Read the file of the image at `position`."""
        try:
            with self.open(position) as file:
                return self.note_checksum(position, _checksum_of(file))
        except OSError as error:
            raise broken_image(self.where(position), error) from None

    def _decoded(self, position: int, file: BinaryIO, where: AnyPath) -> DecodedImage:
        """Decode an opened file, and note its checksum, also if it is broken."""
        if self.file_bytes[position] > LARGE_FILE:
            self.note_checksum(position, _checksum_of(file))
            file.seek(0)
            return read_image(file, where, self.channels, self.preprocessing)
        content = file.read()
        self.note_checksum(position, zlib.crc32(content))
        return read_image(io.BytesIO(content), where, self.channels, self.preprocessing)

    def head(self, position: int) -> ImageHead:
        """Read the head of the file at `position`."""
        where = self.where(position)
        try:
            with self.open(position) as file:
                return read_head(file, where, self.preprocessing)
        except OSError as error:
            raise broken_image(where, error) from None

    def channels_at(self, position: int) -> int:
        """Read the channels in the head of the file at `position`."""
        try:
            with self.open(position) as file:
                return channels_of(file)
        except (OSError, DataError):
            return 0


def _checksum_of(file: BinaryIO) -> int:
    """Compute the CRC-32 of a file from its beginning, piece by piece."""
    file.seek(0)
    checksum = 0
    while piece := file.read(_PIECE):
        checksum = zlib.crc32(piece, checksum)
    return checksum
