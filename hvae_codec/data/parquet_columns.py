"""Which column of a Parquet file has the images, and which their classes: by schema, by name, or as `--column` says.

image  struct<bytes: binary, path: string>, or binary        label  int64, or string
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..storage.location import AnyPath
from ..texts.classes import ClassTexts
from .dataset_json import class_name

if TYPE_CHECKING:
    from pyarrow import DataType
    from pyarrow.parquet import ParquetFile

IMAGE_NAMES, LABEL_NAMES = ("image", "img"), ("label", "labels", "fine_label")
"""What columns of Hugging Face's data sets are called, in files and in Python; the first one that is there counts."""


def image_column(path: AnyPath, file: ParquetFile, wanted: str | None = None) -> tuple[str, bool]:
    """Find the column of images: `wanted`, or the only one that is said to hold some, or is called so, or has bytes.

    Returns also whether it is another one than would be found without `wanted`. Raises `DataError` if there is none or
    several, or if `wanted` is not there or holds no images.
    """
    found, filled = _candidates(file), _with_bytes(file)
    if wanted is not None:
        _check_wanted(path, file, wanted, filled)
        return wanted, found != [wanted]
    if len(found) > 1:
        problem = f"{path} has several columns that may be images ({', '.join(found)})"
        raise DataError(f"{problem}; choose one with --column, as --column {found[0]}")
    if not found:
        raise DataError(f"{path} has no column of images, but {', '.join(file.schema_arrow.names)}; {_FORM}")
    return found[0], False


_FORM = "a column of images has the bytes of files, as Hugging Face's have"


def label_column(file: ParquetFile) -> str | None:
    """Find the column of classes; None if there is none."""
    classes = [name for name, feature in _features(file).items() if feature.get("_type") == "ClassLabel"]
    return next((name for name in (*classes[:1], *LABEL_NAMES) if name in file.schema_arrow.names), None)


def labels_of_rows(file: ParquetFile) -> ClassTexts:
    """Read the class of each image: its name if the schema has the names."""
    name = label_column(file)
    if name is None:
        return ClassTexts.same("", file.metadata.num_rows)
    names = _class_names(_features(file).get(name, {}))
    batches = file.iter_batches(columns=[name], use_threads=False)
    return ClassTexts.of(class_name(value, names) for batch in batches for value in batch.column(0).to_pylist())


def _class_names(feature: Mapping[str, Any]) -> Sequence[str]:
    """Give the names of the classes in a column's description; none if it has something else there."""
    names = feature.get("names")
    return names if isinstance(names, list) else ()


def _candidates(file: ParquetFile) -> Sequence[str]:
    """Find the columns that may be the images: those that are said to be, or else are called so, or else have bytes."""
    filled = _with_bytes(file)
    stated = [name for name, feature in _features(file).items() if feature.get("_type") == "Image" and name in filled]
    return stated or [name for name in IMAGE_NAMES if name in filled] or filled


def _check_wanted(path: AnyPath, file: ParquetFile, wanted: str, filled: Sequence[str]) -> None:
    columns = file.schema_arrow.names
    if wanted not in columns:
        raise DataError(f"{path} has no column {wanted!r}, but {', '.join(columns)}; give one of these as --column")
    if wanted not in filled:
        others = f"those with bytes are {', '.join(filled)}" if filled else f"there is none among {', '.join(columns)}"
        raise DataError(f"the column {wanted!r} of {path} holds no images; {_FORM}, and {others}")


def _with_bytes(file: ParquetFile) -> list[str]:
    return [field.name for field in file.schema_arrow if _has_bytes(field.type)]


def _has_bytes(kind: DataType) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _has_bytes(kind.field("bytes").type)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _features(file: ParquetFile) -> Mapping[str, Any]:
    """Read what Hugging Face's metadata say of the columns; nothing if there are none."""
    stated = (file.schema_arrow.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(stated)["info"]["features"] if stated else {}
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
