"""Images of any Python data set with a length: of torchvision, of Hugging Face, or a class of your own.

dataset[i]      image | (image, label) | {"image": image, "label": label}
image           of Pillow, uint8 [H, W] or [H, W, C], or a torch tensor uint8 [C, H, W]
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError
from ..storage.location import AnyPath
from ..texts.classes import ClassTexts
from ..texts.numbered import NumberedTexts
from .containers import DecodingContainer
from .dataset_json import class_name
from .depth import is_deep, to_8_bits
from .heads import ImageHead, head_of, head_of_pixels
from .parquet_columns import IMAGE_NAMES, LABEL_NAMES
from .pixels import (
    DecodedImage,
    UnusableImageError,
    as_channels,
    is_grey,
    plain_pixels,
    too_deep,
    unusable_if_damaged,
    wrong_channels,
)
from .preprocessing import Preprocessing
from .read_images import ReadImages

SAMPLED_IMAGES = 64  # images, evenly spaced, whose pixels go into a data set's fingerprint


@runtime_checkable
class ImageDataset(Protocol):
    """Anything with a length that gives an image, or one with its label, for each number below it."""

    def __len__(self) -> int:
        """Count the images."""

    def __getitem__(self, index: int, /) -> Any:
        """Give one image, alone, first in a tuple with its label, or in a dict."""


class DatasetContainer(DecodingContainer):
    """The images of a Python data set; names are their numbers in eight digits."""

    numbered_names = True

    def __init__(self, dataset: ImageDataset, column: str | None = None, *, size: int, channels: int) -> None:
        """Images that are in dicts are at the key `column`, or else `image` or `img`.

        Raises `DataError` if there is no image, or if there are others than 8-bit ones.
        """
        path, count = Path(type(dataset).__name__), _count(dataset)
        names = NumberedTexts("", count)
        raw_bytes = np.full(count, channels * size**2, np.int64)
        self.dataset, self.column = dataset, column
        self._lock = threading.Lock()  # data sets are made for processes of their own, not for threads
        super().__init__(path, names, _labels(dataset, count), raw_bytes, size=size, channels=channels)

    def decode(self, position: int) -> DecodedImage:
        """Take the image at `position` from the data set."""
        where = self.where(position)
        with self._lock, unusable_if_damaged(where, self.preprocessing):
            image = _image_in(self.dataset[position], where, self.column)
            self.note_checksum(position, _checksum_of(image, where))
            if isinstance(image, Image.Image):
                return _decoded(image, where, self.channels, self.preprocessing)
        return _of_channels(_pixels(image, where), where, self.channels, self.preprocessing)

    def checksum(self, position: int) -> int:
        """Ask the data set for the pixels of the image at `position`."""
        where = self.where(position)
        with self._lock, unusable_if_damaged(where, self.preprocessing):
            image = _image_in(self.dataset[position], where, self.column)
            return self.note_checksum(position, _checksum_of(image, where))

    def portion(self, positions: NDArray[np.int64]) -> ReadImages:
        """Read the images at `positions`: another process may not have the data set."""
        return ReadImages.of(self, positions)

    def channels_at(self, position: int) -> int:
        """Ask the data set for the image at `position`."""
        where = self.where(position)
        try:
            with self._lock, unusable_if_damaged(where):
                return _shape(_image_in(self.dataset[position], where, self.column), where)[2]
        except DataError:
            return 0

    def head(self, position: int) -> ImageHead:
        """Ask the data set for the image at `position`."""
        where = self.where(position)
        with self._lock, unusable_if_damaged(where):
            image = _image_in(self.dataset[position], where, self.column)
            if isinstance(image, Image.Image):
                return head_of(image, "Pillow")
        return head_of_pixels(_pixels(image, where).shape, np.uint8)

    def content(self, positions: NDArray[np.int64]) -> bytes:
        """Give the pixels of up to 64 images."""
        sample = np.unique(np.linspace(0, len(positions) - 1, SAMPLED_IMAGES).astype(int))
        return self.read(positions[sample]).tobytes()


def is_dataset(images: object) -> TypeGuard[ImageDataset]:
    """Whether `images` is a data set, and not an array, a tensor or a list of arrays."""
    if isinstance(images, list | tuple):
        return len(images) > 0 and isinstance(images[0], Image.Image | tuple | Mapping)
    return isinstance(images, ImageDataset) and not hasattr(images, "__array__") and not isinstance(images, str | bytes)


def shape_of_first(dataset: ImageDataset) -> tuple[int, int]:
    """Find the size and the channels of the first image.

    Raises `DataError` if it is not square: then `open_images` must be told which to make of all.
    """
    name = type(dataset).__name__
    _count(dataset)
    where = Path(name) / "00000000"
    with unusable_if_damaged(where):
        height, width, channels = _shape(_image_in(dataset[0], where), where)
    if height != width:
        advice = "say what to make of them with open_images(dataset, size=..., channels=...)"
        raise DataError(f"the first image of {name} is {height} x {width}, not square; {advice}")
    return height, channels


def _count(dataset: ImageDataset) -> int:
    kind = type(dataset).__name__
    if isinstance(dataset, Mapping):
        raise DataError(
            f"{kind} has {', '.join(map(str, dataset)) or 'nothing'}; give one of them, as dataset['train']"
        )
    if not isinstance(dataset, ImageDataset):
        raise DataError(f"{kind} is no data set; give a path, or an object with len(dataset) and dataset[i]")
    count = len(dataset)
    if count < 1:
        raise DataError(f"there are no images in this {kind}; give at least one")
    return count


def _decoded(image: Image.Image, where: AnyPath, channels: int, how: Preprocessing) -> DecodedImage:
    """Decode an image that the data set may keep for itself."""
    deep = is_deep(image)  # which a copy does not tell
    if deep and (how.depth != 8 or not image.mode.startswith("I;16")):
        raise too_deep(where, image.mode, can_be_converted=how.depth != 8)
    plain = Image.fromarray(to_8_bits(np.asarray(image))) if deep else image.copy()
    return plain_pixels(plain, where, channels, how)._replace(depth_reduced=deep)


def _of_channels(pixels: NDArray[np.uint8], where: AnyPath, channels: int, how: Preprocessing) -> DecodedImage:
    """Give pixels the model's channels; a fourth one is alpha."""
    found = pixels.shape[2]
    if found == channels:
        return DecodedImage(pixels, False, False)
    if found not in (1, 3, 4) or channels not in (1, 3):
        raise wrong_channels(where, found, channels)
    return DecodedImage(as_channels(pixels, channels, how), found == 4, False, min(found, 3) != channels)


