"""Which latent dimensions are kept: masks from a keep fraction or a KL cutoff, readable as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ModelError, UsageError
from ..model.checkpoint import model_hash
from ..model.hvae import HVAE
from .kl_stats import KLStats


@dataclass(frozen=True)
class LatentMask:
    """The variates that are kept, True, in each latent group in top-down order."""

    keep: tuple[NDArray[np.bool_], ...]
    """[variates] a group."""
    resolutions: tuple[int, ...]
    """Height and width of each group."""
    model_hash: str = ""
    """The model it was made for; empty where it fits any of this shape."""

    @classmethod
    def from_keep(cls, stats: KLStats, fraction: float) -> LatentMask:
        """Keep the highest-ranked variates that together hold at most `fraction` (0 to 1) of the dimensions.

        Variates are ranked by KL in bits per latent dimension (paper section 7); ties go to the earlier one. The first
        variate that does not fit ends the list, so that every mask is also a KL cutoff and masks nest. At least one
        variate is kept. Raises `UsageError` where `fraction` is not above 0 and at most 1.
        """
        if not 0.0 < fraction <= 1.0:
            raise UsageError(f"keep is {100 * fraction:g}%; it must be above 0% and at most 100%")
        kl = np.concatenate(stats.per_variate)
        dims = np.concatenate([np.full(len(a), a[0].size) for a in stats.kl_bits])
        order = np.argsort(-kl, kind="stable")
        # The product may round just below a whole number of dimensions.
        budget = math.floor(fraction * dims.sum() + 1e-6)
        count = max(1, int(np.searchsorted(np.cumsum(dims[order]), budget, side="right")))
        keep = np.zeros(len(kl), dtype=bool)
        keep[order[:count]] = True
        return cls._split(stats, keep)

    @classmethod
    def from_cutoff(cls, stats: KLStats, bits: float) -> LatentMask:
        """Keep the variates whose average KL is above `bits` per latent dimension.

        Raises `UsageError` where none is, or where `bits` is not a number.
        """
        kl = np.concatenate(stats.per_variate)
        if not (kl > bits).any():
            raise UsageError(f"no variate has more than {bits:g} bits per latent dimension; the most is {kl.max():g}")
        return cls._split(stats, kl > bits)

    @classmethod
    def _split(cls, stats: KLStats, keep: NDArray[np.bool_]) -> LatentMask:
        ends = np.cumsum([len(a) for a in stats.kl_bits])[:-1]
        resolutions = tuple(a.shape[-1] for a in stats.kl_bits)
        return cls(tuple(np.split(keep, ends)), resolutions, stats.model_hash)

    @property
    def dims(self) -> int:
        """Latent dimensions in all."""
        return sum(len(k) * r**2 for k, r in zip(self.keep, self.resolutions, strict=True))

    @property
    def kept_dims(self) -> int:
        """Latent dimensions that are kept."""
        return sum(int(k.sum()) * r**2 for k, r in zip(self.keep, self.resolutions, strict=True))

    @property
    def kept_variates(self) -> int:
        """Variates that are kept."""
        return sum(int(k.sum()) for k in self.keep)

    @property
    def groups_needed(self) -> int:
        """Groups up to and with the last one that something is kept of: all that an encoder must run."""
        return max((i + 1 for i, k in enumerate(self.keep) if k.any()), default=0)

    def check_fits(self, model: HVAE) -> None:
        """Raise `UsageError` where this mask is of another model."""
        shape = [(len(keep), resolution) for keep, resolution in zip(self.keep, self.resolutions, strict=True)]
        groups = [(group.variates, group.resolution) for group in model.config.groups]
        if shape != groups or (self.model_hash and self.model_hash != model_hash(model)):
            raise UsageError("the mask was made for another model; make one from this model's KL statistics")

    def tensors(self, device: torch.device | str) -> list[Tensor]:
        """Per group bool [variates, 1, 1] on `device`, to broadcast against z."""
        return [torch.from_numpy(k.copy()).to(device)[:, None, None] for k in self.keep]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the kept variates' numbers in each group."""
        groups = [
            {"resolution": r, "variates": len(k), "keep": np.flatnonzero(k).tolist()}
            for k, r in zip(self.keep, self.resolutions, strict=True)
        ]
        return {"granularity": "variate", "model_hash": self.model_hash, "groups": groups}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LatentMask:
        """The inverse of `to_dict`; `ModelError` where `data` is no mask."""
        try:
            groups = data["groups"]
            keep = tuple(_flags(group["variates"], group["keep"]) for group in groups)
            return cls(keep, tuple(int(group["resolution"]) for group in groups), str(data["model_hash"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the mask is damaged ({error}); make it again with hvae-codec analyze-kl") from None


def _flags(variates: int, keep: Sequence[int]) -> NDArray[np.bool_]:
    known = set(range(variates))
    if not known.issuperset(keep):
        raise ValueError(f"kept variates {keep} of {variates}")
    return np.array([variate in set(keep) for variate in range(variates)], dtype=bool)


def parse_keep(text: str) -> float:
    """A keep fraction from `3%` or `0.03`.

    >>> parse_keep("3%"), parse_keep("0.5")
    (0.03, 0.5)

    Raises `UsageError` where `text` is no number, or not above 0% and at most 100%.
    """
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        fraction = float(number) / (100.0 if percent else 1.0)
    except ValueError:
        raise UsageError(f"keep is {text!r}; give a share of the latent dimensions such as 3% or 0.03") from None
    if not 0.0 < fraction <= 1.0:
        raise UsageError(f"keep is {text}; it must be above 0% and at most 100%")
    return fraction
