"""The figures of evaluate are those of the model; standard errors, bins, and that batches do not matter."""

from __future__ import annotations

import dataclasses
import io
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from hvae_codec.analysis.evaluation import COLUMNS, evaluate
from hvae_codec.analysis.quality import mean_squared_error, psnr, ssim
from hvae_codec.data.sources import as_source
from hvae_codec.errors import DataError, UsageError
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.image_noise import ImageNoise
from hvae_codec.model.importance import importance_bound
from hvae_codec.report.evaluation import (
    LABELS,
    check_image_csv,
    evaluation_data,
    evaluation_table,
    save_image_csv,
)
from hvae_codec.train.metrics import ACTIVE_NATS


@pytest.fixture(scope="module")
def evaluation(tiny_model, photo_patches):
    return evaluate(tiny_model, photo_patches, samples=5, seed=3)


def text(evaluation) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(evaluation_table(evaluation))
    return console.file.getvalue()


def changed(model: HVAE, **settings) -> HVAE:
    """The same weights under another configuration."""
    other = HVAE(dataclasses.replace(model.config, **settings))
    other.load_state_dict(model.state_dict())
    return other.eval().requires_grad_(False)


def test_figures_are_averages_of_the_images(evaluation):
    assert list(evaluation.images) == ["name", "label", *(c for c in COLUMNS if not c.endswith("_bins"))]
    assert list(evaluation.figures) == [name for name in LABELS if "bins" not in name]
    for name in ("nelbo", "rate", "distortion", "importance_bound", "ssim"):
        values = evaluation.images[name]
        assert values.dtype == np.float64
        assert evaluation.figures[name].mean == pytest.approx(values.mean())
        assert evaluation.figures[name].standard_error == pytest.approx(values.sem())
    np.testing.assert_allclose(evaluation.images["nelbo"], evaluation.images["rate"] + evaluation.images["distortion"])


def test_the_difference_is_paired(evaluation):
    change = evaluation.figures["importance_bound_change"]
    paired = evaluation.images["importance_bound"] - evaluation.images["nelbo"]
    assert change.mean == pytest.approx(paired.mean())
    assert change.standard_error == pytest.approx(paired.sem())
    assert change.mean < 0
    assert change.standard_error < evaluation.figures["nelbo"].standard_error


@torch.no_grad()
def test_one_sample_by_hand(tiny_model, photo_patches):
    found = evaluate(tiny_model, photo_patches, seed=3)
    terms = tiny_model(torch.from_numpy(photo_patches), ImageNoise(3, range(24)))
    nats = math.log(2) * 3 * 16 * 16
    np.testing.assert_allclose(found.images["distortion"], terms.nll / nats, rtol=1e-5)
    np.testing.assert_allclose(found.images["rate"], terms.kl.sum(dim=0) / nats, rtol=1e-4)
    np.testing.assert_allclose(found.kl_nats, terms.kl.mean(dim=1), rtol=1e-4)
    assert found.active_groups == int((terms.kl.mean(dim=1) > ACTIVE_NATS).sum())
    assert "importance_bound" not in found.figures


def test_the_bound_is_that_of_the_library(evaluation, tiny_model, photo_patches):
    bound = importance_bound(tiny_model, torch.from_numpy(photo_patches), ImageNoise(3, range(24)), 5)
    np.testing.assert_allclose(evaluation.images["importance_bound"], bound / tiny_model.nats_per_bit_dim, rtol=1e-6)


def test_reconstructions_are_those_of_the_posterior_mean(evaluation, tiny_model, photo_patches):
    decoded = tiny_model.reconstruct(torch.from_numpy(photo_patches)).numpy()
    assert evaluation.figures["psnr"].mean == pytest.approx(psnr(mean_squared_error(photo_patches, decoded)), abs=1e-3)
    np.testing.assert_allclose(evaluation.images["ssim"], ssim(photo_patches, decoded), atol=1e-3)


def test_the_error_of_psnr_is_near_the_jackknifes(evaluation):
    """The delta method against leaving out each image in turn."""
    mse = evaluation.images["mse"].to_numpy()
    left_out = np.array([psnr(np.delete(mse, i)) for i in range(len(mse))])
    jackknife = math.sqrt((len(mse) - 1) * np.mean((left_out - left_out.mean()) ** 2))
    assert evaluation.figures["psnr"].standard_error == pytest.approx(jackknife, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 7])
def test_figures_do_not_depend_on_the_batch_size(evaluation, tiny_model, photo_patches, batch_size):
    again = evaluate(tiny_model, photo_patches, samples=5, seed=3, batch_size=batch_size)
    for name in ("nelbo", "rate", "distortion", "importance_bound"):
        np.testing.assert_allclose(again.images[name], evaluation.images[name], rtol=1e-5)
    for name, figure in evaluation.figures.items():
        assert again.figures[name].mean == pytest.approx(figure.mean, rel=1e-3, abs=1e-6)
    np.testing.assert_allclose(again.kl_nats, evaluation.kl_nats, rtol=1e-4)


def test_the_bottom_up_path_runs_once_a_batch(tiny_model, photo_patches):
    calls = []
    hook = tiny_model.bottom_up.register_forward_hook(lambda *_: calls.append(1))
    try:
        evaluate(tiny_model, photo_patches, samples=3, batch_size=10)
    finally:
        hook.remove()
    assert len(calls) == 3


