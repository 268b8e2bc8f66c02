"""The closed-loop coder, both directions: images to stored numbers and back, through the model's one loop.

The prior and posterior of a group depend on the z of all groups before it. So the encoder goes on from exactly the z
that the decoder will have: the stored, rounded value where kept, the prior's mean where pruned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import StoreError
from ..model.checkpoint import model_hash
from ..model.hvae import HVAE
from ..model.precision import full_float32
from ..model.top_down import LatentGroup
from ..prune.kl_stats import KLStats
from ..prune.mask import LatentMask
from .latents import Codec

if TYPE_CHECKING:
    from .store import Store

Stored = dict[int, NDArray[np.generic]]
"""Latent resolution to stored numbers, [B, channels, y, x]; a resolution's channels run through its groups in order."""


@dataclass(frozen=True)
class GroupChannels:
    """Where the kept variates of one latent group stand."""

    variates: Tensor
    """Numbers of the kept variates, int64 [kept]."""
    resolution: int
    """Which stored array they are in."""
    first: int
    """Their first channel in that array."""
    steps: Tensor
    """Quantiser steps, float32 [kept, 1, 1]."""

    @property
    def channels(self) -> slice:
        """Their channels in the stored array."""
        return slice(self.first, self.first + len(self.variates))


class LatentCoder:
    """Encodes and decodes batches with one model, mask and codec."""

    def __init__(self, model: HVAE, mask: LatentMask, codec: Codec, steps: Mapping[int, NDArray[np.float32]]) -> None:
        """`steps`: latent resolution to quantiser steps, [channels]; see `quantiser_steps`."""
        mask.check_fits(model)
        self.model = model
        self.mask = mask
        self.codec = codec
        self.steps = steps
        self.groups = _group_channels(mask, steps, model.device)

    @classmethod
    def of_store(cls, store: Store, model: HVAE) -> LatentCoder:
        """The coder that made `store`; raises `StoreError` where `model` is not the one that did."""
        own = model_hash(model)
        if own != store.model_hash:
            where = f" ({model.run})" if model.run else ""
            raise StoreError(
                f"{store.path} was made with model {store.model_hash[:12]}, and this one{where} is {own[:12]}; "
                "give the run it was made with as --model"
            )
        return cls(model, LatentMask.from_dict(store.mask), store.codec, store.steps)

    @torch.no_grad()
    @full_float32()
    def encode(self, images: Tensor) -> Stored:
        """Stored numbers of uint8 `images` [B, C, H, W]; runs no group after the last one that something is kept of."""
        choose = _Encoding(self)
        activations = self.model.activations(images)
        self.model.top_down.run_groups(activations, choose, len(images), range(self.mask.groups_needed))
        return choose.stored()

    @torch.no_grad()
    @full_float32()
    def encode_and_decode(self, activations: Sequence[Tensor]) -> tuple[Stored, Tensor]:
        """Stored numbers and the encoder's own reconstruction, uint8 [B, C, H, W], from bottom-up activations."""
        choose = _Encoding(self)
        output = self.model.top_down(activations, choose, len(activations[0]))
        return choose.stored(), self._pixels(output)

    @torch.no_grad()
    @full_float32()
    def decode(self, stored: Mapping[int, NDArray[np.generic]]) -> Tensor:
        """Expected images of stored numbers, in the likelihood's scale ([-1, 1]), float32 [B, C, H, W]."""
        choose = _Decoding(self, stored)
        output = self.model.top_down(None, choose, len(next(iter(stored.values()))))
        return self.model.likelihood.mean(output)

    def decode_pixels(self, stored: Mapping[int, NDArray[np.generic]]) -> Tensor:
        """Expected images of stored numbers, uint8 [B, C, H, W]."""
        return self.model.likelihood.to_pixels(self.decode(stored))

    def _pixels(self, output: Tensor) -> Tensor:
        return self.model.likelihood.to_pixels(self.model.likelihood.mean(output))


