from __future__ import annotations

import numpy as np
import pytest
import torch

from hvae_codec.data.sources import as_source
from hvae_codec.errors import DataError, HvaeCodecError
from hvae_codec.model.hvae import HVAE, Elbo
from hvae_codec.model.keyed_noise import keyed_noise
from hvae_codec.prune.kl_stats import KLStats, kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.prune.sweep import sweep


@pytest.fixture(scope="module")
def images(photo_patches) -> np.ndarray:
    return photo_patches[:7]


@pytest.fixture(scope="module")
def stats(tiny_model, images) -> KLStats:
    return kl_stats(tiny_model, images)


def elbo(model: HVAE, images: np.ndarray, seed: int, mask: list[torch.Tensor] | None = None) -> Elbo:
    """By the model's forward pass, with the noise that a sweep gives each image."""
    noise = keyed_noise(model.config, [(seed, image) for image in range(len(images))], "cpu")
    with torch.no_grad():
        terms = model(torch.from_numpy(images), noise, mask)
    return Elbo(terms.kl.sum(dim=0) / model.nats_per_bit_dim, terms.nll / model.nats_per_bit_dim)


def nothing(stats: KLStats) -> LatentMask:
    whole = LatentMask.from_keep(stats, 1.0)
    return LatentMask(tuple(np.zeros_like(k) for k in whole.keep), whole.resolutions)


def test_keeping_all_is_the_elbo(tiny_model, images, stats):
    (row,) = sweep(tiny_model, images, [LatentMask.from_keep(stats, 1.0)], batch_size=3, seed=5)
    expected = elbo(tiny_model, images, 5)
    for name in ("rate", "distortion", "nelbo"):
        assert getattr(row, name).shape == (7,)
        np.testing.assert_allclose(getattr(row, name), getattr(expected, name), rtol=1e-5)


def test_each_row_is_the_elbo_under_its_mask(tiny_model, images, stats):
    masks = [LatentMask.from_keep(stats, fraction) for fraction in (1.0, 0.3, 0.02)]
    for row, mask in zip(sweep(tiny_model, images, masks), masks, strict=True):
        assert row.mask is mask
        expected = elbo(tiny_model, images, 0, mask.tensors("cpu"))
        np.testing.assert_allclose(row.rate, expected.rate, rtol=1e-5)
        np.testing.assert_allclose(row.distortion, expected.distortion, rtol=1e-5)


def test_rows_are_paired(tiny_model, images, stats):
    """The same mask gives the same numbers wherever it stands: all rows see the same noise."""
    all_, some = LatentMask.from_keep(stats, 1.0), LatentMask.from_keep(stats, 0.1)
    rows = sweep(tiny_model, images, [all_, some, all_, nothing(stats), some], batch_size=4)
    alone = sweep(tiny_model, images, [some], batch_size=4)[0]
    np.testing.assert_array_equal(rows[0].nelbo, rows[2].nelbo)
    np.testing.assert_array_equal(rows[1].nelbo, rows[4].nelbo)
    np.testing.assert_array_equal(rows[1].nelbo, alone.nelbo)
    assert (rows[0].nelbo != rows[1].nelbo).any()


def test_keeping_nothing_has_rate_0(tiny_model, images, stats):
    (row,) = sweep(tiny_model, images, [nothing(stats)])
    assert (row.rate == 0).all()
    np.testing.assert_array_equal(row.nelbo, row.distortion)


def test_the_rate_falls_with_what_is_kept(tiny_model, images, stats):
    masks = [LatentMask.from_keep(stats, fraction) for fraction in (1.0, 0.5, 0.1, 0.01)]
    rates = [row.rate.mean() for row in sweep(tiny_model, images, masks)]
    assert rates[0] > rates[-1] > 0


def test_sources_seeds_and_progress(tiny_model, images, stats):
    masks = [LatentMask.from_keep(stats, 0.5)]
    seen: list[tuple[int, int]] = []
    a = sweep(tiny_model, as_source(images), masks, batch_size=3, seed=1, progress=lambda *args: seen.append(args))
    b, c = (sweep(tiny_model, torch.from_numpy(images), masks, batch_size=3, seed=seed) for seed in (1, 2))
    np.testing.assert_array_equal(a[0].nelbo, b[0].nelbo)
    assert (b[0].nelbo != c[0].nelbo).any()
    assert seen == [(3, 7), (6, 7), (7, 7)]


def test_no_masks_no_rows(tiny_model, images):
    assert sweep(tiny_model, images, []) == []


def test_images_that_do_not_fit(tiny_model, images, stats, cut_patches):
    masks = [LatentMask.from_keep(stats, 0.5)]
    with pytest.raises(DataError, match="this model takes"):
        sweep(tiny_model, cut_patches(2, 32), masks)
    with pytest.raises(DataError, match="no images"):
        sweep(tiny_model, as_source(images).subset([]), masks)


@pytest.mark.parametrize("kind", ["variates", "groups"])
def test_masks_of_another_model(tiny_model, images, stats, kind):
    whole = LatentMask.from_keep(stats, 1.0)
    keep = whole.keep[:-1] if kind == "groups" else tuple(np.ones(7, bool) for _ in whole.keep)
    other = LatentMask(keep, whole.resolutions[: len(keep)])
    with pytest.raises(HvaeCodecError, match="mask"):
        sweep(tiny_model, images, [other])
