"""Images in Parquet files as Hugging Face's are: a column of files, with classes and their names in the schema.

A row group is the smallest part that can be read. The last few stay in memory: read images in order, or in windows of
row groups, as training does.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, UsageError
from ..storage.location import AnyPath, real_path
from ..texts.classes import ClassTexts
from ..texts.numbered import NumberedTexts
from ..texts.sequence import JoinedTexts
from .containers import FileContainer
from .file_sets import files_of_set, is_file_set, parts_of_files
from .parquet_columns import image_column, label_column, labels_of_rows
from .parquet_groups import GroupTable, ParquetFiles, ParquetGroups, is_struct, opener, readable_parquet
from .pieces import Pieces, pieces_of
from .row_groups import RowGroupCache, RowGroups
from .stamps import Stamps

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile


@dataclass(frozen=True, eq=False)
class _File:
    """What the end of one Parquet file says."""

    rows: NDArray[np.int64]  # images in each row group, int64 [row groups]
    packed: NDArray[np.int64]  # bytes of the column of images in each, int64 [row groups]
    unpacked: NDArray[np.int64]  # bytes of these in memory, about, int64 [row groups]
    image: str  # name of the column of images
    labels: ClassTexts  # class of each image
    digest: bytes  # SHA-256 of the schema, of the sizes of all columns in each row group, and of a chosen column
    chunks: Sequence[Sequence[tuple[int, int]]]  # offsets and bytes of the parts of that column in each row group


class Parquet(FileContainer):
    """The images in one Parquet file or several; a name is the file's and the number of the row in it."""

    sizes_are_exact = False  # they are shares of a row group's

    def __init__(
        self,
        path: AnyPath,
        names: Sequence[str],
        files: Pieces,
        column: str | None = None,
        *,
        size: int,
        channels: int,
    ) -> None:
        """`names` are those of `files` in `path`; raises `DataError` as `open_parquet` does."""
        _check_unique(path, names)
        open_file = opener(files)
        found = [*files.map(lambda file: _described(files, column, file, open_file(file)), range(len(files.paths)))]
        counts = [int(file.rows.sum()) for file in found]
        if not sum(counts):
            raise DataError(f"there are no images in {path}; give a file with at least one row")
        described = ParquetFiles(files, [file.image for file in found], [file.digest for file in found])
        self._read_from(ParquetGroups(described, _table(found), open_file))
        self._rows: NDArray[np.int64] | None = None  # of each image, if not all rows are images of this
        rows = np.concatenate([file.rows for file in found])
        super().__init__(
            path,
            JoinedTexts([*_row_names(names, counts)]),
            ClassTexts.joined([file.labels for file in found]),
            _spread(np.concatenate([file.packed for file in found]), rows),
            size=size,
            channels=channels,
            parts=parts_of_files(names, counts),
            stamps=Stamps.of_files(files.stamps, files.opened, np.repeat(np.arange(len(found)), counts)),
        )

    def _read_from(self, groups: ParquetGroups) -> None:
        self._groups = groups
        self._cache = RowGroupCache(groups.read, groups.leave)

    def _narrow(self, positions: NDArray[np.int64]) -> None:
        super()._narrow(positions)
        whole, rows = self._groups, self._rows_of(positions)
        groups, group_of = np.unique(whole.table.group_of(rows), return_inverse=True)
        self._read_from(whole.select(groups))
        self._rows = rows - whole.table.starts[groups][group_of] + self._groups.table.starts[group_of]

    @property
    def files(self) -> Pieces:
        """The files."""
        return self._groups.files.pieces

    @property
    def roots(self) -> list[PurePath]:
        """The files."""
        return [*map(real_path, self.files.paths)]

    def content(self, positions: NDArray[np.int64]) -> bytes:
        """Give digests of what the ends of the files say, of those that these images are in."""
        files = self._groups.table.file[self._group_of(positions)]
        return b"".join(self._groups.files.digests[file] for file in np.unique(files))

    def locations(self, positions: NDArray[np.int64]) -> list[str]:
        """Give the path of each image's file, its row group there, and its row in that."""
        table, groups, real = self._groups.table, self._group_of(positions), self.roots
        rows = self._rows_of(positions) - table.starts[groups]
        places = zip(table.file[groups].tolist(), table.number[groups].tolist(), rows.tolist(), strict=True)
        return [f"{real[file]}/{group}/{row}" for file, group, row in places]

    def groups(self) -> RowGroups:
        """Say which row group each image is in."""
        return RowGroups(self._group_of(np.arange(len(self))), self._groups.table.unpacked)

    def open(self, position: int) -> BinaryIO:
        """Take the file of the image at `position` from its row group, which is read if it is not in memory."""
        row = int(self._rows_of(position))
        group = int(self._groups.table.group_of(row))
        content = self._cache.get(group, self.group_cache_bytes)[row - int(self._groups.table.starts[group])]
        if content is None:
            raise OSError("the file has no bytes of it, but its path at best")
        return io.BytesIO(content)

    def prefetch(self, positions: NDArray[np.int64]) -> None:
        """Begin to read the row groups that the images at `positions` are in, each once while it is kept."""
        self._groups.prefetch(self._group_of(positions))

    def _group_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._groups.table.group_of(self._rows_of(positions))

    def _rows_of(self, positions: NDArray[np.int64] | int) -> Any:
        return positions if self._rows is None else self._rows[positions]


