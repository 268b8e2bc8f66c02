"""Names as 16 bytes each, to find one list's names in another without millions of texts in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DIGEST_BYTES = 16  # of millions of names, no two have the same digest


def name_digests(names: Sequence[str]) -> NDArray[np.bytes_]:
    """Compute BLAKE2b of each name, of 16 bytes: [N] of type S16."""
    digests = (hashlib.blake2b(name.encode(), digest_size=DIGEST_BYTES).digest() for name in names)
    return np.fromiter(digests, f"S{DIGEST_BYTES}", len(names))


def find_digests(wanted: NDArray[np.bytes_], among: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """Find where each of `wanted` is `among` others, all different: int64 [len(wanted)], -1 if it is not.

    >>> find_digests(np.array([b"c", b"x", b"a"]), np.array([b"b", b"c", b"a"]))
    array([ 1, -1,  2])
    """
    if not len(among):
        return np.full(len(wanted), -1)
    if np.array_equal(wanted, among):  # as most often: nothing is new, nothing is gone
        return np.arange(len(among))
    order = np.argsort(among)
    at = order[np.minimum(np.searchsorted(among, wanted, sorter=order), len(among) - 1)]
    return np.where(among[at] == wanted, at, -1)
