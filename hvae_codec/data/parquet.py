"""Images in Parquet files as Hugging Face's are: a column of files, with classes and their names in the schema.

    image  struct<bytes: binary, path: string>, or binary        label  int64, or string

A row group is the smallest part that can be read. The last few are kept: read images in order, or nearly so.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, UsageError
from .containers import FileContainer
from .dataset_json import class_name
from .file_sets import files_of_set, is_file_set, parts_of_files
from .stamps import Stamps
from .unchanged_files import OPEN_FILES, UnchangedFiles

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

CACHE_BYTES = 256 * 2**20  # of row groups that are kept; two are in any case, as threads read on both sides of a border

_IMAGE_NAMES, _LABEL_NAMES = ("image", "img"), ("label", "labels", "fine_label")


@dataclass(frozen=True, eq=False)
class _File:
    """What the end of one Parquet file says."""

    rows: NDArray[np.int64]  # images in each row group, int64 [row groups]
    packed: NDArray[np.int64]  # bytes of the column of images in each, int64 [row groups]
    image: str  # name of the column of images
    labels: Sequence[str]  # class of each image
    digest: bytes  # SHA-256 of the schema, and of the sizes of all columns in each row group


class Parquet(FileContainer):
    """The images in one Parquet file or several; a name is the file's and the number of the row in it."""

    sizes_are_exact = False  # they are shares of a row group's

    def __init__(self, path: Path, names: Sequence[str], files: UnchangedFiles, *, size: int, channels: int) -> None:
        """`names` are those of `files` in `path`; raises `DataError` as `open_parquet` does."""
        self.files = files
        self._open = functools.lru_cache(maxsize=OPEN_FILES)(_opened)
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()
        found = [_described(file, self._open(file)) for file in files.paths]
        counts = [int(file.rows.sum()) for file in found]
        self._columns = [file.image for file in found]
        self._digests = [file.digest for file in found]
        if not sum(counts):
            raise DataError(f"there are no images in {path}; give a file with at least one row")
        rows = np.concatenate([file.rows for file in found])
        self._file_of_group = np.repeat(np.arange(len(found)), [len(file.rows) for file in found])
        self._first_group = np.searchsorted(self._file_of_group, np.arange(len(found)))
        self._starts = np.concatenate([[0], np.cumsum(rows)])
        super().__init__(
            path,
            tuple(_row_names(names, counts)),
            tuple(label for file in found for label in file.labels),
            _spread(np.concatenate([file.packed for file in found]), rows),
            size=size,
            channels=channels,
            parts=parts_of_files(names, counts),
            stamps=Stamps.of_files(files.stamps, files.opened, np.repeat(np.arange(len(found)), counts)),
        )

    def content(self, positions: NDArray[np.int64]) -> bytes:
        """Give digests of what the ends of the files say, of those that these images are in."""
        files = self._file_of_group[self._group_of(positions)]
        return b"".join(self._digests[file] for file in np.unique(files))

    def open(self, position: int) -> BinaryIO:
        """Take the file of the image at `position` from its row group, which is read if it is not kept."""
        group = int(self._group_of(position))
        with self._lock:
            if group not in self._kept:
                self._keep(group, self._read_group(group))
            self._kept.move_to_end(group)
            content = self._kept[group][position - int(self._starts[group])].as_py()
        content = content.get("bytes") if isinstance(content, Mapping) else content
        if content is None:
            raise OSError("the file has no bytes of it, but its path at best")
        return io.BytesIO(content)

    def _group_of(self, positions: NDArray[np.int64] | int) -> NDArray[np.int64]:
        return np.searchsorted(self._starts, positions, side="right") - 1

    def _read_group(self, group: int) -> Any:
        file = int(self._file_of_group[group])
        self.files.check(file)
        path, column = self.files.paths[file], self._columns[file]
        with _readable(path):
            table = self._open(path).read_row_group(group - int(self._first_group[file]), [column], use_threads=False)
            return table.column(column)

    def _keep(self, group: int, images: Any) -> None:
        self._kept[group] = images
        while len(self._kept) > 2 and sum(kept.nbytes for kept in self._kept.values()) > CACHE_BYTES:
            self._kept.popitem(last=False)