def is_parquet(path: Path) -> bool:
    """Whether `path` is a Parquet file, a range of them, or a folder with some and without images below it."""
    return is_file_set(path, ".parquet")


def open_parquet(path: Path, *, size: int, channels: int, column: str | None = None) -> Parquet:
    """Open the images of all Parquet files that `path` stands for; names such as `train-00000-of-00004` are splits.

    Raises `DataError` if a file is truncated, if none or several of its columns hold images and no `column` is chosen,
    if that is not there or holds none, if there is no image, or if the names of two files differ in their ending alone;
    `UsageError` if pyarrow is missing.
    """
    files = dict(sorted(files_of_set(path, ".parquet").items()))  # by name, as a range is by number
    return parquet_in(path, files, size=size, channels=channels, column=column)


def parquet_in(
    path: AnyPath, files: Mapping[str, AnyPath], *, size: int, channels: int, column: str | None = None
) -> Parquet:
    """Open the images of `files`, which lie in `path` by these names; raises like `open_parquet`."""
    _check_installed(path)
    return Parquet(path, [*files], pieces_of([*files.values()]), column, size=size, channels=channels)


def _check_installed(path: AnyPath) -> None:
    try:
        import pyarrow.parquet  # noqa: F401 - it is large, and few have such files
    except ImportError:
        advice = "which is not installed; pip install 'hvae-codec[parquet]'"
        raise UsageError(f"{path} takes the package pyarrow, {advice}") from None


def _described(files: Pieces, wanted: str | None, number: int, file: ParquetFile) -> _File:
    """Read what the end of the file at position `number` says, and its classes."""
    path = files.paths[number]
    with readable_parquet(path):
        (image, chosen), metadata = image_column(path, file, wanted), file.metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        columns = [[group.column(i) for i in range(group.num_columns)] for group in groups]
        sizes = [[(c.path_in_schema, c.num_values, c.total_compressed_size) for c in group] for group in columns]
        packed = [sum(size for name, _, size in group if _is_of(name, image)) for group in sizes]
        unpacked = [
            sum(c.total_uncompressed_size for c in group if _is_of(c.path_in_schema, image)) for group in columns
        ]
        about = (str(file.schema_arrow), sizes, image) if chosen else (str(file.schema_arrow), sizes)
        digest = hashlib.sha256(repr(about).encode()).digest()
        rows, *sizes_of = (np.array(n, np.int64) for n in ([g.num_rows for g in groups], packed, unpacked))
        files.prefetch((number, *chunk) for chunks in _chunks(columns, label_column(file)) for chunk in chunks)
        chunks = _chunks(columns, f"{image}.bytes" if is_struct(file, image) else image)
        return _File(rows, sizes_of[0], sizes_of[1], image, labels_of_rows(file), digest, chunks)


def _table(files: Sequence[_File]) -> GroupTable:
    counts = [len(file.rows) for file in files]
    rows, unpacked = (np.concatenate([getattr(file, name) for file in files]) for name in ("rows", "unpacked"))
    return GroupTable(
        file=np.repeat(np.arange(len(files)), counts),
        number=np.concatenate([np.arange(count) for count in counts]),
        starts=np.concatenate([[0], np.cumsum(rows)]),
        unpacked=unpacked,
        chunks=[chunks for file in files for chunks in file.chunks],
    )


def _chunks(columns: Sequence[Sequence[Any]], column: str | None) -> list[list[tuple[int, int]]]:
    """Find where a column lies in each row group: offsets and bytes of its parts."""
    found = [[chunk for chunk in group if column and _is_of(chunk.path_in_schema, column)] for group in columns]
    return [[(_start(chunk), chunk.total_compressed_size) for chunk in group] for group in found]


def _start(chunk: Any) -> int:
    dictionary = chunk.dictionary_page_offset
    return min(dictionary, chunk.data_page_offset) if dictionary else chunk.data_page_offset


def _is_of(name: str, column: str) -> bool:
    return name == column or name.startswith(f"{column}.")


def _check_unique(path: AnyPath, files: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for file in files:
        if (other := seen.setdefault(_without_ending(file), file)) != file:
            problem = f"images in {path / other} and {path / file} would have the same names"
            raise DataError(f"{problem}; rename one of these files, or remove it")


def _row_names(files: Sequence[str], counts: Sequence[int]) -> Iterator[NumberedTexts]:
    for file, count in zip(files, counts, strict=True):
        yield NumberedTexts(f"{_without_ending(file)}/", count)


def _without_ending(file: str) -> str:
    return file.removesuffix(Path(file).suffix)


def _spread(totals: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Share the bytes of each row group out to its images, as the files say no more."""
    each, left = np.divmod(totals, np.maximum(rows, 1))
    shares = np.repeat(each, rows)
    ends = np.cumsum(rows)[rows > 0] - 1
    shares[ends] += left[rows > 0]
    return shares
