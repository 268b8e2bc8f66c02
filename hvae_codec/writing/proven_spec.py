"""What a store was made from, read from its own tables, for another store that goes on with what it has."""

from __future__ import annotations

import math
from dataclasses import replace

from ..errors import StoreError
from ..store.reader import Store
from ..store.schema import WEIGHTS
from ..store.spec import StoreSpec, spec_fingerprint


def proven_spec(store: Store) -> StoreSpec:
    """The specification of `store`, weights that it carries included.

    Raises `StoreError` if its names, labels, steps or coordinates are not the ones that it was made with.
    """
    spec = store.spec()
    # If the store does not say how large its chunks may be, the fingerprint cannot be told; see `verify`.
    if store.metadata.chunk_bytes is not None and spec_fingerprint(spec) != store.metadata.fingerprint:
        raise StoreError(
            f"{store.path} has the fingerprint of other names, labels, steps or settings than its own; restore the "
            "store from a copy or encode the images again"
        )
    weights = store.arrays.read(WEIGHTS).tobytes() if store.metadata.model.embedded else b""
    return replace(spec, chunk_bytes=_chunk_bytes(store), weights=weights)


def _chunk_bytes(store: Store) -> int:
    """The size the store was made with or, if that is not known, one that gives chunks of as many images."""
    if store.metadata.chunk_bytes is not None:
        return store.metadata.chunk_bytes
    arrays = [store.arrays[f"z{resolution}"] for resolution in store.resolutions]
    return max((math.prod(array.chunks) * array.dtype.itemsize for array in arrays if array.chunks[0] > 1), default=1)
