"""Images in IDX files, as MNIST and its relatives come: `train-images-idx3-ubyte`, with or without `.gz`.

    two zero bytes | 8: unsigned bytes | number of axes | length of each axis, 4 bytes, the highest first | values

Labels are in the file beside it whose name says labels and idx1.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..texts.classes import ClassTexts
from .imageless_folder import names_in_imageless
from .joined_arrays import ArrayPart, JoinedContainer, open_parts
from .splits import Part, part_of_file
from .unchanged_map import unchanged

LARGEST_UNPACKED = 2**32  # bytes that a .gz is unpacked to, in memory: all of EMNIST is 0.6 GB

_IMAGES = re.compile(r"(?P<which>.*)images(?P<idx>[-.]idx)3-ubyte(?:\.gz)?")
_GIVE = "download it again"


def is_idx(path: Path) -> bool:
    """Whether `path` is an IDX file of images by its name, or a folder with one."""
    return bool(_image_files(path))


def open_idx(path: Path, *, size: int, channels: int) -> JoinedContainer:
    """Open an IDX file of images, or those of a folder, with their labels.

    Raises `DataError` if a file is truncated, damaged, not of bytes, or if a folder has several sets.
    """
    return open_parts(path, [_part(file) for file in _one_set(path)], size=size, channels=channels)


def _image_files(path: Path) -> list[Path]:
    """Find the files of images, in a folder also below `raw`; of two that differ in `.gz` alone, the unpacked one."""
    folder = path / "raw" if (path / "raw").is_dir() else path  # torchvision puts them there
    files = [folder / name for name in names_in_imageless(folder, _is_images)] if path.is_dir() else [path]
    found = {file.name.removesuffix(".gz"): file for file in reversed(files) if _is_images(file.name)}
    return sorted(file for file in found.values() if file.is_file())


def _is_images(name: str) -> bool:
    return _IMAGES.fullmatch(name) is not None


def _one_set(path: Path) -> list[Path]:
    files = _image_files(path)
    of_parts: dict[Part, Path] = {}
    for file in files:
        other = of_parts.setdefault(_part_of(file), file)
        if other != file:
            raise DataError(f"{path} has several sets, {other.name} and {file.name}; give one of these files")
    return files


def _part_of(file: Path) -> Part:
    return "test" if "t10k" in file.name else part_of_file(file.name) or "train"


def _part(file: Path) -> ArrayPart:
    images = _values(file, axes=3)
    labels = _label_file(file)
    texts = [] if labels is None else _texts(_values(labels, axes=1))
    return ArrayPart(_part_of(file), file.name, images, texts)


def _texts(labels: NDArray[np.uint8]) -> ClassTexts:
    return ClassTexts([str(number) for number in range(256)], labels)


def _label_file(file: Path) -> Path | None:
    match = _IMAGES.fullmatch(file.name)
    assert match is not None  # `_image_files` found it
    name = f"{match['which']}labels{match['idx']}1-ubyte"
    return next((path for path in (file.with_name(name), file.with_name(f"{name}.gz")) if path.is_file()), None)


def _values(path: Path, axes: int) -> NDArray[np.uint8]:
    """Read the values of a file: mapped, or unpacked into memory if it is compressed."""
    try:
        if path.suffix != ".gz":
            with path.open("rb") as file:
                shape, start = _shape(file, path, axes), file.tell()
            if path.stat().st_size != start + math.prod(shape):
                raise EOFError(f"it has {path.stat().st_size:,} bytes, not {start + math.prod(shape):,}")
            return unchanged(np.memmap(path, np.uint8, "r", start, shape), path)
        with gzip.open(path, "rb") as unpacked:
            shape = _shape(unpacked, path, axes)
            count = _checked_size(path, math.prod(shape))
            content = unpacked.read(count + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as IDX: it is truncated or damaged ({error}); {_GIVE}") from None
    if len(content) != count:
        raise DataError(f"{path} holds more or fewer than the {count:,} bytes that it says; {_GIVE}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _shape(file: BinaryIO | gzip.GzipFile, path: Path, axes: int) -> tuple[int, ...]:
    start = file.read(4)
    if start != bytes((0, 0, 8, axes)):
        raise DataError(
            f"{path} begins with {start.hex(' ') or 'nothing'}, not as IDX of {axes} axes of bytes; {_GIVE}"
        )
    return tuple(np.frombuffer(file.read(4 * axes), ">u4").astype(int).tolist())


def _checked_size(path: Path, count: int) -> int:
    if count > LARGEST_UNPACKED:
        raise DataError(f"{path} unpacks to {count:,} bytes, too many to hold in memory; unpack it with gunzip")
    return count
