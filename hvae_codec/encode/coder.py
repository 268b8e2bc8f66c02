"""The closed-loop coder, both directions: images to stored numbers and back, through the model's one loop.

The prior and posterior of a group depend on the z of all groups before it. So the encoder continues from exactly the z
that the decoder will have: the stored, rounded value where kept, the prior's mean where pruned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import StoreError
from ..model.bottom_up import Activations, image_count
from ..model.checkpoint import model_hash
from ..model.hvae import HVAE
from ..model.precision import full_float32
from ..model.top_down import LatentGroup
from ..prune.kl_stats import KLStats
from ..prune.mask import LatentMask
from ..store.columns import Columns, PositionColumns, VariateColumns
from ..store.quantiser import Codec
from ..store.reader import Store, Stored
from .packing import Packing


@dataclass(frozen=True)
class GroupColumns:
    """Where the kept latents of one group stand, in the stored array and in z."""

    resolution: int  # which stored array they are in
    columns: slice  # their columns in that array
    variates: Tensor  # the variates that something is kept of, int64 [k]
    positions: tuple[Tensor, Tensor, Tensor] | None  # number among `variates`, y and x, [kept] each; None: all kept
    steps: Tensor  # quantiser steps, float32, to broadcast against stored numbers

    def take(self, z: Tensor) -> Tensor:
        """Of z [B, k, H, W] of `variates` what is stored: [B, kept, H, W] or [B, kept]."""
        if self.positions is None:
            return z
        number, y, x = self.positions
        return z[:, number, y, x]

    def put_into(self, z: Tensor, kept: Tensor) -> Tensor:
        """Replace what is stored of `z` [B, variates, H, W] by `kept`, shaped as stored; returns `z`.

        Coders give the prior's mean itself, which the group is not asked for again: copies take a twentieth of a pass.
        """
        if self.positions is None:
            return z.index_copy_(1, self.variates, kept)
        number, y, x = self.positions
        z[:, self.variates[number], y, x] = kept
        return z


class LatentCoder:
    """Encodes and decodes batches with one model, mask and codec."""

    def __init__(self, model: HVAE, mask: LatentMask, codec: Codec, steps: Mapping[int, NDArray[np.float32]]) -> None:
        """`steps`: latent resolution to quantiser steps, [columns]; see `quantiser_steps`."""
        mask.check_fits(model)
        self.model, self.mask, self.codec, self.steps = model, mask, codec, steps
        self.columns = stored_columns(mask)
        self.groups = group_columns(self.columns, steps, model.device)
        self.packing = Packing(self.columns)

    @classmethod
    def of_store(cls, store: Store, model: HVAE) -> LatentCoder:
        """The coder that made `store`; raises `StoreError` if `model` is not the one that did."""
        own = model_hash(model)
        if own != store.model_hash:
            where = f" ({model.run})" if model.run else ""
            raise StoreError(
                f"{store.path} was made with model {store.model_hash[:12]}, and this one{where} is {own[:12]}; "
                "give the run it was made with as --model; if that was trained on and kept no weights, encode again"
            )
        return cls(model, mask_of(store), store.codec, store.steps)

    def same_groups(self, other: LatentCoder) -> int:
        """Count the groups, from the first, that another coder of this model codes alike: in equal steps, too."""
        if self.codec.name != other.codec.name:
            return 0
        alike = range(self.mask.same_groups(other.mask))
        return next((group for group in alike if not self._has_steps_of(other, group)), len(alike))

    def _has_steps_of(self, other: LatentCoder, group: int) -> bool:
        """Whether two coders that keep the same of a group have the same steps there."""
        kept = self.groups.get(group)
        if kept is None:
            return True
        own, others = (coder.steps[kept.resolution][kept.columns] for coder in (self, other))
        return np.array_equal(own, others)

    @torch.no_grad()
    @full_float32()
    def encode(self, images: Tensor) -> Stored:
        """Stored numbers of uint8 `images` [B, C, H, W]."""
        return self.encode_activations(self.model.activations(images))

    @torch.no_grad()
    @full_float32()
    def encode_activations(self, activations: Activations) -> Stored:
        """The same from the images' bottom-up activations."""
        return self.packing.unpack(self.packed(activations).cpu().numpy())

    def packed(self, activations: Activations) -> Tensor:
        """Rows of stored numbers, on the device; computes nothing after the last kept group's posterior."""
        choose, top_down, last = EncodeChooser(self), self.model.top_down, self.mask.groups_needed - 1
        state = top_down.run_groups(activations, choose, image_count(activations), range(last))
        choose.store(top_down.group(activations, last, state), self.groups[last])
        return choose.packed()

    def z_of(self, group: LatentGroup, stored_of: Callable[[GroupColumns], Tensor]) -> Tensor:
        """z of `group` that the decoder has: what `stored_of` gives where kept, the prior's mean elsewhere."""
        kept = self.groups.get(group.index)
        if kept is None:
            return group.prior_mean
        z = self.codec.decode(stored_of(kept), kept.steps)
        stored_whole = kept.positions is None and len(kept.variates) == len(self.mask.keep[group.index])
        return group.in_its_layout(z) if stored_whole else kept.put_into(group.prior_mean, z)

    @torch.no_grad()
    @full_float32()
    def decode(self, stored: Mapping[int, NDArray[np.generic]]) -> Tensor:
        """Expected images of stored numbers, in the likelihood's scale ([-1, 1]), float32 [B, C, H, W]."""
        return self.model.likelihood.mean(self.output(to_tensors(stored, self.model.device)))

    @torch.no_grad()
    @full_float32()
    def output(self, numbers: Mapping[int, Tensor]) -> Tensor:
        """Parameters of the output distribution, [B, out_channels, H, W], of stored numbers on the device."""
        choose = DecodeChooser(self, numbers)
        return self.model.top_down(None, choose, choose.images)

    @torch.no_grad()
    @full_float32()
    def dense(self, stored: Mapping[int, NDArray[np.generic]]) -> list[Tensor]:
        """z of every latent group in top-down order, the prior's mean where pruned: float32 [B, variates, H, W]."""
        choose, chosen = DecodeChooser(self, to_tensors(stored, self.model.device)), []

        def record(group: LatentGroup) -> Tensor:
            chosen.append(choose(group))
            return chosen[-1]

        top_down, last = self.model.top_down, len(self.model.top_down.blocks) - 1
        record(top_down.group(None, last, top_down.run_groups(None, record, choose.images, range(last))))
        return chosen

    def decode_pixels(self, stored: Mapping[int, NDArray[np.generic]]) -> Tensor:
        """Expected images of stored numbers, uint8 [B, C, H, W]."""
        return self.model.likelihood.to_pixels(self.decode(stored))