def _checksum_of(image: Any, where: AnyPath) -> int:
    """Compute the CRC-32 of pixels as they are given, [H, W, C] in C order; of a palette image, then of its colours."""
    if not isinstance(image, Image.Image):
        return zlib.crc32(np.ascontiguousarray(_pixels(image, where)).data)
    checksum = zlib.crc32(image.tobytes())
    return zlib.crc32(bytes(image.getpalette() or ()), checksum)


def _shape(image: Any, where: AnyPath) -> tuple[int, int, int]:
    """Give height, width and channels of an image as Pillow has it, or of pixels."""
    if isinstance(image, Image.Image):
        return image.height, image.width, 1 if is_grey(image) else 3
    height, width, channels = _pixels(image, where).shape
    return height, width, 3 if channels == 4 else channels


def _image_in(item: Any, where: AnyPath, column: str | None = None) -> Any:
    if isinstance(item, Mapping):
        return item[_image_key(item, where, column)]
    if column is not None:
        raise DataError(f"{where} is a {type(item).__name__}, which has no column {column!r}; leave out column=")
    return item[0] if isinstance(item, tuple | list) and item else item


def _image_key(item: Mapping[str, Any], where: AnyPath, column: str | None) -> str:
    """Find the key of the image; raises `DataError` if two may be it, `UnusableImageError` if none is it."""
    found = [key for key in ([column] if column else IMAGE_NAMES) if key in item]
    if len(found) > 1:
        raise DataError(
            f"{where} has {' and '.join(found)}; choose with open_images(dataset, column={found[0]!r}, ...)"
        )
    if not found:
        keys = ", ".join(map(str, item)) or "nothing"
        advice = f"but no {column!r}; give one of these as column" if column else "call the image 'image'"
        problem = f"{where} has {keys}{', ' if column else '; '}{advice}"
        raise UnusableImageError(problem, "without an image")
    return found[0]


def _label_in(item: Any) -> object:
    if isinstance(item, Mapping):
        return next((item[key] for key in LABEL_NAMES if key in item), None)
    return item[1] if isinstance(item, tuple | list) and len(item) > 1 else None


def _pixels(image: Any, where: AnyPath) -> NDArray[np.uint8]:
    """Give the pixels of an array or a tensor, uint8 [H, W, C]."""
    is_tensor = hasattr(image, "cpu")
    pixels = np.asarray(image.cpu() if is_tensor else image)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        found = f"{type(image).__name__} of {pixels.dtype} {list(pixels.shape)}"
        problem = f"{where} is a {found}; give Pillow images or uint8 pixels, without transforms to other numbers"
        raise UnusableImageError(problem, "no 8-bit image")
    if pixels.ndim == 2:
        return pixels[..., None]
    return pixels.transpose(1, 2, 0) if is_tensor else pixels


def _labels(dataset: ImageDataset, count: int) -> ClassTexts:
    """Find the class of each image: in the data set's own list if it has one, or else by asking for every image."""
    labels, names = _listed_labels(dataset, count)
    if labels is None:
        labels = _asked_labels(dataset, count)
    return ClassTexts.of(class_name(label, names) for label in labels)


def _asked_labels(dataset: ImageDataset, count: int) -> list[object]:
    """Ask for every image, unless the first that can be read has no label."""
    labels: list[object] = []
    for i in range(count):
        try:
            with unusable_if_damaged(Path()):
                labels.append(_label_in(dataset[i]))
        except DataError:  # reading the image says so
            labels.append(None)
        else:
            if all(label is None for label in labels):
                return [None] * count
    return labels


def _listed_labels(dataset: Any, count: int) -> tuple[Sequence[object] | None, Sequence[str]]:
    """Find the list of labels, and the names of the classes: attributes of torchvision's, columns of Hugging Face's."""
    column = next((key for key in LABEL_NAMES if key in (getattr(dataset, "column_names", None) or ())), None)
    if column is not None:
        return list(dataset[column]), getattr(dataset.features[column], "names", None) or ()
    listed: list[Any] = [getattr(dataset, name, None) for name in ("targets", "labels")]
    found = next((labels for labels in listed if hasattr(labels, "__len__") and len(labels) == count), None)
    names = getattr(dataset, "classes", None)
    return found, names if isinstance(names, list | tuple) else ()
