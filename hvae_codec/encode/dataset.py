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
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate

from ..errors import UsageError
from ..storage.cache import CACHE_BYTES
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
        """`cache_bytes`: what each process keeps of decoded chunks, where `store` is a path.

        Raises `StoreError` like `open_store`.
        """
        self._opened: Store | None = store if isinstance(store, Store) else open_store(store, cache_bytes=cache_bytes)
        self._path, self._cache_bytes = self._opened.path.absolute(), self._opened.cache.limit
        self._images = len(self._opened)
        self._opened.stored(slice(0, 0))  # so that a forked process need not open the arrays
        self.flat = flat
        self.transform = transform
        self.classes: list[str] = sorted(set(self._opened.labels) - {""}) if labels else []
        """Distinct labels in alphabetical order; the place in here is an item's label."""
        self.labels: NDArray[np.int32] | None = self._numbers(self._opened.labels) if labels else None
        """The class of each image, [images]; -1 where it has none. None without labels."""

    def _numbers(self, labels: Sequence[str]) -> NDArray[np.int32]:
        number = {label: place for place, label in enumerate(self.classes)}
        return np.array([number.get(label, -1) for label in labels], np.int32)

    @property
    def store(self) -> Store:
        """The store, opened in this process."""
        if self._opened is None:
            self._opened = open_store(self._path, cache_bytes=self._cache_bytes)
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __len__(self) -> int:
        return self._images

    def __getitem__(self, index: int | Sequence[int]) -> Any:
        """An item, or a batch where `index` is a list; `UsageError` where there is no such image."""
        if hasattr(index, "__len__"):
            return self._batch(list(cast(Sequence[int], index)))
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Items of several images, read together: what a `DataLoader` asks for."""
        latents = self._latents(indices)
        if isinstance(latents, Tensor):
            items: list[Any] = list(latents)
        else:
            items = [dict(zip(latents, parts, strict=True)) for parts in zip(*latents.values(), strict=True)]
        if self.transform is not None:
            items = [self.transform(item) for item in items]
        if self.labels is None:
            return items
        return list(zip(items, self.labels[np.asarray(indices, dtype=int)].tolist(), strict=True))

    def _batch(self, indices: Sequence[int]) -> Any:
        if self.transform is not None:
            return default_collate(self.__getitems__(indices))
        latents = self._latents(indices)
        if self.labels is None:
            return latents
        return latents, torch.from_numpy(self.labels[np.asarray(indices, dtype=int)].astype(np.int64))

    def _latents(self, indices: Sequence[int]) -> Latents:
        """Of several images, [n, ...]."""
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
        """Raises `UsageError` where `window` is below 1 or there is no process `rank` of `replicas`."""
        if window < 1:
            raise UsageError(f"window is {window}; it must be at least 1 row group")
        if not 0 <= rank < replicas:
            raise UsageError(f"rank is {rank} of {replicas}; it must be from 0 to {replicas - 1}")
        store = store.store if isinstance(store, LatentDataset) else store
        self._images, self._size = len(store), store.row_groups.size
        self._seed, self._window, self._epoch = seed, window, 0
        share = len(store) // replicas
        self._share = range(rank * share, rank * share + share)

    def set_epoch(self, epoch: int) -> None:
        """The next pass is that of `epoch`, from 0: same seed and epoch, same order."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._share)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self._seed, self._epoch))
        row_groups = rng.permutation(-(-self._images // self._size))
        first = 0
        for k in range(0, len(row_groups), self._window):
            images = np.concatenate([self._rows(row_group) for row_group in row_groups[k : k + self._window].tolist()])
            own = slice(max(0, self._share.start - first), max(0, self._share.stop - first))
            # A window of its own generator, so that a process need not shuffle those of others.
            if own.start < len(images) and own.stop:
                yield from np.random.default_rng((self._seed, self._epoch, k)).permutation(images)[own].tolist()
            first += len(images)

    def _rows(self, row_group: int) -> NDArray[np.int64]:
        first = row_group * self._size
        return np.arange(first, min(first + self._size, self._images))
