"""A store as an `xarray.DataTree`: names, labels and figures of the images, and a node for each latent resolution.

    /        name, label, split, file_bytes, checksum, rate, ...   [image]
    /z1      z [image, channel, y, x], group [channel], variate [channel]
    /z16     z [image, channel, y, x], ...

Of granularity position, z is [image, dimension], and y and x of each dimension stand beside its group and variate.
z is read, and checked, when it is asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray
from xarray.backends import BackendArray
from xarray.core import indexing

from ..store.reader import Store


def data_tree(store: Store) -> xarray.DataTree:
    """See `EncodedStore.to_xarray`."""
    figures = {name: ("image", values.to_numpy()) for name, values in store.frame.items()}
    names = {name: ("image", np.array(figures.pop(name)[1], dtype=str)) for name in _texts(store)}
    numbers = figures.pop("image", ("image", np.arange(len(store))))  # a user may have given the axis labels
    images = {"image": numbers, **names}
    attributes = {"path": str(store.path), "model_hash": store.model_hash, "codec": store.codec.name}
    nodes = {f"/z{resolution}": _node(store, resolution).assign_coords(images) for resolution in store.resolutions}
    return xarray.DataTree.from_dict({"/": xarray.Dataset(figures, images, attributes), **nodes})


def _texts(store: Store) -> tuple[str, ...]:
    return ("name", "label") if store.splits is None else ("name", "label", "split")


def _node(store: Store, resolution: int) -> xarray.Dataset:
    axes = ("channel", "y", "x") if store.columns.granularity == "variate" else ("dimension",)
    z = xarray.Variable(("image", *axes), indexing.LazilyIndexedArray(_LazyLatents(store, resolution)))
    coordinates = zip(("group", "variate", "y", "x"), store.columns.coordinates[resolution].T, strict=False)
    return xarray.Dataset({"z": z}, {name: (axes[0], numbers) for name, numbers in coordinates})


class _LazyLatents(BackendArray):
    """Latents of one resolution, float32, read when xarray asks for them."""

    def __init__(self, store: Store, resolution: int) -> None:
        self.store, self.resolution = store, resolution
        self.shape = (len(store), *store.columns.item(resolution))
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        """Elements at `key`: for each axis on its own a number, a slice or an array of numbers."""
        images, *rest = key
        chosen = np.arange(len(self.store))[images]
        z = self.store.latents_at(self.resolution, np.atleast_1d(chosen).tolist())
        for axis in range(len(rest), 0, -1):  # the last first: a number takes its axis away
            z = z[(slice(None),) * axis + (rest[axis - 1],)]
        return z if chosen.ndim else z[0]
