"""The cutoff table: its figures are those of the model, on the same images and noise."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch

from hvae_codec.analysis.cutoff_table import COLUMNS, Analysis, analyze
from hvae_codec.analysis.quality import mean_squared_error, psnr
from hvae_codec.data.sources import as_source
from hvae_codec.encode.closed_loop import closed_loop_distortion
from hvae_codec.encode.coder import LatentCoder, quantiser_steps
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.keyed_noise import keyed_noise
from hvae_codec.prune.cutoffs import CutoffSpec
from hvae_codec.prune.kl_stats import kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.store.quantiser import FloatCodec, IntCodec

pytestmark = pytest.mark.slow

KEEPS = (0.05, 0.3, 1.0)


def silent(name):
    return lambda done, total: None


@pytest.fixture(scope="module")
def stats(tiny_model, photo_patches):
    return kl_stats(tiny_model, photo_patches)


def run(model, stats, images, keeps=KEEPS, **changes) -> Analysis:
    options = {"batch_size": 64, "seed": 3} | changes
    cutoffs = [CutoffSpec(keep=keep).cutoff(model, stats) for keep in keeps]
    return analyze(model, stats, as_source(images), cutoffs, IntCodec(), **options)


@pytest.fixture(scope="module")
def analysis(tiny_model, stats, photo_patches) -> Analysis:
    return run(tiny_model, stats, photo_patches)


def test_columns_and_what_they_must_add_up_to(analysis, tiny_model, photo_patches):
    table = analysis.table
    assert list(table.columns) == list(COLUMNS)
    assert table["keep"].tolist() == list(KEEPS)
    np.testing.assert_allclose(table["nelbo"], table["reconstruction"] + table["kl"])
    np.testing.assert_allclose(table["bits_per_dim"], 8 * table["bytes"] / (3 * 16 * 16))
    assert table["nelbo_change"].iloc[-1] == 0
    assert table["nelbo_change_se"].iloc[-1] == 0
    np.testing.assert_allclose(table["nelbo_change"], table["nelbo"] - table["nelbo"].iloc[-1], atol=1e-6)
    dims = tiny_model.config.latent_dims
    assert table["kept_dims"].iloc[-1] == dims
    assert table["kept_variates"].iloc[-1] == sum(g.variates for g in tiny_model.config.groups)
    assert (table["dense_bytes"] == 8 * dims).all()
    for column in ("kept_dims", "kept_variates", "kl", "bytes"):
        assert table[column].is_monotonic_increasing
    assert table["ssim"].between(-1, 1).all()
    assert analysis.originals.shape == (10, 3, 16, 16)
    assert (analysis.originals[[0, -1]] == photo_patches[[0, -1]]).all()


def test_kept_dims_are_the_masks(analysis, stats):
    masks = [LatentMask.from_keep(stats, keep) for keep in KEEPS]
    assert analysis.table["kept_dims"].tolist() == [mask.kept_dims for mask in masks]
    for mask, keep in zip(masks, KEEPS, strict=True):
        assert mask.kept_variates == 1 or mask.kept_dims <= keep * mask.dims


@torch.no_grad()
def test_pruned_dimensions_count_no_kl(tiny_model, stats, photo_patches):
    """By hand, with the noise that the table's rows share: q where kept, a prior sample where pruned."""
    images = photo_patches[:6]
    table = run(tiny_model, stats, images, seed=5).table
    for row, keep in zip(table.to_dict(orient="records"), KEEPS, strict=True):
        mask = LatentMask.from_keep(stats, keep).keep
        noise_of = keyed_noise(tiny_model.config, [(5, image) for image in range(6)], "cpu")
        kl = torch.zeros(6, dtype=torch.float64)

        def choose(group, mask=mask, noise_of=noise_of, kl=kl):
            q, p, noise = group.posterior(), group.prior, noise_of(group)
            kept = torch.from_numpy(mask[group.index])
            terms = (p.std / q.std).log() + (q.std**2 + (q.mean - p.mean) ** 2) / (2 * p.std**2) - 0.5
            kl += terms[:, kept].flatten(1).sum(1)
            z = p.mean + p.std * noise
            z[:, kept] = (q.mean + q.std * noise)[:, kept]
            return z

        pixels = torch.from_numpy(images)
        output = tiny_model.top_down(tiny_model.activations(pixels), choose, 6)
        bits = math.log(2) * 3 * 16 * 16
        assert row["kl"] == pytest.approx(kl.mean().item() / bits, rel=1e-4)
        nll = tiny_model.likelihood.nll(output, pixels).mean().item()
        assert row["reconstruction"] == pytest.approx(nll / bits, rel=1e-4)


