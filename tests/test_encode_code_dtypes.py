"""Which latent arrays have codes of one byte, from what a ranking has seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hvae_codec.encode.code_dtypes import code_dtypes, largest_codes
from hvae_codec.encode.coder import LatentCoder, quantiser_steps
from hvae_codec.prune.kl_stats import KLStats, kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.store.quantiser import FloatCodec, IntCodec


def stats_of(*groups: tuple[int, float, float]) -> KLStats:
    """Of groups of one kept variate and one that is not, by their resolution, posterior std and largest mean."""
    kl = tuple(np.stack([np.ones((r, r)), np.zeros((r, r))]) for r, _, _ in groups)
    std = tuple(np.array([std, 1e-3]) for _, std, _ in groups)
    return KLStats(kl, std, 10, "hash", largest_mean=tuple(np.array([mean, 1e6]) for _, _, mean in groups))


@pytest.mark.parametrize("granularity", ["variate", "position"])
def test_an_array_is_of_bytes_if_twice_its_largest_code_fits(granularity):
    """63.5 steps are half of 127; the other variate's means, which are larger, are not kept."""
    stats = stats_of((4, 0.5, 31.75), (8, 0.5, 31.8), (8, 0.25, 1.0), (16, 2.0, 100.0))
    mask = LatentMask.from_keep(stats, 0.5, granularity=granularity)
    assert code_dtypes(mask, IntCodec(), stats) == {4: "int8", 8: "int16", 16: "int8"}
    assert code_dtypes(mask, IntCodec(0.5), stats) == {4: "int16", 8: "int16", 16: "int16"}
    assert code_dtypes(mask, IntCodec(2.0), stats) == {4: "int8", 8: "int8", 16: "int8"}
    assert largest_codes(mask, IntCodec(), stats) == pytest.approx({4: 63.5, 8: 63.6, 16: 50.0})


def test_what_is_not_known_to_fit_is_of_two_bytes():
    stats = stats_of((4, 0.5, 1.0), (8, 0.5, np.inf))
    mask = LatentMask.from_keep(stats, 0.5)
    assert code_dtypes(mask, IntCodec(), stats) == {4: "int8", 8: "int16"}
    assert code_dtypes(mask, IntCodec(), replace(stats, largest_mean=None)) == {4: "int16", 8: "int16"}
    assert code_dtypes(mask, FloatCodec("float16"), stats) == {4: "float16", 8: "float16"}


def test_the_largest_codes_expected_are_those_of_the_images_measured(tiny_model, photo_patches):
    """All latents kept and small steps: the closed loop is next to the open one."""
    stats, codec = kl_stats(tiny_model, photo_patches, sample=False), IntCodec(0.05)
    mask = LatentMask.from_keep(stats, 1.0)
    coder = LatentCoder(tiny_model, mask, codec, quantiser_steps(mask, codec, stats))
    stored = coder.encode(torch.from_numpy(photo_patches))
    found = {r: float(np.abs(numbers.astype(int)).max()) for r, numbers in stored.items()}
    assert largest_codes(mask, codec, stats) == pytest.approx(found, rel=0.1)
