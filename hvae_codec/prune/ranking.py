"""The ranking that masks are cut from: units kept or pruned whole, from the highest average KL to the lowest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .kl_stats import KLStats

Granularity = Literal["variate", "position"]
"""The unit that is kept or pruned whole: a variate at all its positions, or each latent dimension by itself."""


@dataclass(frozen=True)
class Ranking:
    """Units in the order of the statistics: groups, then variates, then positions row by row."""

    kl_bits: NDArray[np.float64]
    """Average KL of each unit, bits per latent dimension (paper, section 7)."""
    dims: NDArray[np.int64]
    """Latent dimensions of each unit."""

    @classmethod
    def of(cls, stats: KLStats, granularity: Granularity) -> Ranking:
        """Collect the units of a granularity."""
        if granularity == "position":
            kl = np.concatenate([kl.ravel() for kl in stats.kl_bits])
            return cls(kl, np.ones(len(kl), dtype=np.int64))
        dims = [np.full(len(kl), kl[0].size, dtype=np.int64) for kl in stats.kl_bits]
        return cls(np.concatenate(stats.per_variate), np.concatenate(dims))

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Numbers of the units from the highest KL to the lowest; ties go to the earlier one."""
        return np.argsort(-self.kl_bits, kind="stable")

    @cached_property
    def cumulative_dims(self) -> NDArray[np.int64]:
        """Latent dimensions of the first unit of `order`, the first two, and so on."""
        return np.cumsum(self.dims[self.order])

    def highest(self, count: int) -> NDArray[np.bool_]:
        """Mark the `count` first units of `order`, in the order of the statistics."""
        keep = np.zeros(len(self.order), dtype=bool)
        keep[self.order[:count]] = True
        return keep
