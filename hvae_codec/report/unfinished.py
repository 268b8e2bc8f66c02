"""How far an unfinished store is, and the command that finishes it, as far as the store knows that."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..config import CHUNK_BYTES, LATEST_RUN, ROW_GROUP_SIZE
from ..data.preprocessing import Preprocessing
from ..encode.sketch import SKETCH
from ..store.compressors import ARCHIVE
from ..store.metadata import StoreMetadata
from ..store.rowgroups import runs
from ..store.unfinished import UnfinishedStore
from .facts import Facts


def unfinished_facts(store: UnfinishedStore) -> Facts:
    """Say what is done and what is left."""
    total, done = len(store.row_groups), len(store.committed)
    left = [number for number in range(total) if number not in store.committed]
    data = {
        "kind": "unfinished store",
        "path": str(store.path),
        "unfinished": str(store.location),
        "images": store.row_groups.images,
        "images_done": store.images_done,
        "row_groups": total,
        "row_groups_done": done,
        "row_groups_left": list(map(list, runs(left))),
        "bytes": store.bytes,
        "run": store.metadata.model.run,
        "model_hash": store.metadata.model.hash,
        "resume": resume_command(store),
    }
    pairs = {
        "unfinished": f"{progress_text(store)}; {store.location}",
        "images": f"{store.images_done:,} of {store.row_groups.images:,}",
        **({"row groups left": row_group_numbers(left)} if left else {}),
        "bytes so far": f"{store.bytes:,}",
        "model": f"{store.metadata.model.hash[:12]} ({store.metadata.model.run or LATEST_RUN})",
        "to finish it": resume_sentence(store),
    }
    return Facts(store.path, data, pairs)


def row_group_numbers(numbers: Sequence[int], shown: int = 6) -> str:
    """Write numbers of row groups as a person reads them, the first few stretches of them.

    >>> row_group_numbers([4, 5, 6, 9]), row_group_numbers(range(0, 20, 2))
    ('4-6, 9', '0, 2, 4, 6, 8, 10, ... (10 in all)')
    """
    parts = [f"{first}" if first == last else f"{first}-{last}" for first, last in runs(numbers)]
    more = [f"... ({len(numbers):,} in all)"] if len(parts) > shown else []
    return ", ".join([*parts[:shown], *more])


def progress_text(store: UnfinishedStore) -> str:
    """Say how many of its row groups are done.

    For example `3 of 8 row groups are written (37.5%)`.
    """
    total, done = len(store.row_groups), len(store.committed)
    share = f" ({100 * done / total:.1f}%)" if total else ""
    return f"{done:,} of {total:,} row groups are written{share}"


def resume_sentence(store: UnfinishedStore) -> str:
    """Say which command continues, and what of it the store does not know."""
    unknown = "its own images as DATA"
    if not _is_appended(store.metadata):
        unknown += ", and the --split and the --keep, --cutoff, --tolerance or --mask of the command that began it"
    return f"{resume_command(store)}  (with {unknown}; or the recode that began it)"


def resume_command(store: UnfinishedStore) -> str:
    """Write the command that continues, with the options that the store tells of, if they are not the defaults."""
    metadata, path = store.metadata, str(store.path)
    replaces = store.location != store.path and store.path.exists()
    model = ["--model", metadata.model.run] if metadata.model.run else []
    if _is_appended(metadata):
        words = ["append", "DATA", *([path] if replaces else ["STORE", "--out", path]), *model]
    else:
        words = ["encode", "DATA", path, *model, *_encode_options(metadata)]
        words += ["--overwrite"] if replaces else []
    how = Preprocessing.from_dict(dict(metadata.source.preprocessing), path).flags().split()
    return shlex.join(["hvae-codec", *words, *how])


def _is_appended(metadata: StoreMetadata) -> bool:
    return bool(metadata.source.parts)


def _encode_options(metadata: StoreMetadata) -> list[str]:
    codec, arrays = metadata.codec.to_dict(), metadata.arrays or {}
    given: dict[str, Any] = {
        "--codec": ARCHIVE if metadata.packing == ARCHIVE else codec["name"] if codec["name"] != "int" else None,
        "--step": codec.get("step"),
        "--code-bits": _code_bits(metadata),
        "--granularity": "position" if metadata.columns.get("granularity") == "position" else None,
        "--shard": metadata.row_group_size if metadata.row_group_size != ROW_GROUP_SIZE else None,
        "--chunk": metadata.chunk_bytes if metadata.chunk_bytes != CHUNK_BYTES else None,
        "--embed": metadata.model.embedded or None,
        "--evaluate": "all" if "rate" in arrays else None,
    }
    words = [str(word) for option, value in given.items() if value is not None for word in (option, value)]
    return [*words, *(["--verify"] if SKETCH in arrays else [])]


def _code_bits(metadata: StoreMetadata) -> int | None:
    """Bits of all arrays; None if they differ, as only `auto` makes them, or if there is no choice."""
    dtypes = {*metadata.dtypes.values()}
    return 8 * np.dtype(dtypes.pop()).itemsize if len(dtypes) == 1 else None