def test_both_kinds_of_bins_at_5_bits(tiny_model, photo_patches):
    """Published bins overlap below 8 bits: probabilities sum to more than 1, and the figure is too good."""
    exact, published = (changed(tiny_model, bits=5, bins=bins) for bins in ("exact", "published"))
    by_exact, by_published = (evaluate(model, photo_patches, samples=2) for model in (exact, published))
    for found, own in ((by_exact, "nelbo_exact_bins"), (by_published, "nelbo_published_bins")):
        assert found.figures["nelbo"] == found.figures[own]
        change = found.figures["bins_change"]
        assert change.mean == pytest.approx(
            found.figures["nelbo_published_bins"].mean - found.figures["nelbo_exact_bins"].mean
        )
        # log2(level spacing / bin width) = log2((8 / 127.5) / (2 / 31)) = -0.040 where densities are smooth
        assert change.mean == pytest.approx(-0.040, abs=0.01)
        assert change.standard_error < 0.01
    assert by_exact.figures["bins_change"].mean == pytest.approx(by_published.figures["bins_change"].mean)
    assert "change by published bins" in text(by_exact)


def test_published_bins_at_8_bits_are_shown_and_the_same(tiny_model, photo_patches):
    found = evaluate(changed(tiny_model, bins="published"), photo_patches[:6])
    assert abs(found.figures["bins_change"].mean) < 0.01
    assert "nelbo_exact_bins" not in evaluate(tiny_model, photo_patches[:6]).figures


def test_one_image_has_no_standard_error(tiny_model, photo_patches):
    found = evaluate(tiny_model, photo_patches[:1], samples=2)
    assert all(math.isnan(figure.standard_error) for figure in found.figures.values())
    shown = text(found)
    assert "1 image, 2 posterior samples each" in shown
    assert "nan" not in shown
    assert all("- " in line for line in shown.splitlines() if "NELBO" in line)
    data = json.loads(json.dumps(evaluation_data(found, {}), allow_nan=False))
    assert data["figures"]["nelbo"]["standard_error"] is None


def test_nats_of_binarised_images(tiny_config, cut_patches):
    config = dataclasses.replace(tiny_config.model, channels=1, output="bernoulli")
    model = HVAE(config).eval().requires_grad_(False)
    found = evaluate(model, cut_patches(6, 12, 1), samples=3)
    for name in ("nelbo", "rate", "distortion", "importance_bound", "importance_bound_change"):
        figure, nats = found.figures[name], found.figures[f"{name}_nats"]
        assert nats.mean == pytest.approx(figure.mean * 144 * math.log(2))
        assert nats.standard_error == pytest.approx(figure.standard_error * 144 * math.log(2))
        assert nats.unit == "nats"
    assert f"{found.figures['nelbo_nats'].mean:.2f}" in text(found)


def test_equal_images_have_a_finite_psnr(tiny_model, photo_patches, monkeypatch):
    monkeypatch.setattr(tiny_model.likelihood, "to_pixels", lambda x: torch.from_numpy(photo_patches[:4]))
    found = evaluate(tiny_model, photo_patches[:4])
    assert found.figures["psnr"].mean == pytest.approx(88.13, abs=0.01)
    assert found.figures["psnr"].standard_error == 0


def test_data_and_csv(evaluation, tmp_path):
    data = json.loads(json.dumps(evaluation_data(evaluation, {"model": "runs/first"}), allow_nan=False))
    assert data["about"]["model"] == "runs/first"
    assert data["about"]["images"] == 24
    assert data["about"]["samples"] == 5
    assert data["figures"]["psnr"]["unit"] == "dB"
    assert len(data["groups"]["kl_nats"]) == 4
    path = tmp_path / "new" / "images.csv"
    check_image_csv(path)
    save_image_csv(path, evaluation)
    table = pd.read_csv(path, dtype={"name": str}, keep_default_na=False)
    pd.testing.assert_frame_equal(table.drop(columns="label"), evaluation.images.drop(columns="label"))
    with pytest.raises(DataError, match=r"images\.csv exists; .*--overwrite"):
        check_image_csv(path)
    check_image_csv(path, overwrite=True)
    with pytest.raises(DataError, match=r"is a folder"):
        check_image_csv(tmp_path, overwrite=True)


def test_progress_ends_with_all_images(tiny_model, photo_patches):
    calls = []
    evaluate(tiny_model, photo_patches, samples=3, batch_size=10, progress=lambda *call: calls.append(call))
    assert calls == sorted(calls)
    assert calls[-1] == (24, 24)
    assert len(calls) == 3 * 4


def test_wrong_input(tiny_model, photo_patches):
    with pytest.raises(UsageError, match="posterior samples is 0"):
        evaluate(tiny_model, photo_patches, samples=0)
    with pytest.raises(UsageError, match="the batch size is 0"):
        evaluate(tiny_model, photo_patches, batch_size=0)
    with pytest.raises(DataError, match="no images to evaluate"):
        evaluate(tiny_model, as_source(photo_patches).subset([]))
    broken = changed(tiny_model)
    broken.top_down.output_conv.bias[0] = math.nan
    with pytest.raises(DataError, match=r"00000000 is not finite; .* weights"):
        evaluate(broken, photo_patches[:2])