def test_quality_is_that_of_encoded_images(analysis, tiny_model, stats, photo_patches):
    mask = LatentMask.from_keep(stats, 0.3)
    coder = LatentCoder(tiny_model, mask, IntCodec(), quantiser_steps(mask, IntCodec(), stats))
    decoded = coder.decode_pixels(coder.encode(torch.from_numpy(photo_patches))).numpy()
    assert analysis.table["psnr"].iloc[1] == pytest.approx(psnr(mean_squared_error(photo_patches, decoded)), abs=1e-3)
    shown = np.linspace(0, 23, 10).round().astype(int)
    assert np.abs(analysis.decoded[1].astype(int) - decoded[shown]).max() <= 1


def test_what_is_stored_and_decoded(analysis, tiny_model, stats, photo_patches):
    """Of images that are not decoded, the distortion of posterior samples counts, and the paired difference."""
    mask = LatentMask.from_keep(stats, 0.3)
    coder = LatentCoder(tiny_model, mask, IntCodec(), quantiser_steps(mask, IntCodec(), stats))
    pixels = torch.from_numpy(photo_patches)
    closed = closed_loop_distortion([coder], tiny_model.activations(pixels), pixels)[0].numpy()
    row = analysis.table.iloc[1]
    assert (row["step"], row["closed_loop"]) == (1.0, pytest.approx(closed.mean(), rel=1e-5))
    assert row["description_length"] == pytest.approx(row["bits_per_dim"] + row["closed_loop"])
    change = closed - analysis.rows[1].distortion[: len(closed)]
    assert row["closed_loop_change"] == pytest.approx(change.mean(), abs=1e-5)
    few = run(tiny_model, stats, photo_patches, pictures=7).table.iloc[1]
    spaced = np.linspace(0, 23, 7).round().astype(int)
    assert few["closed_loop"] == pytest.approx(row["reconstruction"] + change[spaced].mean(), rel=1e-5)
    floats = analyze(
        tiny_model,
        stats,
        as_source(photo_patches[:2]),
        [CutoffSpec(keep=0.3).cutoff(tiny_model, stats)],
        FloatCodec("float16"),
        batch_size=2,
        seed=3,
    ).table
    assert "step" not in floats


def test_the_batch_size_changes_nothing_but_rounding(analysis, tiny_model, stats, photo_patches):
    """Figures are means over images, and an image's noise is its own."""
    table = run(tiny_model, stats, photo_patches, batch_size=7).table
    for column in ("kept_dims", "psnr", "ssim", "bytes"):
        np.testing.assert_allclose(table[column], analysis.table[column], rtol=1e-3)
    for column in ("nelbo", "nelbo_change", "nelbo_change_se"):
        np.testing.assert_allclose(table[column], analysis.table[column], rtol=1e-3, atol=1e-6)


def test_all_latents_need_not_be_asked_for(analysis, tiny_model, stats, photo_patches):
    table = run(tiny_model, stats, photo_patches, keeps=[0.3]).table
    assert len(table) == 1
    assert table["nelbo_change"].iloc[0] == pytest.approx(analysis.table["nelbo_change"].iloc[1], abs=1e-9)


def test_one_image_has_no_standard_error(tiny_model, stats, photo_patches):
    analysis = run(tiny_model, stats, photo_patches[:1])
    assert analysis.table["nelbo_change_se"].isna().all()
    assert analysis.originals.shape == (1, 3, 16, 16)