class _Encoding:
    """Chooses the z that the decoder will have, and keeps what is to be stored."""

    def __init__(self, coder: LatentCoder) -> None:
        self.coder = coder
        self.parts: dict[int, list[Tensor]] = {}

    def __call__(self, group: LatentGroup) -> Tensor:
        place = self.coder.groups[group.index]
        if not len(place.variates):
            return group.prior.mean
        mean = group.posterior().mean[:, place.variates]
        stored = self.coder.codec.encode(mean, place.steps)
        self.parts.setdefault(place.resolution, []).append(stored)
        return _filled(group, place, self.coder.codec.decode(stored, place.steps))

    def stored(self) -> Stored:
        return {resolution: torch.cat(parts, dim=1).cpu().numpy() for resolution, parts in self.parts.items()}


class _Decoding:
    """Chooses the stored z where kept, the prior's mean elsewhere."""

    def __init__(self, coder: LatentCoder, stored: Mapping[int, NDArray[np.generic]]) -> None:
        self.coder = coder
        self.stored = {r: torch.from_numpy(np.ascontiguousarray(s)).to(coder.model.device) for r, s in stored.items()}

    def __call__(self, group: LatentGroup) -> Tensor:
        place = self.coder.groups[group.index]
        if not len(place.variates):
            return group.prior.mean
        stored = self.stored[place.resolution][:, place.channels]
        return _filled(group, place, self.coder.codec.decode(stored, place.steps))


def _filled(group: LatentGroup, place: GroupChannels, z: Tensor) -> Tensor:
    return group.prior.mean.index_copy(1, place.variates, z)


def stored_channels(mask: LatentMask) -> dict[int, tuple[tuple[int, int], ...]]:
    """Latent resolution to the (group, variate) of each stored channel, groups in top-down order."""
    table: dict[int, list[tuple[int, int]]] = {}
    for group, (keep, resolution) in enumerate(zip(mask.keep, mask.resolutions, strict=True)):
        for variate in np.flatnonzero(keep).tolist():
            table.setdefault(resolution, []).append((group, variate))
    return {resolution: tuple(channels) for resolution, channels in sorted(table.items())}


def quantiser_steps(mask: LatentMask, codec: Codec, stats: KLStats) -> dict[int, NDArray[np.float32]]:
    """Quantiser steps of the stored channels, float32 [channels] a resolution, from the average posterior std."""
    return {
        resolution: codec.steps(np.array([stats.posterior_std[group][variate] for group, variate in channels]))
        for resolution, channels in stored_channels(mask).items()
    }


def _group_channels(
    mask: LatentMask, steps: Mapping[int, NDArray[np.float32]], device: torch.device
) -> list[GroupChannels]:
    used = dict.fromkeys(mask.resolutions, 0)
    places = []
    for keep, resolution in zip(mask.keep, mask.resolutions, strict=True):
        variates = np.flatnonzero(keep)
        first = used[resolution]
        used[resolution] += len(variates)
        step = steps[resolution][first : used[resolution]] if len(variates) else np.empty(0, np.float32)
        tensor = torch.from_numpy(np.ascontiguousarray(step)).to(device)[:, None, None]
        places.append(GroupChannels(torch.from_numpy(variates).to(device), resolution, first, tensor))
    return places


def decode_rows(
    store: Store, indices: Sequence[int], model: HVAE | None = None, batch_size: int = 64
) -> NDArray[np.uint8]:
    """Images of `store` at `indices`, in that order, uint8 [n, C, H, W].

    Without `model`, the run that the store names is loaded. Raises `ModelError` where there is none, `StoreError`
    where it is another model or the store is damaged.
    """
    coder = LatentCoder.of_store(store, model or store.named_model)
    batches = [
        coder.decode_pixels(store.gather(indices[first : first + batch_size])).cpu().numpy()
        for first in range(0, len(indices), batch_size)
    ]
    config = coder.model.config
    nothing = np.empty((0, config.channels, config.image_size, config.image_size), np.uint8)
    return np.concatenate([nothing, *batches])
