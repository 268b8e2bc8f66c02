"""The largest step whose decoded images are as near as posterior samples: known answers, and a real model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvae_codec.analysis.step_search import FALLBACK, LIMITS, PRECISION, FoundStep, StepBracket, find_step, find_steps
from hvae_codec.data.sources import as_source
from hvae_codec.encode.closed_loop import closed_loop_distortion, encode_and_decode
from hvae_codec.encode.coder import LatentCoder, quantiser_steps
from hvae_codec.errors import DataError, UsageError
from hvae_codec.prune.kl_stats import kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.prune.sweep import sweep
from hvae_codec.store.quantiser import IntCodec

SAMPLED = np.array([2.0, 3.0, 4.0])


@pytest.fixture(scope="module")
def stats(tiny_model, photo_patches):
    return kl_stats(tiny_model, photo_patches)


@pytest.fixture(scope="module")
def mask(stats) -> LatentMask:
    return LatentMask.from_keep(stats, 0.3)


def searched(curve, tolerance: float = 0.0) -> tuple[FoundStep, StepBracket]:
    """Search a curve: the mean excess over posterior samples at each step, bits/dim."""
    bracket = StepBracket(tolerance, SAMPLED)
    while steps := bracket.wanted():
        bracket.measured |= {step: SAMPLED + curve(step) + np.array([-0.01, 0.0, 0.01]) for step in steps}
    return bracket.found(as_source(np.zeros((3, 3, 16, 16), np.uint8))), bracket


@given(
    root=st.floats(LIMITS[0] * PRECISION, LIMITS[1] / PRECISION),
    power=st.floats(0.5, 4.0),
    gain=st.floats(0.001, 0.5),
)
def test_of_a_rising_curve_the_last_tolerable_step_is_found(root, power, gain):
    found, bracket = searched(lambda step: gain * ((step / root) ** power - 1.0))
    assert root / PRECISION - 1e-9 <= found.step <= root
    assert found.is_tolerable
    assert found.change == pytest.approx(gain * ((found.step / root) ** power - 1.0))
    assert bracket.rounds <= 14


def test_a_smooth_curve_takes_few_passes():
    """Distortions of the quickstart's model at 3%, minus those of posterior samples: 1.57 has the same."""
    steps = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0]
    excess = [-0.134, -0.122, -0.086, -0.014, 0.083, 0.171, 0.361, 0.592]
    found, bracket = searched(lambda step: np.interp(step**2, np.square(steps), excess))
    assert found.step == pytest.approx(1.57, rel=0.03)
    assert len(bracket.measured) <= 6


def test_a_tolerance_is_a_share_of_the_distortion():
    found, _ = searched(lambda step: 0.1 * (step - 1.0), tolerance=0.02)  # 2% of 3 are 0.06
    assert 1.6 / PRECISION <= found.step <= 1.6
    assert found.is_tolerable
    assert found.change > 0


def test_limits():
    finest, _ = searched(lambda step: 0.5 + step)
    assert (finest.step, finest.is_tolerable) == (FALLBACK, False)
    assert finest.change == pytest.approx(1.5)
    coarsest, _ = searched(lambda step: -0.1)
    assert (coarsest.step, coarsest.is_tolerable) == (LIMITS[1], True)
    assert coarsest.confidence > 0.99


def test_beyond_a_step_that_is_not_tolerable_nothing_is_found():
    """A curve that falls again, where codes are all 0."""
    found, _ = searched(lambda step: step - 1.2 if step < 9.0 else -1.0)
    assert found.step <= 1.2


def distortions(model, images, mask, stats, *steps: float) -> np.ndarray:
    codecs = [IntCodec(step) for step in steps]
    coders = [LatentCoder(model, mask, codec, quantiser_steps(mask, codec, stats)) for codec in codecs]
    pixels = torch.from_numpy(images)
    return closed_loop_distortion(coders, model.activations(pixels), pixels).numpy()


