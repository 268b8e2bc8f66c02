"""A store as a data set for torch: random access from any process, shuffled so that each chunk is read about once.

    dataset = LatentDataset("out.zarr")
    sampler = RowGroupSampler(dataset, seed=0)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for latents, labels in DataLoader(dataset, batch_size=64, sampler=sampler, num_workers=2):
            ...  # latents: {"z1": float32 [64, c, 1, 1], "z16": ...}

No model is needed. Worker processes may be forked or spawned; of a store in a bucket, spawn them
(`multiprocessing_context="spawn"`): connections do not survive a fork.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate

from ..errors import UsageError
from ..storage.cache import CACHE_BYTES
from ..storage.location import location_of
from ..store.reader import Store
from .encoded_store import open_store

Latents = Tensor | dict[str, Tensor]
"""Of one image: by array name, as `Store.latents` gives them, or one flat tensor."""


class LatentDataset(Dataset[Any]):
    """The latents of a store, image by image, with the number of each image's class.

    An item is `(latents, label)`, or latents alone without `labels`. Latents are float32 tensors by array name, shaped
    like those of `Store.latents`, or with `flat` one tensor [kept dimensions]: the arrays by ascending resolution, each
    in C order. `transform` is applied to the latents of each image. A list of indices gives a batch, [n, ...] each;
    `DataLoader(dataset, sampler=BatchSampler(...), batch_size=None)` reads whole batches that way, which is fastest.

    It can be pickled, and a process that got it so opens the store itself.
    """

    def __init__(
        self,
        store: Store | str | Path,
        *,
        labels: bool = True,
        flat: bool = False,
        transform: Callable[[Any], Any] | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """If `store` is a path, each process holds `cache_bytes` of decoded chunks; raises what `open_store` does."""
        if not isinstance(store, Store):
            store = open_store(location_of(store).absolute(), cache_bytes=cache_bytes)
        self.store = store
        """The store, opened in this process."""
        self.store.stored(slice(0, 0))  # so that a forked process need not open the arrays
        self.flat, self.transform = flat, transform
        self.classes: list[str] = sorted(set(self.store.labels) - {""}) if labels else []
        """Distinct labels in alphabetical order; the index in here is an item's label."""
        number = {label: index for index, label in enumerate(self.classes)}
        self.labels = np.array([number.get(label, -1) for label in self.store.labels], np.int32) if labels else None
        """The class of each image, int32 [images]; -1 if it has none. None without labels."""

    def __len__(self) -> int:
        return len(self.store)

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int | Sequence[int]) -> Any:
        """An item, or a batch if `index` is a list; `UsageError` if there is no such image."""
        if hasattr(index, "__len__") and getattr(index, "shape", None) != ():  # scalars of torch have `__len__`, too
            return self._batch(list(cast(Sequence[int], index)))
        return self.__getitems__([cast(int, index)])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Items of several images, read together: what a `DataLoader` asks for."""
        latents = self._latents(indices)
        if isinstance(latents, Tensor):
            items: list[Any] = list(latents)
        else:
            items = [dict(zip(latents, parts, strict=True)) for parts in zip(*latents.values(), strict=True)]
        if self.transform is not None:
            items = [self.transform(item) for item in items]
        return items if self.labels is None else [(z, int(self.labels[i])) for z, i in zip(items, indices, strict=True)]

    def _batch(self, indices: Sequence[int]) -> Any:
        if self.transform is not None:
            return default_collate(self.__getitems__(indices))
        latents = self._latents(indices)
        if self.labels is None:
            return latents
        return latents, torch.from_numpy(self.labels[np.asarray(indices, dtype=int)].astype(np.int64))

    def _latents(self, indices: Sequence[int]) -> Latents:
        arrays = self.store.gather_latents(indices)
        if self.flat:
            return torch.from_numpy(np.concatenate([z.reshape(len(z), -1) for z in arrays.values()], axis=1))
        return {name: torch.from_numpy(z) for name, z in arrays.items()}


class RowGroupSampler(Sampler[int]):
    """Shuffles the images of a store so that an epoch reads each chunk about once.

    The row groups are taken in random order, `window` of them at a time, and the images of these are shuffled among
    each other. Each process should have room for the chunks of one window: `window` row groups of the store's images.
    Each epoch has the same order until `set_epoch` names another. Of `replicas` processes that train together each
    takes an equal share; up to `replicas` - 1 images are left out of an epoch.
    """

    def __init__(
        self, store: Store | LatentDataset, *, seed: int = 0, window: int = 8, rank: int = 0, replicas: int = 1
    ) -> None:
        """Raises `UsageError` if `window` is below 1, or process `rank` of `replicas` is not there or gets no image."""
        if window < 1:
            raise UsageError(f"window is {window}; it must be at least 1 row group")
        if not 0 <= rank < replicas:
            raise UsageError(f"rank is {rank} of {replicas}; it must be from 0 to {replicas - 1}")
        self._row_groups = (store.store if isinstance(store, LatentDataset) else store).row_groups
        self._seed, self._window, self._epoch = seed, window, 0
        share = self._row_groups.images // replicas
        if not share:
            images = self._row_groups.images
            raise UsageError(f"replicas is {replicas}, more than the store's {images} images; start {images} at most")
        self._share = range(rank * share, rank * share + share)

    def set_epoch(self, epoch: int) -> None:
        """The next pass is that of `epoch`, from 0: same seed and epoch, same order."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._share)

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self._seed, self._epoch)).permutation(len(self._row_groups)).tolist()
        first = 0
        for k in range(0, len(order), self._window):
            images = np.concatenate([self._row_groups.rows(row_group) for row_group in order[k : k + self._window]])
            own = slice(max(0, self._share.start - first), max(0, self._share.stop - first))
            # Each window has its own generator, so that a process need not shuffle those of others.
            if own.start < len(images) and own.stop:
                yield from np.random.default_rng((self._seed, self._epoch, k)).permutation(images)[own].tolist()
            first += len(images)
