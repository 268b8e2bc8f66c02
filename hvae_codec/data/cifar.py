"""CIFAR-10 and CIFAR-100 by their own files: the Python version (pickles) and the binary one, unpacked or as one tar.

data_batch_1 ... data_batch_5, test_batch, batches.meta      dicts: data uint8 [N, 3072], labels or fine_labels
data_batch_1.bin ..., test_batch.bin, batches.meta.txt       rows: a label, 3,072 values; of CIFAR-100, two labels
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .imageless_folder import has_image_below
from .joined_arrays import ArrayPart, JoinedContainer, Planes, open_parts
from .numbered_files import check_numbers
from .plain_pickle import load_plain

LARGEST_SET = 2**28  # bytes that are read of one set: CIFAR-10 has 184 million

_PIXELS = 3 * 32 * 32
_ARCHIVE = re.compile(r"cifar-100?-(?:python|binary)(?:\.tar\.gz|\.tgz|\.tar)", re.IGNORECASE)
_BATCH = re.compile(r"(?:data_batch_(?P<number>\d+)|(?P<test>test(?:_batch)?)|train)(?:\.bin)?")
_META = ("batches.meta", "meta", "batches.meta.txt", "fine_label_names.txt")
_FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin", "cifar-100-python", "cifar-100-binary")
_MARKS = ({"data_batch_1"}, {"data_batch_1.bin"}, {"train", "test", "meta"}, {"train.bin", "test.bin"})
"""Files that together tell a folder of one of the four."""

_GIVE = "download it again"


def is_cifar(path: Path) -> bool:
    """Whether `path` is a tar of CIFAR by its name, its unpacked folder, or a folder in which that lies."""
    return bool(_folders(path)) if path.is_dir() else _ARCHIVE.fullmatch(path.name) is not None


def open_cifar(path: Path, *, size: int, channels: int) -> JoinedContainer:
    """Open CIFAR-10 or CIFAR-100, with the names of classes as labels if they are there.

    Raises `DataError` if a batch is missing, truncated, or holds anything but arrays and plain values; nothing that a
    pickle names is ever run.
    """
    files = _in_folder(_one_folder(path)) if path.is_dir() else _in_tar(path)
    batches = sorted((name for name in files if _BATCH.fullmatch(name)), key=_number)
    if not batches:
        raise DataError(f"{path} has no data_batch_1, train or test file; {_GIVE}")
    check_numbers(path, {_number(name): name for name in batches if _number(name)})
    classes = _classes(path, files)
    return open_parts(path, [_part(path, name, files[name], classes) for name in batches], size=size, channels=channels)


def _folders(path: Path) -> list[Path]:
    """Find `path`, or the folders in it, with batches by the usual names; none if there are images in or below it."""
    folders = [path, *(path / name for name in _FOLDERS)]
    found = [folder for folder in folders if any(all((folder / name).is_file() for name in marks) for marks in _MARKS)]
    return found if found and not has_image_below(path) else []


def _one_folder(path: Path) -> Path:
    folders = _folders(path)
    if len(folders) > 1:
        raise DataError(f"{path} has several sets, {folders[0].name} and {folders[1].name}; give one of these folders")
    return folders[0]


def _in_folder(folder: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    try:
        for file in sorted(folder.iterdir()):
            if _is_wanted(file.name) and file.is_file():
                _take(files, file, file.stat().st_size, file.read_bytes)
    except OSError as error:
        raise DataError(f"cannot read {error.filename} ({error.strerror}); make it readable") from None
    return files


def _in_tar(path: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                if member.size < 0:  # older Pythons would go back, and list the same members for ever
                    raise tarfile.ReadError(f"{member.name} is of negative size")
                wanted = member.isfile() and _is_wanted(Path(member.name).name)
                if wanted and (content := archive.extractfile(member)) is not None:
                    _take(files, path / member.name, member.size, content.read)
    except (tarfile.TarError, zlib.error, OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a tar: it is truncated or damaged ({error}); {_GIVE}") from None
    return files


def _is_wanted(name: str) -> bool:
    return name in _META or _BATCH.fullmatch(name) is not None


def _take(files: dict[str, bytes], file: Path, size: int, read: Callable[[], bytes]) -> None:
    """Read a file into `files`, unless they would be more than a small archive may unpack to."""
    if file.name in files:
        raise DataError(f"{file} is there twice; {_GIVE}")
    if sum(map(len, files.values())) + size > LARGEST_SET:
        raise DataError(f"{file} is of {size:,} bytes: with those before it, more than CIFAR has; {_GIVE}")
    files[file.name] = read()


def _number(name: str) -> int:
    match = _BATCH.fullmatch(name)
    return int(match["number"] or 0) if match else 0


def _part(path: Path, name: str, content: bytes, classes: Sequence[str]) -> ArrayPart:
    """Read one batch."""
    try:
        images, numbers = (_binary if name.endswith(".bin") else _pickled)(name, content)
        labels = [classes[number] if classes else str(number) for number in numbers]
        match = _BATCH.fullmatch(name)
        return ArrayPart("test" if match and match["test"] else "train", name, images, labels)
    except (DataError, ValueError, IndexError, TypeError) as error:
        raise DataError(f"{path / name} cannot be read as a batch of CIFAR ({error}); {_GIVE}") from None


def _pickled(name: str, content: bytes) -> tuple[Planes, list[int]]:
    batch = _texts(load_plain(content))
    images, numbers = batch.get("data"), batch.get("fine_labels", batch.get("labels"))
    if not isinstance(images, np.ndarray) or images.ndim != 2 or not isinstance(numbers, list):
        raise ValueError("it has no data [N, 3072] and labels")
    return Planes(images), numbers


def _binary(name: str, content: bytes) -> tuple[Planes, list[int]]:
    labels = 2 if name in ("train.bin", "test.bin") else 1  # of CIFAR-100, the coarse and the fine one
    if len(content) % (_PIXELS + labels):
        raise ValueError(f"its {len(content):,} bytes are no multiple of {_PIXELS + labels:,}")
    rows = np.frombuffer(content, np.uint8).reshape(-1, _PIXELS + labels)
    return Planes(rows, skip=labels), rows[:, labels - 1].tolist()


def _classes(path: Path, files: Mapping[str, bytes]) -> list[str]:
    """Find the names of the classes, in the order of their numbers; none if no file has them."""
    name = next((name for name in _META if name in files), None)
    if name is None:
        return []
    try:
        if name.endswith(".txt"):
            return files[name].decode().split()
        meta = _texts(load_plain(files[name]))
        return [_text(label) for label in meta.get("fine_label_names", meta.get("label_names", []))]
    except (ValueError, TypeError) as error:
        raise DataError(f"{path / name} cannot be read as names of classes ({error}); {_GIVE}") from None


def _texts(document: object) -> dict[str, Any]:
    """Give a dict with texts as keys, which Python 2 wrote as bytes."""
    if not isinstance(document, dict):
        raise ValueError("it is no dict")
    return {_text(key): value for key, value in document.items()}


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