@pytest.mark.parametrize("granularity", ["variate", "position"])
def test_the_found_step_is_tolerable_and_a_coarser_one_is_not(tiny_model, photo_patches, stats, granularity):
    mask = LatentMask.from_keep(stats, 0.3, granularity=granularity)
    (row,) = sweep(tiny_model, photo_patches, [mask], batch_size=5, seed=3)
    found = find_step(tiny_model, photo_patches, mask, stats, batch_size=5, seed=3)
    at, above = distortions(tiny_model, photo_patches, mask, stats, found.step, 1.05 * found.step)
    assert at.mean() <= row.distortion.mean() < above.mean()
    assert (found.sampled, found.distortion) == pytest.approx((row.distortion.mean(), at.mean()))
    change = at - row.distortion
    assert found.change_se == pytest.approx(change.std(ddof=1) / math.sqrt(24), rel=1e-4)
    assert 0.5 <= found.confidence <= 1.0
    assert (found.images, found.held_out) == (24, None)


def test_the_batch_size_and_the_order_change_nothing(tiny_model, photo_patches, mask, stats):
    one = find_step(tiny_model, photo_patches, mask, stats)
    other = find_step(tiny_model, as_source(photo_patches).subset(range(23, -1, -1)), mask, stats, batch_size=7)
    assert one.step == other.step
    assert (one.sampled, one.distortion) == pytest.approx((other.sampled, other.distortion), rel=1e-5)


def test_several_masks_share_passes(tiny_model, photo_patches, stats):
    """And what they find is what each finds alone: groups are shared between steps only if these are equal."""
    masks = [LatentMask.from_keep(stats, keep) for keep in (0.05, 0.3, 1.0)]
    together = find_steps(tiny_model, photo_patches, masks, stats, tolerance=0.001)
    assert together == [find_step(tiny_model, photo_patches, mask, stats, tolerance=0.001) for mask in masks]


def test_distortions_are_those_of_what_a_store_decodes_to(tiny_model, photo_patches, mask, stats):
    codec = IntCodec(1.7)
    coder = LatentCoder(tiny_model, mask, codec, quantiser_steps(mask, codec, stats))
    pixels = torch.from_numpy(photo_patches[:6])
    numbers = {r: torch.from_numpy(codes) for r, codes in coder.encode(pixels).items()}
    nats = tiny_model.likelihood.nll(coder.output(numbers), pixels).double().numpy()
    (trip,) = encode_and_decode([coder], tiny_model.activations(pixels), pixels)
    (alone,) = distortions(tiny_model, photo_patches[:6], mask, stats, 1.7)
    for found in (trip.distortion, alone):
        np.testing.assert_allclose(found, nats / (math.log(2) * 3 * 16 * 16), rtol=1e-4)


def test_progress_ends_where_all_is_done(tiny_model, photo_patches, mask, stats):
    seen: list[tuple[int, int]] = []
    find_step(tiny_model, photo_patches, mask, stats, batch_size=10, progress=lambda *args: seen.append(args))
    shares = [done / total for done, total in seen]
    assert seen[-1][0] == seen[-1][1]
    assert max(shares) == 1.0


def test_one_image_gives_no_confidence(tiny_model, photo_patches, mask, stats):
    found = find_step(tiny_model, photo_patches[:1], mask, stats)
    assert math.isnan(found.confidence)
    assert math.isnan(found.change_se)


@pytest.mark.parametrize("tolerance", [-0.01, math.nan, math.inf])
def test_tolerances_that_cannot_be(tiny_model, photo_patches, mask, stats, tolerance):
    with pytest.raises(UsageError, match="at least 0%"):
        find_step(tiny_model, photo_patches, mask, stats, tolerance=tolerance)


def test_no_images(tiny_model, photo_patches, mask, stats):
    with pytest.raises(DataError, match="no images to measure"):
        find_step(tiny_model, as_source(photo_patches).subset([]), mask, stats)
