"""Published VDVAEs go the whole way: ranked, into stores that carry them, out again, and made slim."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hvae_codec import LatentMask, encode_images, kl_stats, load_model, make_codec, open_store, verify_deep
from hvae_codec.encode.append import append
from hvae_codec.encode.coder import LatentCoder, quantiser_steps
from hvae_codec.encode.pipeline import EncodeOptions
from hvae_codec.model.checkpoint import model_hash, save_model
from hvae_codec.model.hvae import HVAE
from hvae_codec.prune.kl_stats import KLStats
from hvae_codec.prune.slim import slim
from vdvae_cases import CASES, Case


@pytest.fixture(scope="module", params=CASES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the averaged weights, and exact bins."""
    case, folder = Case(request.param), tmp_path_factory.mktemp("runs") / request.param
    config = case.config(exact_bins=True)
    save_model(folder, config, case.model(config=config).state_dict())
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> HVAE:
    return load_model(run)


@pytest.fixture(scope="module")
def images(model, cut_patches) -> np.ndarray:
    return cut_patches(7, model.config.image_size)


@pytest.fixture(scope="module")
def stats(model, images) -> KLStats:
    return kl_stats(model, images)


@torch.no_grad()
@pytest.mark.parametrize(("keep", "granularity"), [(0.03, "variate"), (0.3, "variate"), (0.3, "position")])
def test_decoding_follows_encoding(model, images, stats, keep, granularity):
    mask, codec = LatentMask.from_keep(stats, keep, granularity=granularity), make_codec("int")
    coder = LatentCoder(model, mask, codec, quantiser_steps(mask, codec, stats))
    stored, rounding = coder.encode(torch.from_numpy(images)), [0.0]
    z = coder.dense(stored)  # the decoder's; an encoder that went on from others had other posteriors

    def choose(group) -> torch.Tensor:
        kept, difference = torch.from_numpy(mask.keep[group.index]), z[group.index] - group.posterior().mean
        rounding.append(float((difference * kept.reshape(len(kept), *kept.shape[1:] or (1, 1))).abs().max()))
        return z[group.index]

    own = model.likelihood.mean(model.top_down(model.activations(torch.from_numpy(images)), choose, len(images)))
    assert (coder.decode(stored) - own).abs().max() < 1e-4
    assert max(rounding) <= 0.5001 * max(float(group.steps.max()) for group in coder.groups.values())


def test_a_store_carries_its_decoder_is_checked_and_appended(model, run, images, stats, tmp_path):
    mask, path = LatentMask.from_keep(stats, 0.3), tmp_path / "out.zarr"
    options = EncodeOptions(row_group_size=4, batch_size=4, embed="decoder", evaluate=True, verify=True)
    encode_images(model, images[:5], path, mask=mask, stats=stats, options=options)
    append(model, images[5:], path)
    run.rename(run.with_name("moved"))
    try:
        store = open_store(path)
        assert not verify_deep(path).damages
        decoded = store.decode(range(7))
    finally:
        run.with_name("moved").rename(run)
    mask_coder = LatentCoder.of_store(store, model)
    expected = mask_coder.decode_pixels(mask_coder.encode(torch.from_numpy(images)))
    assert np.abs(np.asarray(decoded).astype(int) - expected.numpy()).max() <= 1


def test_a_slim_model_has_only_what_is_kept(model):
    groups = model.config.groups
    keep = [np.arange(group.variates) < group.variates * (number % 3) // 2 for number, group in enumerate(groups)]
    smaller = slim(model, keep)  # compares the two models' outputs
    kept = [int(part.sum()) for part in keep]
    assert [group.variates for group in smaller.config.groups] == kept
    assert {0, groups[0].variates} < set(kept)
    for block, variates in zip(smaller.top_down.blocks, kept, strict=True):
        width = block.cells[0].convs[0].in_channels
        assert block.prior_cell.convs[-1].out_channels == width + 2 * variates
        if variates:
            assert block.posterior_cell.convs[-1].out_channels == 2 * variates
    whole = slim(model, [np.ones(group.variates, bool) for group in groups])
    assert model_hash(whole) == model_hash(model)
