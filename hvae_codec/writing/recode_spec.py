"""What a recoded store is made from: all that the old one is, in another packing, other types or other pieces.

                 not given                                        given
packing          as it is; zstd if it is of a version below 5     zstd, archive or blosc
code_bits        as they are; below version 5 what fits           8, 16, or auto: in each array 8 if its codes fit
chunk_bytes      as they are                                      uncompressed bytes
row_group_size   as it is                                         images
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..errors import UsageError
from ..store.compressors import BLOSC, COMPRESSORS, ZSTD
from ..store.layout import MAX_CHUNK, MAX_ROW_GROUP, check_chunks, check_limit
from ..store.quantiser import CODE_TYPES
from ..store.reader import Store
from ..store.spec import StoreSpec
from .code_ranges import CodeRange
from .proven_spec import proven_spec

CodeBits = Literal["auto", 8, 16]
Ranges = Callable[[Sequence[int]], Mapping[int, CodeRange]]
"""Finds out the range of the codes of arrays, by resolution."""

_MOST = int(np.iinfo("int8").max)  # the least int8 is what is read where nothing was written


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is to be another way than in the old store; None: as the table above says."""

    packing: str | None = None
    code_bits: CodeBits | None = None
    chunk_bytes: int | None = None
    row_group_size: int | None = None

    def __post_init__(self) -> None:
        check_limit("chunk_bytes", "--chunk", self.chunk_bytes, MAX_CHUNK)
        check_limit("row_group_size", "--shard", self.row_group_size, MAX_ROW_GROUP)
        if self.packing not in (None, *COMPRESSORS):
            raise UsageError(f"packing is {self.packing!r}; give {', '.join(COMPRESSORS)}, or nothing")
        if self.code_bits not in (None, "auto", 8, 16):
            raise UsageError(f"code_bits (--code-bits) is {self.code_bits}; give auto, 8 or 16, or nothing")


def recoded_spec(store: Store, changes: Changes, ranges: Ranges) -> StoreSpec:
    """The specification of `store` with `changes`; `ranges` is called if codes must be looked at.

    Raises `UsageError` if codes are larger than `changes` say, if latents are floats and are to be anything but floats,
    or if row groups can only be cut into far too small chunks; otherwise what `proven_spec` does.
    """
    packing = _packing(store, changes)
    dtypes = {} if packing == BLOSC else _dtypes(store, changes, ranges)
    old = proven_spec(store)
    spec = replace(
        old,
        packing=packing,
        dtypes=dtypes,
        chunk_bytes=changes.chunk_bytes or old.chunk_bytes,
        row_group_size=changes.row_group_size or old.row_group_size,
        # A store that does not say which arrays were made with it has none but these.
        per_image=store.per_image_names if store.metadata.arrays is None else store.own_figures,
    )
    check_chunks(spec.layout)
    return spec


def _packing(store: Store, changes: Changes) -> str:
    """The new packing, for which everything else is right; `UsageError` if it is not."""
    dtype, bits = store.codec.dtype, changes.code_bits
    if dtype not in CODE_TYPES:
        if bits is not None or changes.packing not in (None, BLOSC):
            raise UsageError(
                f"{store.path} holds latents as {dtype}, of which no codes can be made without the images; give "
                "--chunk or --shard alone"
            )
        return BLOSC
    packing = changes.packing or (ZSTD if store.metadata.packing == BLOSC else store.metadata.packing)
    if packing == BLOSC and bits not in (None, 16):
        raise UsageError(f"code_bits is {bits}, and codes packed with {BLOSC} have 16; leave it out, or give {ZSTD}")
    return packing


def _dtypes(store: Store, changes: Changes, ranges: Ranges) -> dict[int, str]:
    """Types of the new arrays of codes, by resolution."""
    now = store.dtypes
    bits = changes.code_bits or ("auto" if store.metadata.packing == BLOSC else None)
    if bits is None:
        return now
    if bits == 16:
        return dict.fromkeys(now, "int16")
    wide = [resolution for resolution, dtype in now.items() if dtype != "int8"]
    found = ranges(wide) if wide else {}
    too_large = {r: codes.farthest for r, codes in found.items() if abs(codes.farthest) > _MOST}
    if bits == 8 and too_large:
        resolution, code = next(iter(too_large.items()))
        raise UsageError(
            f"{store.path} has the code {code} in z{resolution}, and 8 bits hold -{_MOST} to {_MOST}; give "
            "--code-bits 16, or auto for 8 bits in the arrays whose codes fit"
        )
    return {resolution: "int16" if resolution in too_large else "int8" for resolution in now}
