"""A store with the model that made it: what `open_store` gives users, who decode as they read.

    Store (reads)  <── EncodedStore ── decode(indices) ──> uint8 [n, C, H, W]
                                    ├─ decode_latents(z) ─> uint8 [n, C, H, W]
                                    ├─ dense(i) ────────> z of every latent group
                                    ├─ load_decoder() ──> Decoder, if the store carries it alone, or HVAE
                                    └─ load_model() ────> HVAE

Torch is imported when something is decoded: reading takes none of it.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError, UsageError
from ..lookahead import map_ahead
from ..storage.cache import CACHE_BYTES
from ..storage.location import Location, LocationLike
from ..store.reader import Store, Stored
from .given_latents import GivenLatents, stored_numbers

if TYPE_CHECKING:
    import torch
    import xarray

    from ..model.decoder import Decoder
    from ..model.hvae import HVAE
    from .batch_coder import BatchDecoder
    from .coder import LatentCoder
    from .latent_decoder import LatentDecoder

_BATCH_SIZE = 64  # images whose dense latents are computed at once


def open_store(path: LocationLike, *, cache_bytes: int = CACHE_BYTES) -> EncodedStore:
    """Open a finished store for reading and decoding; see `Store.open`."""
    return EncodedStore.open(path, cache_bytes=cache_bytes)


class EncodedStore(Store):
    """A finished store, open for reading and decoding."""

    def decode(self, indices: Sequence[int], model: HVAE | Decoder | None = None) -> NDArray[np.uint8]:
        """Images at `indices`, in that order, uint8 [n, C, H, W], decoded by `model` or what `load_decoder` loads.

        Raises `ModelError` or `StoreError` if there is no such run, it is another model or the store is damaged;
        `UsageError` if torch is not installed.
        """
        image = self.metadata.image
        nothing = np.empty((0, image.channels, image.size, image.size), np.uint8)
        return np.concatenate([nothing, *self.decode_batches(indices, model)])

    def decode_batches(
        self, indices: Sequence[int], model: HVAE | Decoder | None, size: int | None = None
    ) -> Generator[NDArray[np.uint8]]:
        """What `decode` gives, in batches of `size` images, or as many as suit the device; raises what it does.

        On a GPU, batches are filled up to `size`, if it is given. Latents are read ahead.
        """
        coder = self.decoder(model)
        with _installed("decoding"):
            from ..model.batch_size import default_batch_size
            from .batch_coder import BatchDecoder
        size = size or min(default_batch_size(coder.model), max(len(indices), 1))
        return self._decoded(indices, BatchDecoder(coder, size))

    def _decoded(self, indices: Sequence[int], decoder: BatchDecoder) -> Generator[NDArray[np.uint8]]:
        parts = (indices[first : first + decoder.size] for first in range(0, len(indices), decoder.size))
        with closing(map_ahead(self.gather, parts, threads=1, waiting=2, name="read latents")) as read:
            yield from decoder.fetched(map(decoder.start, read))

    def decode_latents(self, latents: GivenLatents, model: HVAE | Decoder | None = None) -> NDArray[np.uint8]:
        """Images of other latents than the store's own, such as a generative model's: uint8 [n, C, H, W].

        `latents` are floats by array name, as `latents` of a slice gives them, or one array [n, kept_dims], as batches
        of `LatentDataset(flat=True)` are. They are rounded as the store's are, and decoded as `decode` does. Raises
        `UsageError` if arrays are missing, of another shape or not finite; and what `decode` raises.
        """
        numbers = stored_numbers(self, latents)
        coder = self.decoder(model)
        with _installed("decoding"):
            from ..model.batch_size import default_batch_size
            from .batch_coder import BatchDecoder
        images = len(next(iter(numbers.values())))
        if not images:
            return self.decode([])
        return BatchDecoder(coder, min(default_batch_size(coder.model), images)).decode_checked(numbers)

    def dense(self, index: int | slice, model: HVAE | None = None) -> list[NDArray[np.float32]]:
        """z of every latent group in top-down order, pruned ones filled with the prior's mean, float32.

        [variates, H, W] each for one image, [images, variates, H, W] for a slice. The prior's mean depends on the z of
        the groups before it, so this takes a whole model's top-down pass: `model`, or what `load_model` loads. Raises
        as `stored` and `decode` do.
        """
        coder, rows = self.coder(model), self.rows(index)
        batches = [[z.cpu().contiguous().numpy() for z in coder.dense(stored)] for stored in self._batches(rows)]
        shapes = zip((len(keep) for keep in coder.mask.keep), coder.mask.resolutions, strict=True)
        nothing = [np.empty((0, variates, size, size), np.float32) for variates, size in shapes]
        groups = [np.concatenate(parts) for parts in zip(nothing, *batches, strict=True)]
        return groups if isinstance(index, slice) else [z[0] for z in groups]

    def _batches(self, indices: Sequence[int]) -> Iterator[Stored]:
        return (self.gather(indices[i : i + _BATCH_SIZE]) for i in range(0, len(indices), _BATCH_SIZE))

    def decoder(self, model: HVAE | Decoder | None = None) -> LatentCoder | LatentDecoder:
        """What decodes the store, with `model` or what `load_decoder` loads."""
        if model is None and self.metadata.model.embedded == "decoder":
            return self._own_decoder
        with _installed("decoding"):
            from ..model.decoder import Decoder
            from .latent_decoder import LatentDecoder
        return LatentDecoder.of_store(self, model) if isinstance(model, Decoder) else self.coder(model)

    @functools.cached_property
    def _own_decoder(self) -> LatentCoder | LatentDecoder:
        return self.decoder(self.load_decoder())

    def coder(self, model: HVAE | None = None) -> LatentCoder:
        """The coder that made the store, with `model` or what `load_model` loads; the last one is made once."""
        with _installed("decoding"):
            from ..model.checkpoint import model_hash
            from .coder import LatentCoder
        model, last = model or self.named_model, self._last_coder
        if not last or last[0].model is not model or model_hash(model) != self.model_hash:
            last[:] = [LatentCoder.of_store(self, model)]
        return last[0]

    @functools.cached_property
    def _last_coder(self) -> list[LatentCoder]:
        return []

    @functools.cached_property
    def named_model(self) -> HVAE:
        """`load_model` on the CPU, loaded on first use."""
        return self.load_model()

    def load_decoder(self, device: str | torch.device = "cpu", run: Path | None = None) -> HVAE | Decoder:
        """The decoder that the store carries alone or, if it carries none or a `run` is given, what `load_model` loads.

        Raises what that does.
        """
        with _installed("decoding"):
            from .embedded_model import load_embedded_decoder
        embedded = None if run else load_embedded_decoder(self, device)
        return embedded or self.load_model(device, run)

    def load_model(self, device: str | torch.device = "cpu", run: Path | None = None) -> HVAE:
        """The model of `run` or, if none is given, the whole one that the store carries, else that of the run it names.

        Of a run that was trained on since, it is the model of the weights that were kept for the store. Raises
        `StoreError` if there is no such run, or if the model in the store is damaged; `ModelError` if the run is.
        """
        with _installed("decoding"):
            from ..model.checkpoint import load_model
            from .embedded_model import load_embedded
        embedded = None if run else load_embedded(self, device)
        return embedded or load_model(run or self._find_run(), device, kept=self.model_hash)

    def _find_run(self) -> Path:
        try:
            return find_run(self.path, self.run)
        except StoreError as error:
            if self.metadata.model.embedded != "decoder":
                raise
            raise StoreError(f"this takes the whole model, {self.path} carries its decoder alone: {error}") from None

    def to_xarray(self) -> xarray.DataTree:
        """Names, labels and figures of the images, and below them a node for each latent resolution.

        Node `z16` has z, float32 [image, channel, y, x] with the latent group and variate of each channel, or of
        granularity position [image, dimension] with y and x as well. z is read when it is asked for. Raises
        `UsageError` if xarray is not installed.
        """
        with _installed("to_xarray"):
            from .xarray_view import data_tree
        return data_tree(self)


def find_run(path: Location, run: str) -> Path:
    """The `run` that the store at `path` names, seen from here or from the store's folder; `StoreError` if none."""
    for place in (Path(run), *([path.folder.parent / run] if path.folder else [])):
        if place.exists():
            return place
    raise StoreError(f"{path} was made with the run {run}, which is not here; give it as --model")


@contextmanager
def _installed(purpose: str) -> Iterator[None]:
    """Turn the error of an import of a package that is not installed into `UsageError`."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(f"{purpose} needs {error.name}, which is not installed; pip install {error.name}") from None
