"""The ranking as a curve: what its first dimensions hold is what a mask of as many keeps."""

from __future__ import annotations

import numpy as np
import pytest

from hvae_codec.prune.kl_stats import KLStats, kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.report.groups import kept_group_bits
from hvae_codec.report.ranking_curve import RankingCurve


@pytest.fixture(scope="module")
def stats(tiny_model, photo_patches):
    return kl_stats(tiny_model, photo_patches)


@pytest.mark.parametrize("granularity", ["variate", "position"])
@pytest.mark.parametrize("keep", [1e-9, 0.03, 0.2, 0.7, 1.0])
def test_masks_are_its_beginnings(stats, granularity, keep):
    curve = RankingCurve.of(stats, granularity)
    mask = LatentMask.from_keep(stats, keep, granularity=granularity)
    share = kept_group_bits(stats, mask).sum() / stats.per_group.sum()
    assert curve.shares(np.array([mask.kept_dims])) == pytest.approx([share])
    assert mask.kept_dims in curve.ends
    assert curve.dims == mask.dims
    units = stats.kl_bits if granularity == "position" else stats.per_variate
    lowest = min(unit[flags].min() for flags, unit in zip(mask.keep, units, strict=True) if flags.any())
    assert curve.kl_bits[curve.ends == mask.kept_dims] == lowest


def test_points_are_steps():
    """A variate of 4 dimensions at 2 bits, then two of one dimension."""
    kl = (np.array([1.0, 0.5]).reshape(2, 1, 1), np.full((1, 2, 2), 2.0))
    curve = RankingCurve.of(KLStats(kl, (np.ones(2), np.ones(1)), 1, ""))
    ranks, bits = curve.points()
    assert ranks.tolist() == [1, 4, 5, 6]
    assert bits.tolist() == [2.0, 2.0, 1.0, 0.5]
    shares = curve.shares(np.array([1, 4, 5, 6]))
    assert shares.tolist() == pytest.approx([2 / 9.5, 8 / 9.5, 9 / 9.5, 1.0])


def test_a_long_ranking_is_thinned_to_its_ends():
    kl = (np.exp(-np.linspace(0, 9, 16 * 64 * 64)).reshape(16, 64, 64),)
    curve = RankingCurve.of(KLStats(kl, (np.ones(16),), 1, ""), "position")
    ranks, bits = curve.points(at_most=200)
    assert len(ranks) <= 200
    assert (ranks[0], ranks[-1]) == (1, curve.dims)
    assert (np.diff(ranks) > 0).all()
    assert (bits == curve.kl_bits[ranks - 1]).all()


def test_no_kl_at_all():
    curve = RankingCurve.of(KLStats((np.zeros((2, 2, 2)),), (np.ones(2),), 1, ""))
    assert curve.shares(np.array([1, 8])).tolist() == [0.0, 0.0]