def test_progress_counts_images(tiny_model, stats, photo_patches):
    seen: list[tuple[int, int]] = []
    run(tiny_model, stats, photo_patches, progress=lambda *args: seen.append(args), batch_size=10)
    assert seen == [(10, 24), (20, 24), (24, 24)]


def test_the_bottom_up_path_runs_once_a_batch(tiny_model, stats, photo_patches, monkeypatch):
    calls = []
    activations = HVAE.activations
    monkeypatch.setattr(HVAE, "activations", lambda self, images: calls.append(1) or activations(self, images))
    run(tiny_model, stats, photo_patches, batch_size=10)
    assert len(calls) == 3


def test_some_of_the_images_are_decoded(tiny_model, stats, photo_patches):
    """The bound is that of all images, whichever are decoded too; quality is that of evenly spaced ones."""
    all_, few = (run(tiny_model, stats, photo_patches, pictures=count, batch_size=5) for count in (24, 7))
    bound = ["kept_dims", "nelbo", "reconstruction", "kl", "nelbo_change", "nelbo_change_se"]
    pd.testing.assert_frame_equal(few.table[bound], all_.table[bound], check_exact=False, rtol=1e-4)
    spaced = np.linspace(0, 23, 7).round().astype(int)
    own = run(tiny_model, stats, photo_patches[spaced])
    decoded = ["psnr", "ssim", "bytes"]
    pd.testing.assert_frame_equal(few.table[decoded], own.table[decoded], check_exact=False, rtol=1e-4)
    np.testing.assert_array_equal(few.originals, photo_patches[spaced])


def test_rows_go_from_the_smallest_mask_to_the_largest(tiny_model, stats, photo_patches):
    """Whatever the order they were asked for, with masks of both granularities; each is as it is alone."""
    wishes = [
        CutoffSpec(keep=0.3),
        CutoffSpec(keep=0.05, granularity="position"),
        CutoffSpec(bits=float(np.sort(np.concatenate(stats.per_variate))[-4])),
        CutoffSpec(keep=0.25, count="variates"),
        CutoffSpec(keep=0.999, granularity="position"),
        CutoffSpec(keep=1.0),
        CutoffSpec(keep=1.0, granularity="position"),
    ]
    cutoffs = [wish.cutoff(tiny_model, stats) for wish in wishes]
    options = {"codec": IntCodec(), "batch_size": 64, "seed": 3}
    source = as_source(photo_patches[:6])
    table = analyze(tiny_model, stats, source, cutoffs, **options).table
    assert table["kept_dims"].is_monotonic_increasing
    assert sorted(table["rule"]) == sorted(cutoff.rule for cutoff in cutoffs)
    for cutoff in cutoffs:
        alone = analyze(tiny_model, stats, source, [cutoff], **options).table
        row = table[table["rule"] == cutoff.rule].reset_index(drop=True)
        pd.testing.assert_frame_equal(row, alone, check_exact=False, rtol=1e-5, atol=1e-7)


def test_binarised_images_have_nats(tiny_config, cut_patches):
    stages = [dataclasses.replace(stage, width=8) for stage in tiny_config.model.stages]
    config = dataclasses.replace(tiny_config.model, stages=tuple(stages), channels=1, output="bernoulli")
    model = HVAE(config).eval().requires_grad_(False)
    images = cut_patches(5, 12, 1)
    table = run(model, kl_stats(model, images), images, keeps=[1.0]).table
    assert list(table.columns) == [*COLUMNS, "nelbo_nats"]
    assert table["nelbo_nats"].iloc[0] == pytest.approx(table["nelbo"].iloc[0] * 144 * math.log(2))


def test_ranking_takes_images_from_the_whole_data_set(tiny_model, photo_patches):
    few = kl_stats(tiny_model, as_source(photo_patches).evenly(3))
    assert few.images == 3
    assert few.source == as_source(photo_patches).subset([0, 12, 23]).fingerprint
