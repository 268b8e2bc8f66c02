"""Latents that someone else made, such as a generative model, as the numbers that a store of them would hold.

[n, kept dimensions] ── split ──┐
                                ├── {"z1": [n, columns, 1, 1], ...} ── round ──> stored numbers, by resolution
{"z1": [n, columns, 1, 1], ...} ┘
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import UsageError
from ..store.reader import Store, Stored

GivenLatents = Mapping[str, ArrayLike] | ArrayLike
"""By array name, as `Store.latents` of a slice gives them, or flat, as batches of `LatentDataset(flat=True)` are."""


def stored_numbers(store: Store, latents: GivenLatents) -> Stored:
    """Round `latents` as those of `store` are: by latent resolution, [n, columns, ...].

    Raises `UsageError` if arrays are missing, have other shapes than the store's, or hold numbers that are not finite.
    """
    arrays = _by_name(store, latents) if isinstance(latents, Mapping) else _split(store, np.asarray(latents))
    if len({len(z) for z in arrays.values()}) > 1:
        raise UsageError(f"latents are of {_counts(arrays)}; give all arrays the same number of images")
    for resolution, z in arrays.items():
        if not np.isfinite(z).all():
            raise UsageError(f"z{resolution} has a number that is not finite; latents must be numbers")
    return {r: store.codec.encode(z, _steps(store, r)) for r, z in arrays.items()}


def _steps(store: Store, resolution: int) -> NDArray[np.float32]:
    steps, item = store.steps[resolution], store.columns.item(resolution)
    return steps.reshape(-1, *(1 for _ in item[1:]))


def _by_name(store: Store, latents: Mapping[str, ArrayLike]) -> dict[int, NDArray[np.float32]]:
    names = {f"z{resolution}": resolution for resolution in store.resolutions}
    if set(latents) != set(names):
        raise UsageError(f"latents are {', '.join(map(str, latents)) or 'none'}; {store.path} has {', '.join(names)}")
    arrays = {resolution: np.asarray(latents[name], np.float32) for name, resolution in names.items()}
    for resolution, z in arrays.items():
        _check_shape(f"z{resolution}", z, store.columns.item(resolution))
    return arrays


def _split(store: Store, flat: NDArray) -> dict[int, NDArray[np.float32]]:
    _check_shape("latents", flat, (store.kept_dims,))
    items = {resolution: store.columns.item(resolution) for resolution in store.resolutions}
    ends = itertools.accumulate(math.prod(item) for item in items.values())
    parts = np.split(flat.astype(np.float32), [*ends][:-1], axis=1)
    return {r: part.reshape(len(part), *items[r]) for r, part in zip(items, parts, strict=True)}


def _check_shape(name: str, z: NDArray, item: tuple[int, ...]) -> None:
    if z.shape[1:] != item or z.ndim < 2:
        wanted = ", ".join(["images", *map(str, item)])
        raise UsageError(f"{name} is of shape {list(z.shape)}; it must be [{wanted}], as the store's are")


def _counts(arrays: Mapping[int, NDArray]) -> str:
    return ", ".join(f"{len(z)} images (z{resolution})" for resolution, z in arrays.items())