def is_parquet(path: Path) -> bool:
    """Whether `path` is a Parquet file, a range of them, or a folder with some and without images below it."""
    return is_file_set(path, ".parquet")


def open_parquet(path: Path, *, size: int, channels: int) -> Parquet:
    """Open the images of all Parquet files that `path` stands for; names such as `train-00000-of-00004` are splits.

    Raises `DataError` if a file is truncated, if none or several of its columns hold images, or if there is no image;
    `UsageError` if pyarrow is missing.
    """
    try:
        import pyarrow.parquet  # noqa: F401 - it is large, and few have such files
    except ImportError:
        advice = "which is not installed; pip install 'hvae-codec[parquet]'"
        raise UsageError(f"{path} takes the package pyarrow, {advice}") from None
    files = dict(sorted(files_of_set(path, ".parquet").items()))  # by name, as a range is by number
    return Parquet(path, [*files], UnchangedFiles([*files.values()]), size=size, channels=channels)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        problem = f"{path} cannot be read as Parquet: it is truncated or damaged ({reason})"
        raise DataError(f"{problem}; copy or make it again") from None


def _opened(path: Path) -> ParquetFile:
    import pyarrow.parquet

    with _readable(path):
        return pyarrow.parquet.ParquetFile(path)


def _described(path: Path, file: ParquetFile) -> _File:
    """Read what the end of a file says, and its classes."""
    with _readable(path):
        image, metadata = _image_column(path, file), file.metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        columns = [[group.column(i) for i in range(group.num_columns)] for group in groups]
        sizes = [[(c.path_in_schema, c.num_values, c.total_compressed_size) for c in group] for group in columns]
        packed = [sum(size for name, _, size in group if _is_of(name, image)) for group in sizes]
        digest = hashlib.sha256(repr((str(file.schema_arrow), sizes)).encode()).digest()
        rows = np.array([group.num_rows for group in groups], np.int64)
        return _File(rows, np.array(packed, np.int64), image, _labels(file), digest)


def _is_of(name: str, column: str) -> bool:
    return name == column or name.startswith(f"{column}.")


def _features(file: ParquetFile) -> Mapping[str, Any]:
    """Read what Hugging Face's metadata say of the columns; nothing if there are none."""
    stated = (file.schema_arrow.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(stated)["info"]["features"] if stated else {}
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _image_column(path: Path, file: ParquetFile) -> str:
    """Find the column of images: the only one that is said to hold some, or is called so."""
    import pyarrow.types as types

    stated = [name for name, feature in _features(file).items() if feature.get("_type") == "Image"]
    holds_bytes = [
        field.name
        for field in file.schema_arrow
        if types.is_binary(field.type)
        or types.is_large_binary(field.type)
        or (types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
    ]
    called = [name for name in _IMAGE_NAMES if name in holds_bytes]
    found = stated or called[:1] or holds_bytes
    if len(found) != 1:
        columns = ", ".join(found or file.schema_arrow.names)
        several = f"several columns that may be images ({columns})" if found else f"no column of images, but {columns}"
        raise DataError(f"{path} has {several}; in Python, give open_images(dataset) one that has one image for each i")
    return found[0]


def _labels(file: ParquetFile) -> list[str]:
    """Read the class of each image: its name if the schema has the names."""
    features, columns = _features(file), file.schema_arrow.names
    classes = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    name = next((name for name in (*classes[:1], *_LABEL_NAMES) if name in columns), None)
    if name is None:
        return [""] * file.metadata.num_rows
    names = features.get(name, {}).get("names") or ()
    values = file.read([name], use_threads=False).column(name).to_pylist()
    return [class_name(value, names) for value in values]


def _row_names(files: Sequence[str], counts: Sequence[int]) -> Iterator[str]:
    for file, count in zip(files, counts, strict=True):
        stem = file.removesuffix(Path(file).suffix)
        yield from (f"{stem}/{row:08d}" for row in range(count))


def _spread(totals: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Share the bytes of each row group out to its images, as the files say no more."""
    each, left = np.divmod(totals, np.maximum(rows, 1))
    shares = np.repeat(each, rows)
    ends = np.cumsum(rows)[rows > 0] - 1
    shares[ends] += left[rows > 0]
    return shares
