"""Images in `.npz` archives of arrays: one with `images`, one with splits as keys, or batches of rows in several files.

    images, labels                                             uint8 [N, H, W] or [N, H, W, C]
    x_train, y_train, x_test, y_test                           Keras
    train_images, train_labels, val_images, test_images, ...   MedMNIST
    train_data_batch_1.npz ... val_data.npz                    ImageNet 32 and 64: data [N, 3 * H * W], labels from 1

Arrays that are stored (`numpy.savez`) stay in the file until they are needed; compressed ones are read into memory.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..texts.classes import ClassTexts
from ..texts.sequence import BLOCK
from .arrays import ArrayContainer, readable
from .imageless_folder import names_in_imageless
from .joined_arrays import ArrayPart, Planes, open_parts
from .numbered_files import check_numbers
from .splits import PARTS, Part, part_of_file
from .unchanged_map import unchanged

_BATCH = re.compile(r"(?P<part>train|val|test)_data(?:_batch_(?P<number>\d+))?\.npz")
_IMAGES, _LABELS = {"x", "images", "image", "imgs", "data"}, {"y", "labels", "label", "targets"}
_HEADER = struct.Struct("<26xHH")  # of a file in a zip: lengths of its name and of its extra field

Arrays = Mapping[str, Callable[[], NDArray]]  # what maps or loads each array, by name

MAPPED_FROM = 2**20  # bytes of an array; smaller ones are read, and checked by their CRC-32


def is_npz(path: Path) -> bool:
    """Whether `path` is an `.npz`, or a folder with batches of ImageNet 32 or 64."""
    if path.is_dir():
        return bool(names_in_imageless(path, lambda name: _BATCH.fullmatch(name) is not None))
    return path.suffix.lower() == ".npz"


def open_npz(path: Path, *, size: int, channels: int) -> ArrayContainer:
    """Open the images of an `.npz` or of a folder with batches.

    Raises `DataError` if there are none, if it is not clear which they are, or if they are not uint8.
    """
    if path.is_dir():
        return open_parts(path, _batches(path), size=size, channels=channels)
    with readable(f"{path} cannot be read as an array"):
        arrays = _arrays(path)
        parts = [_batch(path)] if _is_batch(path, arrays) else _parts(path, arrays)
        images, labels = (None, ()) if parts else _images_and_labels(path, arrays)
    if parts:
        return open_parts(path, parts, size=size, channels=channels)
    return ArrayContainer(path, images, labels, size=size, channels=channels)


def _arrays(path: Path) -> Arrays:
    """Find the arrays of an archive."""
    with path.open("rb") as file:  # numpy.load leaves a file open that it cannot read
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise DataError(f"{path} is a single array, not an archive; rename it to {path.with_suffix('.npy').name}")
        members = archive.zip.infolist()
    return {member.filename.removesuffix(".npy"): partial(_load, path, member) for member in members}


def _load(path: Path, member: zipfile.ZipInfo) -> NDArray:
    mapped = _mapped(path, member) if member.compress_type == zipfile.ZIP_STORED else None
    if mapped is not None:
        return mapped
    with path.open("rb") as file:
        return np.asarray(np.load(file, allow_pickle=False)[member.filename.removesuffix(".npy")])


def _mapped(path: Path, member: zipfile.ZipInfo) -> NDArray | None:
    """Map a stored array; None if it is small, or not in the order of memory."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        name, extra = _HEADER.unpack(file.read(_HEADER.size))
        start = member.header_offset + _HEADER.size + name + extra
        file.seek(start)
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(file)
        count = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or fortran_order or count < MAPPED_FROM or file.tell() + count != start + member.file_size:
            return None
        return unchanged(np.memmap(path, dtype, "r", file.tell(), shape), path)


def _images_and_labels(path: Path, arrays: Arrays) -> tuple[Any, Sequence[str]]:
    others = {"labels", "mean"} if "data" in arrays else {"labels"}
    names = [name for name in arrays if name not in others]
    if "images" not in names and len(names) != 1:
        raise DataError(f"{path} holds the arrays {', '.join(names) or 'none'}; name the one with images 'images'")
    images: Any = arrays["images" if "images" in names else names[0]]()
    images = Planes(images) if names == ["data"] and images.ndim == 2 else images
    if "labels" not in arrays:
        return images, ()
    labels = arrays["labels"]()
    count = images.shape[0] if images.shape else 0
    if labels.size != count:
        raise DataError(f"{path} has {count} images but {labels.size} labels; give one label per image")
    return images, _texts(labels.reshape(-1))


def _parts(path: Path, arrays: Arrays) -> list[ArrayPart]:
    """Open the arrays that are called after a split, such as x_train with y_train, or train_images.

    None are if one is called images, or if there is but one, with labels or without, that is not held out: then it is
    all there is.
    """
    others = [name for name in arrays if name != "labels"]
    if "images" in arrays or (len(others) == 1 and part_of_file(others[0]) in (None, "train")):
        return []
    images, labels = _by_part(path, arrays, _IMAGES), _by_part(path, arrays, _LABELS)
    if len(others) == 1 and "labels" in arrays:  # which need not say what they are for
        labels = dict.fromkeys(images, "labels")
    for part in PARTS:
        check_numbers(path, {number: name for (of, number), name in images.items() if of == part and number})
    return [
        ArrayPart(key[0], name, arrays[name](), _texts(arrays[labels[key]]()) if key in labels else ())
        for key, name in sorted(images.items())
    ]


def _by_part(path: Path, arrays: Arrays, called: Set[str]) -> dict[tuple[Part, int], str]:
    """Find the arrays that have a split and one of the words `called` in their names, by split and number."""
    found: dict[tuple[Part, int], str] = {}
    for name in arrays:
        part, number = part_of_file(name), re.search(r"\d*$", name)
        words = {word for word in re.split(r"[\d_]+", name.lower()) if word and part_of_file(word) is None}
        if part is None or not words <= {*called, "batch"} or (not words and called is not _IMAGES):
            continue
        other = found.setdefault((part, int(number[0] or 0) if number else 0), name)
        if other != name:
            raise DataError(f"{path} has both {other} and {name}, for the same images; remove one of them")
    return found


def _texts(labels: NDArray) -> ClassTexts:
    """Write labels [N], [N, 1] or, if an image has several, [N, L] as one text per image."""
    rows = labels.reshape(len(labels), -1) if len(labels) else labels
    blocks = (rows[first : first + BLOCK].astype(str).tolist() for first in range(0, len(rows), BLOCK))
    return ClassTexts.of(" ".join(row) for block in blocks for row in block)


def _batches(path: Path) -> list[ArrayPart]:
    """Open the batches of ImageNet 32 or 64 in a folder, in the order of their numbers."""
    files = path.glob("*.npz")
    found = sorted((int(match["number"] or 0), file) for file in files if (match := _BATCH.fullmatch(file.name)))
    check_numbers(path, {number: file.name for number, file in found if number})
    return [_batch(file) for _, file in found]


def _is_batch(path: Path, arrays: Arrays) -> bool:
    """Whether a file is a batch of ImageNet 32 or 64, by its name and what it holds."""
    return _BATCH.fullmatch(path.name) is not None and "data" in arrays and arrays["data"]().ndim == 2


def _batch(file: Path) -> ArrayPart:
    with readable(f"{file} cannot be read as an array"):
        return ArrayPart(part_of_file(file.name) or "train", file.name, *_images_and_labels(file, _arrays(file)))
