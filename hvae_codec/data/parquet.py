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
from ..storage.location import AnyPath
from .containers import FileContainer
from .dataset_json import class_name
from .file_sets import files_of_set, is_file_set, parts_of_files
from .pieces import Pieces, pieces_of
from .unchanged_files import OPEN_FILES

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
    chunks: Sequence[Sequence[tuple[int, int]]]  # offsets and bytes of the parts of that column in each row group


class Parquet(FileContainer):
    """The images in one Parquet file or several; a name is the file's and the number of the row in it."""

    def __init__(self, path: AnyPath, names: Sequence[str], files: Pieces, *, size: int, channels: int) -> None:
        """`names` are those of `files` in `path`; raises `DataError` as `open_parquet` does."""
        self.files = files
        self._open = functools.lru_cache(maxsize=OPEN_FILES)(functools.partial(_opened, files))
        self._prefetched: set[int] = set()
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._announcing = threading.Lock()
        found = [*files.map(lambda file: _described(files, file, self._open(file)), range(len(files.paths)))]
        counts = [int(file.rows.sum()) for file in found]
        self._columns = [file.image for file in found]
        self._chunks = [chunks for file in found for chunks in file.chunks]
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

    def prefetch(self, positions: NDArray[np.int64]) -> None:
        """Begin to read the row groups that the images at `positions` are in, each once while it is kept."""
        wanted = {*np.unique(self._group_of(positions)).tolist()}
        with self._announcing:
            new = sorted(wanted - self._prefetched)
            self._prefetched.update(new)
        self.files.prefetch((int(self._file_of_group[group]), *c) for group in new for c in self._chunks[group])

    def _group_of(self, positions: NDArray[np.int64] | int) -> NDArray[np.int64]:
        return np.searchsorted(self._starts, positions, side="right") - 1

    def _read_group(self, group: int) -> Any:
        file = int(self._file_of_group[group])
        self.files.check(file)
        column = self._columns[file]
        with _readable(self.files.paths[file]):
            table = self._open(file).read_row_group(group - int(self._first_group[file]), [column], use_threads=False)
            return table.column(column)

    def _keep(self, group: int, images: Any) -> None:
        self._kept[group] = images
        while len(self._kept) > 2 and sum(kept.nbytes for kept in self._kept.values()) > CACHE_BYTES:
            group, _ = self._kept.popitem(last=False)
            with self._announcing:
                self._prefetched.discard(group)


def is_parquet(path: Path) -> bool:
    """Whether `path` is a Parquet file, a range of them, or a folder with some and without images below it."""
    return is_file_set(path, ".parquet")


def open_parquet(path: Path, *, size: int, channels: int) -> Parquet:
    """Open the images of all Parquet files that `path` stands for; names such as `train-00000-of-00004` are splits.

    Raises `DataError` if a file is truncated, if none or several of its columns hold images, or if there is no image;
    `UsageError` if pyarrow is missing.
    """
    files = dict(sorted(files_of_set(path, ".parquet").items()))  # by name, as a range is by number
    return parquet_in(path, files, size=size, channels=channels)


def parquet_in(path: AnyPath, files: Mapping[str, AnyPath], *, size: int, channels: int) -> Parquet:
    """Open the images of `files`, which lie in `path` by these names; raises like `open_parquet`."""
    _check_installed(path)
    return Parquet(path, [*files], pieces_of([*files.values()]), size=size, channels=channels)


def _check_installed(path: AnyPath) -> None:
    try:
        import pyarrow.parquet  # noqa: F401 - it is large, and few have such files
    except ImportError:
        advice = "which is not installed; pip install 'hvae-codec[parquet]'"
        raise UsageError(f"{path} takes the package pyarrow, {advice}") from None


@contextmanager
def _readable(path: AnyPath) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        problem = f"{path} cannot be read as Parquet: it is truncated or damaged ({reason})"
        raise DataError(f"{problem}; copy or make it again") from None


def _opened(files: Pieces, file: int) -> ParquetFile:
    import pyarrow.parquet

    with _readable(files.paths[file]):
        return pyarrow.parquet.ParquetFile(files.to_arrow(file))


def _described(files: Pieces, number: int, file: ParquetFile) -> _File:
    """Read what the end of the file at position `number` says, and its classes."""
    path = files.paths[number]
    with _readable(path):
        image, metadata = _image_column(path, file), file.metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        columns = [[group.column(i) for i in range(group.num_columns)] for group in groups]
        sizes = [[(c.path_in_schema, c.num_values, c.total_compressed_size) for c in group] for group in columns]
        packed = [sum(size for name, _, size in group if _is_of(name, image)) for group in sizes]
        digest = hashlib.sha256(repr((str(file.schema_arrow), sizes)).encode()).digest()
        rows = np.array([group.num_rows for group in groups], np.int64)
        files.prefetch((number, *chunk) for chunks in _chunks(columns, _label_column(file)) for chunk in chunks)
        labels = _labels(file)
        return _File(rows, np.array(packed, np.int64), image, labels, digest, _chunks(columns, image))


def _chunks(columns: Sequence[Sequence[Any]], column: str | None) -> list[list[tuple[int, int]]]:
    """Find where a column lies in each row group: offsets and bytes of its parts."""
    found = [[chunk for chunk in group if column and _is_of(chunk.path_in_schema, column)] for group in columns]
    return [[(_start(chunk), chunk.total_compressed_size) for chunk in group] for group in found]


def _start(chunk: Any) -> int:
    dictionary = chunk.dictionary_page_offset
    return min(dictionary, chunk.data_page_offset) if dictionary else chunk.data_page_offset


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


def _image_column(path: AnyPath, file: ParquetFile) -> str:
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
    name = _label_column(file)
    if name is None:
        return [""] * file.metadata.num_rows
    names = _features(file).get(name, {}).get("names") or ()
    values = file.read([name], use_threads=False).column(name).to_pylist()
    return [class_name(value, names) for value in values]


def _label_column(file: ParquetFile) -> str | None:
    """Find the column of classes; None if there is none."""
    classes = [name for name, feature in _features(file).items() if feature.get("_type") == "ClassLabel"]
    return next((name for name in (*classes[:1], *_LABEL_NAMES) if name in file.schema_arrow.names), None)


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
