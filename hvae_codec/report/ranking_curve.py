"""The ranking that masks are cut from: latent dimensions from the highest average KL to the lowest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..prune.kl_stats import KLStats
from ..prune.ranking import Granularity, Ranking


@dataclass(frozen=True)
class RankingCurve:
    """Variates (or single latent dimensions), highest average KL first; one entry each."""

    kl_bits: NDArray[np.float64]
    """Average KL, bits per latent dimension."""
    ends: NDArray[np.int64]
    """Latent dimensions up to and with this entry."""

    @classmethod
    def of(cls, stats: KLStats, granularity: Granularity = "variate") -> RankingCurve:
        """Sort `stats` as `LatentMask.from_keep` does: ties go to the earlier one."""
        ranking = Ranking.of(stats, granularity)
        return cls(ranking.kl_bits[ranking.order], ranking.cumulative_dims)

    @property
    def dims(self) -> int:
        """Latent dimensions in all."""
        return int(self.ends[-1])

    def shares(self, ranks: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the share of all KL that the dimensions up to each rank (from 1) hold, 0 to 1; 0 if there is no KL."""
        bits = np.cumsum(self.kl_bits * np.diff(self.ends, prepend=0))
        up_to = np.interp(ranks, np.append(0, self.ends), np.append(0.0, bits))
        return up_to / bits[-1] if bits[-1] > 0 else np.zeros(len(ranks))

    def points(self, at_most: int = 600) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return rank in dimensions (from 1) and KL of a curve: both ends of each entry, thinned evenly in log rank."""
        both_ends = np.stack([np.append(1, self.ends[:-1] + 1), self.ends], axis=1).ravel()
        ranks, ends = np.unique(both_ends, return_index=True)  # an entry of one dimension has but one end
        if len(ranks) > at_most:
            wanted = np.searchsorted(ranks, np.geomspace(1, self.dims, at_most - 1))
            thinned = np.unique(np.append(wanted, len(ranks) - 1).clip(max=len(ranks) - 1))
            ranks, ends = ranks[thinned], ends[thinned]
        return ranks, self.kl_bits[ends // 2]
