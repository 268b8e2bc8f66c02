"""The ranking that masks are cut from: what the first so many latent dimensions hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..prune.kl_stats import KLStats
from ..prune.mask import Granularity


@dataclass(frozen=True)
class RankingCurve:
    """Variates (or single latent dimensions) from the highest average KL to the lowest; one entry each."""

    kl_bits: NDArray[np.float64]
    """Average KL, bits per latent dimension."""
    ends: NDArray[np.int64]
    """Latent dimensions up to and with this entry."""
    group: NDArray[np.int64]
    """Latent group, in top-down order from 0."""
    groups: int
    """Latent groups in all."""

    @classmethod
    def of(cls, stats: KLStats, granularity: Granularity = "variate") -> RankingCurve:
        """The order in which `LatentMask.from_keep` takes them: ties go to the earlier one."""
        units = [kl.ravel() for kl in stats.kl_bits] if granularity == "position" else list(stats.per_variate)
        each = [1 if granularity == "position" else kl[0].size for kl in stats.kl_bits]
        lengths = [len(unit) for unit in units]
        kl, dims = np.concatenate(units), np.repeat(each, lengths)
        order = np.argsort(-kl, kind="stable")
        group = np.repeat(np.arange(len(units)), lengths)
        return cls(kl[order], np.cumsum(dims[order]), group[order], len(units))

    @property
    def dims(self) -> int:
        """Latent dimensions in all."""
        return int(self.ends[-1])

    def cutoff(self, kept_dims: int) -> float:
        """KL of the last entry within the first `kept_dims` dimensions, bits per latent dimension."""
        return float(self.kl_bits[max(self._entries(kept_dims), 1) - 1])

    def group_bits(self, kept_dims: int) -> NDArray[np.float64]:
        """KL that the first `kept_dims` dimensions hold in each latent group, bits an image, [groups]."""
        count = self._entries(kept_dims)
        bits = self.kl_bits * np.diff(self.ends, prepend=0)
        return np.asarray(np.bincount(self.group[:count], bits[:count], self.groups), dtype=np.float64)

    def share(self, kept_dims: int) -> float:
        """Share of all KL that the first `kept_dims` dimensions hold, 0 to 1; 0 where there is no KL."""
        total = self.group_bits(self.dims).sum()
        return float(self.group_bits(kept_dims).sum() / total) if total > 0 else 0.0

    def points(self, at_most: int = 600) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Rank in dimensions (from 1) and KL of a polyline: both ends of each entry, thinned evenly in log rank."""
        both_ends = np.stack([np.append(1, self.ends[:-1] + 1), self.ends], axis=1).ravel()
        ranks, places = np.unique(both_ends, return_index=True)  # an entry of one dimension has but one end
        if len(ranks) > at_most:
            wanted = np.searchsorted(ranks, np.geomspace(1, self.dims, at_most - 1))
            thinned = np.unique(np.append(wanted, len(ranks) - 1).clip(max=len(ranks) - 1))
            ranks, places = ranks[thinned], places[thinned]
        return ranks, self.kl_bits[places // 2]

    def _entries(self, kept_dims: int) -> int:
        return int(np.searchsorted(self.ends, kept_dims, side="right"))
