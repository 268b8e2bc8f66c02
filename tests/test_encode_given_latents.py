"""Latents that did not come out of the store are decoded as the store's own are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hvae_codec import LatentDataset, LatentMask, encode_images, kl_stats, make_codec
from hvae_codec.encode.pipeline import EncodeOptions
from hvae_codec.errors import UsageError

CASES = [("variate", "int", False), ("position", "int", False), ("variate", "float16", False), ("variate", "int", True)]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case)), scope="module")
def store(request, tiny_model, photo_patches, tmp_path_factory):
    granularity, codec, embedded = request.param
    stats = kl_stats(tiny_model, photo_patches)
    mask = LatentMask.from_keep(stats, 0.3, granularity=granularity)
    options = EncodeOptions(row_group_size=8, embed="decoder" if embedded else "")
    path = tmp_path_factory.mktemp("stores") / "out.zarr"
    codec = make_codec(codec)
    return encode_images(tiny_model, photo_patches, path, mask=mask, stats=stats, codec=codec, options=options)


def test_the_stores_own_latents_decode_to_its_images(store):
    images = store.decode(range(len(store)))
    np.testing.assert_array_equal(store.decode_latents(store.latents(slice(None))), images)
    flat, _ = LatentDataset(store, flat=True)[list(range(len(store)))]
    assert isinstance(flat, torch.Tensor)
    np.testing.assert_array_equal(store.decode_latents(flat), images)


def test_latents_between_codes_are_rounded_to_the_nearest(store):
    if store.codec.name != "int":
        pytest.skip("floats have no steps")
    latents = store.latents(slice(0, 8))
    nudged = {name: z + 0.4 * _steps(store, name) for name, z in latents.items()}
    np.testing.assert_array_equal(store.decode_latents(nudged), store.decode(range(8)))
    moved = {name: z + 3 * _steps(store, name) for name, z in latents.items()}
    assert (store.decode_latents(moved) != store.decode(range(8))).any()


def test_no_latents_are_no_images(store):
    assert store.decode_latents(np.empty((0, store.kept_dims))).shape == (0, 3, 16, 16)


def test_what_does_not_fit_is_named(store):
    latents = store.latents(slice(0, 4))
    first, *_, last = latents
    with pytest.raises(UsageError, match=rf"\[4, {store.kept_dims - 1}\].*\[images, {store.kept_dims}\]"):
        store.decode_latents(np.zeros((4, store.kept_dims - 1)))
    with pytest.raises(UsageError, match=f"{last}"):
        store.decode_latents({name: z for name, z in latents.items() if name != last})
    with pytest.raises(UsageError, match=f"{last} is of shape .*images"):
        store.decode_latents({**latents, last: latents[last][:, :-1]})
    with pytest.raises(UsageError, match=f"4 images .*3 images.*{last}"):
        store.decode_latents({**latents, last: latents[last][:3]})
    with pytest.raises(UsageError, match=f"{first}.*not finite"):
        store.decode_latents({**latents, first: np.full_like(latents[first], np.nan)})


def _steps(store, name):
    steps, z = store.steps[int(name[1:])], store.latents(0)[name]
    return steps.reshape(-1, *(1 for _ in z.shape[1:]))
