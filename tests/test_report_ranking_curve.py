"""The ranking as a curve: what its first dimensions hold is what a mask of as many keeps."""

from __future__ import annotations

import numpy as np
import pytest

from hvae_codec.prune.kl_stats import KLStats, Ranking, kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.report.groups import kept_group_bits
from hvae_codec.report.page_figures import kl_shares, ranking_points


@pytest.fixture(scope="module")
def stats(tiny_model, photo_patches):
    return kl_stats(tiny_model, photo_patches)


@pytest.mark.parametrize("granularity", ["variate", "position"])
@pytest.mark.parametrize("keep", [1e-9, 0.03, 0.2, 0.7, 1.0])
def test_masks_are_its_beginnings(stats, granularity, keep):
    ranking = Ranking.of(stats, granularity)
    mask = LatentMask.from_keep(stats, keep, granularity=granularity)
    share = kept_group_bits(stats, mask).sum() / stats.per_group.sum()
    assert kl_shares(ranking, np.array([mask.kept_dims])) == pytest.approx([share])
    assert mask.kept_dims in ranking.cumulative_dims
    units = stats.kl_bits if granularity == "position" else stats.per_variate
    lowest = min(unit[flags].min() for flags, unit in zip(mask.keep, units, strict=True) if flags.any())
    assert ranking.kl_bits[ranking.order][ranking.cumulative_dims == mask.kept_dims] == lowest


def test_points_are_steps():
    """A variate of 4 dimensions at 2 bits, then two of one dimension."""
    kl = (np.array([1.0, 0.5]).reshape(2, 1, 1), np.full((1, 2, 2), 2.0))
    ranking = Ranking.of(KLStats(kl, (np.ones(2), np.ones(1)), 1, ""), "variate")
    ranks, bits = ranking_points(ranking)
    assert ranks.tolist() == [1, 4, 5, 6]
    assert bits.tolist() == [2.0, 2.0, 1.0, 0.5]
    shares = kl_shares(ranking, np.array([1, 4, 5, 6]))
    assert shares.tolist() == pytest.approx([2 / 9.5, 8 / 9.5, 9 / 9.5, 1.0])


def test_a_long_ranking_is_thinned_to_its_ends():
    kl = (np.exp(-np.linspace(0, 9, 16 * 64 * 64)).reshape(16, 64, 64),)
    ranking = Ranking.of(KLStats(kl, (np.ones(16),), 1, ""), "position")
    ranks, bits = ranking_points(ranking, at_most=200)
    assert len(ranks) <= 200
    assert (ranks[0], ranks[-1]) == (1, kl[0].size)
    assert (np.diff(ranks) > 0).all()
    assert (bits == kl[0].ravel()[ranks - 1]).all()


def test_no_kl_at_all():
    ranking = Ranking.of(KLStats((np.zeros((2, 2, 2)),), (np.ones(2),), 1, ""), "variate")
    assert kl_shares(ranking, np.array([1, 8])).tolist() == [0.0, 0.0]