class EncodeChooser:
    """Chooses the z that the decoder will have, and records what is to be stored."""

    def __init__(self, coder: LatentCoder) -> None:
        self.coder = coder
        self.recorded: dict[int, Tensor] = {}
        """Stored numbers of each group seen so far that something is kept of."""

    def __call__(self, group: LatentGroup) -> Tensor:
        """Choose z of `group`, [B, variates, H, W]."""
        return self.coder.z_of(group, lambda kept: self.store(group, kept))

    def store(self, group: LatentGroup, kept: GroupColumns) -> Tensor:
        """Record and return what is stored of `group`."""
        self.recorded[group.index] = self.coder.codec.encode(kept.take(group.posterior(kept.variates).mean), kept.steps)
        return self.recorded[group.index]

    def packed(self) -> Tensor:
        """Rows of all that was recorded."""
        return torch.cat([self.recorded[index].flatten(1) for index in self.coder.groups], dim=1)

    def stored(self) -> Stored:
        """Stored numbers, by resolution."""
        return self.coder.packing.unpack(self.packed().cpu().numpy())


class DecodeChooser:
    """Chooses the stored z where kept, the prior's mean elsewhere."""

    def __init__(self, coder: LatentCoder, numbers: Mapping[int, Tensor]) -> None:
        self.coder, self.numbers, self.images = coder, numbers, len(next(iter(numbers.values())))

    def __call__(self, group: LatentGroup) -> Tensor:
        """Choose z of `group`, [B, variates, H, W]."""
        return self.coder.z_of(group, lambda kept: self.numbers[kept.resolution][:, kept.columns])


def to_tensors(stored: Mapping[int, NDArray[np.generic]], device: torch.device) -> dict[int, Tensor]:
    """Stored numbers by resolution, on `device`."""
    return {r: torch.from_numpy(np.ascontiguousarray(numbers)).to(device) for r, numbers in stored.items()}


def mask_of(store: Store) -> LatentMask:
    """The mask that `store` was made with; `StoreError` if it has the latents of another one."""
    mask = LatentMask.from_dict(store.mask)
    if not stored_columns(mask).agree_with(store.columns):
        raise StoreError(f"{store.path} has damaged metadata (not the latents of its mask); encode the images again")
    return mask


def stored_columns(mask: LatentMask) -> Columns:
    """The columns that `mask` keeps: groups in top-down order, then variates, then positions row by row."""
    table: dict[int, list[NDArray[np.int64]]] = {}
    for group, (keep, resolution) in enumerate(zip(mask.keep, mask.resolutions, strict=True)):
        table.setdefault(resolution, []).append(np.insert(np.argwhere(keep), 0, group, axis=1))
    coordinates = {resolution: np.concatenate(parts).astype(np.int32) for resolution, parts in table.items()}
    return PositionColumns(coordinates) if mask.granularity == "position" else VariateColumns(coordinates)


def quantiser_steps(mask: LatentMask, codec: Codec, stats: KLStats) -> dict[int, NDArray[np.float32]]:
    """Quantiser steps, float32 [columns] per resolution, from the average posterior std of each column's variate."""
    columns = stored_columns(mask)
    places = {r: columns.coordinates[r][:, :2] for r in columns.resolutions}
    return {r: codec.steps(np.array([stats.posterior_std[g][v] for g, v in table])) for r, table in places.items()}


def group_columns(
    columns: Columns, steps: Mapping[int, NDArray[np.float32]], device: torch.device
) -> dict[int, GroupColumns]:
    """Number of the latent group to its columns; groups that nothing is kept of are left out."""
    groups = {}
    for resolution in columns.resolutions:
        places = columns.coordinates[resolution].astype(np.int64)
        for group in np.unique(places[:, 0]).tolist():
            own = slice(*np.searchsorted(places[:, 0], [group, group + 1]).tolist())
            variates, number = np.unique(places[own, 1], return_inverse=True)
            y_x = [_on(device, axis) for axis in places[own, 2:].T]
            positions = (_on(device, number), y_x[0], y_x[1]) if y_x else None
            step = _on(device, columns.spread(steps[resolution][own]))
            groups[group] = GroupColumns(resolution, own, _on(device, variates), positions, step)
    return groups


def _on(device: torch.device, array: NDArray) -> Tensor:
    return torch.from_numpy(array.copy()).to(device)
