"""The smallest keep that is tolerable, and how sure that is."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from hvae_codec.data.sources import as_source
from hvae_codec.errors import DataError, UsageError
from hvae_codec.prune.kl_stats import KLStats, kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.prune.sweep import SweepRow, sweep
from hvae_codec.prune.tolerance import Tolerated, find_tolerated
from hvae_codec.report.cutoff_sentences import tolerance_sentence


@pytest.fixture(scope="module")
def images(photo_patches) -> np.ndarray:
    return photo_patches[:12]


@pytest.fixture(scope="module")
def stats(tiny_model, images) -> KLStats:
    return kl_stats(tiny_model, images)


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["variate", "position"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_found_keep_is_tolerable_and_one_less_is_not(tiny_model, images, stats, granularity, share):
    """Tolerances between what the least and what all lose, so that something in between is found."""
    least = LatentMask.from_rank(stats, 1, granularity=granularity)
    dense = LatentMask.everything(stats)
    worst, best = (row.nelbo.mean() for row in sweep(tiny_model, images, [least, dense], batch_size=5))
    tolerance = share * (worst - best) / best
    found = find_tolerated(tiny_model, images, stats, tolerance, granularity=granularity, batch_size=5)
    kept = sum(int(k.sum()) for k in found.mask.keep)
    below = LatentMask.from_rank(stats, kept - 1, granularity=granularity) if kept > 1 else None
    rows = sweep(tiny_model, images, [m for m in (found.mask, below, dense) if m is not None], batch_size=5)
    assert rows[0].nelbo.mean() <= (1 + tolerance) * rows[-1].nelbo.mean()
    assert below is None or rows[1].nelbo.mean() > (1 + tolerance) * rows[-1].nelbo.mean()
    assert found.loss <= tolerance
    assert (found.change, found.change_se) == pytest.approx(rows[0].change_from(rows[-1]))
    assert found.nelbo == pytest.approx(rows[-1].nelbo.mean())
    assert 0.5 <= found.confidence <= 1.0
    assert found.images == 12


def test_a_loss_that_all_can_bear_keeps_one_variate(tiny_model, images, stats):
    found = find_tolerated(tiny_model, images, stats, 0.999999)
    assert found.mask.kept_variates == 1


def test_nothing_less_is_tolerable(tiny_model, images, stats):
    """A ranking upside down: without the variate that holds most, everything costs something."""
    upside_down = dataclasses.replace(stats, kl_bits=tuple(-kl for kl in stats.kl_bits))
    found = find_tolerated(tiny_model, images, upside_down, 0.0)
    assert found.mask.kept_dims == found.mask.dims
    assert (found.change, found.loss, found.confidence) == (0.0, 0.0, 1.0)
    sentence = tolerance_sentence(found)
    for part in ("No smaller mask", "at most 0% ", "12 images", "kept all"):
        assert part in sentence


def test_one_image_gives_no_confidence(tiny_model, images, stats):
    found = find_tolerated(tiny_model, images[:1], stats, 0.9)
    assert math.isnan(found.confidence)
    assert "one image gives no confidence" in tolerance_sentence(found)


def test_it_is_said_how_sure_it_is(stats):
    text = tolerance_sentence(Tolerated(LatentMask.from_keep(stats, 0.5), 0.005, 2.0, 0.008, 0.001, 0.977, 800, True))
    for part in ("+0.400% ± 0.050%", "below 0.5%", "98% confidence", "800 held-out images"):
        assert part in text
    sure = Tolerated(LatentMask.from_keep(stats, 0.5), 0.005, 2.0, 0.008, 0.0001, 1.0, 800)
    assert "with more than 99% confidence" in tolerance_sentence(sure)
    assert "800 training images" in tolerance_sentence(dataclasses.replace(sure, held_out=False))


def test_a_gain_at_mild_cutoffs_is_found(tiny_model, images, stats, monkeypatch):
    """Pruning a little improves this bound, and pruning very little harms it: bisection alone would keep all."""
    units = sum(len(kl) for kl in stats.kl_bits)

    def gain(model, source, masks, **options) -> list[SweepRow]:
        rates = [np.linspace(2.9, 3.1, 12) + change(mask.kept_variates) for mask in masks]
        return [SweepRow(mask, rate, np.zeros(12)) for mask, rate in zip(masks, rates, strict=True)]

    def change(kept: int) -> float:
        if kept == units:
            return 0.0
        return 0.5 if kept < 6 else -0.003 if kept < 12 else 0.001

    monkeypatch.setattr("hvae_codec.prune.tolerance.sweep", gain)
    found = find_tolerated(tiny_model, images, stats, 0.0)
    assert found.mask.kept_variates == 6
    assert found.change == pytest.approx(-0.003)


def test_progress_ends_where_all_is_done(tiny_model, images, stats):
    seen: list[tuple[int, int]] = []
    find_tolerated(tiny_model, images, stats, 0.05, batch_size=5, progress=lambda *args: seen.append(args))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1] == max(total for _, total in seen)


@pytest.mark.parametrize("tolerance", [-0.01, math.nan])
def test_tolerances_that_cannot_be(tiny_model, images, stats, tolerance):
    with pytest.raises(UsageError, match="at least 0%"):
        find_tolerated(tiny_model, images, stats, tolerance)


def test_no_images(tiny_model, images, stats):
    with pytest.raises(DataError, match="no images to measure"):
        find_tolerated(tiny_model, as_source(images).subset([]), stats, 0.01)
