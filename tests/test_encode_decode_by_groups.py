"""Decoded by more and more groups: each image is that of a mask that keeps these groups alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from hvae_codec.encode.coder import LatentCoder, quantiser_steps, stored_columns
from hvae_codec.encode.decode_by_groups import decode_by_groups
from hvae_codec.prune.kl_stats import kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.store.quantiser import IntCodec


@pytest.fixture(scope="module")
def stats(tiny_model, photo_patches):
    return kl_stats(tiny_model, photo_patches)


def of_first_groups(mask, stored, end):
    """The mask that keeps the groups before `end`, and what of `stored` it keeps."""
    keep = tuple(kept if group < end else np.zeros_like(kept) for group, kept in enumerate(mask.keep))
    own, less = stored_columns(mask), dataclasses.replace(mask, keep=keep)
    return less, {r: stored[r][:, own.coordinates[r][:, 0] < end] for r in own.resolutions}


@pytest.mark.parametrize("granularity", ["variate", "position"])
def test_each_is_decoded_by_the_mask_of_its_groups(tiny_model, photo_patches, stats, granularity):
    mask = LatentMask.from_keep(stats, 0.6, granularity=granularity)
    codec, groups = IntCodec(), len(mask.keep)
    coder = LatentCoder(tiny_model, mask, codec, quantiser_steps(mask, codec, stats))
    stored = coder.encode(torch.from_numpy(photo_patches[:5]))
    frames = [*decode_by_groups(coder, stored, range(groups + 1))]
    assert len(frames) == groups + 1
    assert (frames[0] == frames[0][:1]).all(), "without latents all images are the same"
    np.testing.assert_array_equal(frames[-1], coder.decode_pixels(stored).numpy())
    for end in range(1, groups):
        less, kept = of_first_groups(mask, stored, end)
        if not any(keep.any() for keep in less.keep):
            continue
        alone = LatentCoder(tiny_model, less, codec, quantiser_steps(less, codec, stats))
        found = alone.decode_pixels({r: kept[r] for r in alone.columns.resolutions}).numpy()
        np.testing.assert_array_equal(frames[end], found)
    assert len({frame.tobytes() for frame in frames}) >= 3
    chosen = [*decode_by_groups(coder, stored, [0, 2, groups])]
    for frame, end in zip(chosen, [0, 2, groups], strict=True):
        np.testing.assert_array_equal(frame, frames[end])
