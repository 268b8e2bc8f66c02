"""A store with the model that made it: what `open_store` gives users, who decode as they read.

    Store (reads)  <── EncodedStore ── decode(indices) ──> uint8 [n, C, H, W]
                                    ├─ dense(i) ────────> z of every latent group
                                    └─ load_model() ────> HVAE

Torch is imported when something is decoded: reading takes none of it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError, UsageError
from ..storage.cache import CACHE_BYTES
from ..storage.location import Location, LocationLike
from ..store.reader import Store, Stored

if TYPE_CHECKING:
    import torch
    import xarray

    from ..model.hvae import HVAE
    from .coder import LatentCoder

_BATCH_SIZE = 64
"""Images through the model at once."""


def open_store(path: LocationLike, *, cache_bytes: int = CACHE_BYTES) -> EncodedStore:
    """Open a finished store for reading and decoding; see `Store.open`."""
    return EncodedStore.open(path, cache_bytes=cache_bytes)


class EncodedStore(Store):
    """A finished store, open for reading and decoding."""

    def decode(self, indices: Sequence[int], model: HVAE | None = None) -> NDArray[np.uint8]:
        """Images at `indices`, in that order, uint8 [n, C, H, W], decoded by `model` or the one the store names.

        Raises `ModelError` or `StoreError` if there is no such run, it is another model or the store is damaged;
        `UsageError` if torch is not installed.
        """
        coder = self.coder(model)
        batches = [coder.decode_pixels(stored).cpu().numpy() for stored in self._batches(indices)]
        config = coder.model.config
        nothing = np.empty((0, config.channels, config.image_size, config.image_size), np.uint8)
        return np.concatenate([nothing, *batches])

    def dense(self, index: int | slice, model: HVAE | None = None) -> list[NDArray[np.float32]]:
        """z of every latent group in top-down order, pruned ones filled with the prior's mean, float32.

        [variates, H, W] each for one image, [images, variates, H, W] for a slice. The prior's mean depends on the z of
        the groups before it, so this takes a model's top-down pass: `model`, or the one the store names. Raises as
        `stored` and `decode` do.
        """
        coder, rows = self.coder(model), self.rows(index)
        batches = [[z.cpu().contiguous().numpy() for z in coder.dense(stored)] for stored in self._batches(rows)]
        shapes = zip((len(keep) for keep in coder.mask.keep), coder.mask.resolutions, strict=True)
        nothing = [np.empty((0, variates, size, size), np.float32) for variates, size in shapes]
        groups = [np.concatenate(parts) for parts in zip(nothing, *batches, strict=True)]
        return groups if isinstance(index, slice) else [z[0] for z in groups]

    def _batches(self, indices: Sequence[int]) -> Iterator[Stored]:
        for first in range(0, len(indices), _BATCH_SIZE):
            yield self.gather(indices[first : first + _BATCH_SIZE])

    def coder(self, model: HVAE | None = None) -> LatentCoder:
        """The coder that made the store, with `model` or the one the store names; made once a model."""
        coders = _torch_part("coder")  # without torch that is the error, before a run is looked for
        model = model or self.named_model
        known: LatentCoder | None = self._coders.get("last")
        if known is None or known.model is not model or not known.is_of(self):
            known = self._coders["last"] = coders.LatentCoder.of_store(self, model)
        return known

    @functools.cached_property
    def _coders(self) -> dict[str, Any]:
        return {}

    @functools.cached_property
    def named_model(self) -> HVAE:
        """`load_model` on the CPU, loaded on first use."""
        return self.load_model()

    def load_model(self, device: str | torch.device = "cpu") -> HVAE:
        """The model that the store carries or, if it carries none, that of the run it names.

        Raises `StoreError` if there is no such run, or if the model in the store is damaged.
        """
        embedded: HVAE | None = _torch_part("embedded_model").load_embedded(self, device)
        return embedded or _load_run(self.find_run(), device)

    def find_run(self) -> Path:
        """The run that the store names, seen from here or from the store's folder; `StoreError` if it is gone."""
        return find_run(self.path, self.run)

    def to_xarray(self) -> xarray.DataTree:
        """Names, labels and figures of the images, and below them a node for each latent resolution.

        Node `z16` has z, float32 [image, channel, y, x] with the latent group and variate of each channel, or of
        granularity position [image, dimension] with y and x as well. z is read when it is asked for. Raises
        `UsageError` if xarray is not installed.
        """
        try:
            from ..store.xarray_view import data_tree
        except ImportError:
            raise UsageError("to_xarray needs xarray, which is not installed; pip install xarray") from None
        return data_tree(self)


def find_run(path: Location, run: str) -> Path:
    """The `run` that the store at `path` names; see `EncodedStore.find_run`."""
    beside = [path.folder.parent / run] if path.folder else []
    for place in (Path(run), *beside):
        if place.exists():
            return place
    raise StoreError(f"{path} was made with the run {run}, which is not here; give it as --model")


def _load_run(run: Path, device: str | torch.device) -> HVAE:
    from ..model.checkpoint import load_model

    return load_model(run, device)


def _torch_part(name: str) -> Any:
    """A module that computes; `UsageError` if torch is not installed."""
    import importlib

    try:
        return importlib.import_module(f"..{name}", __name__)
    except ModuleNotFoundError as error:
        raise UsageError(f"decoding needs {error.name}, which is not installed; pip install {error.name}") from None
