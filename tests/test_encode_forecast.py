"""What a forecast says of bytes is what real stores take; and it writes nothing."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hvae_codec.analysis.encode_forecast import outlook_on_encode
from hvae_codec.data.sources import ImageSource, open_images
from hvae_codec.data.training_and_held_out import TrainingAndHeldOut
from hvae_codec.encode.append import append
from hvae_codec.encode.forecast import EncodeForecast, forecast_append, forecast_encoding
from hvae_codec.encode.pipeline import EncodeOptions, encode_images, plan_store
from hvae_codec.model.checkpoint import load_model
from hvae_codec.model.hvae import HVAE
from hvae_codec.prune.cutoffs import CutoffSpec
from hvae_codec.prune.kl_stats import kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.store.quantiser import FloatCodec, IntCodec
from photos import cut
from stores import tree


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    """1,000 patches of two photographs in an array."""
    path = tmp_path_factory.mktemp("thousand") / "patches.npy"
    np.save(path, cut(1000).transpose(0, 2, 3, 1))
    return open_images(path, size=16, channels=3)


def within(forecast: EncodeForecast, store, latents_before: int = 0) -> None:
    sizes = dict(store.path.files())
    latents = sum(size for key, size in sizes.items() if key.startswith("z") and "/c/" in key)
    assert forecast.latent_bytes == pytest.approx(latents - latents_before, rel=0.15)
    assert forecast.bytes == pytest.approx(store.nbytes_on_disk(), rel=0.15)
    assert forecast.table_bytes == pytest.approx(store.nbytes_on_disk() - latents, rel=0.03)
    assert forecast.row_groups == len(store.row_groups)


@pytest.mark.parametrize(
    ("images", "codec", "granularity", "options"),
    [
        (1000, IntCodec(), "variate", EncodeOptions()),
        (300, IntCodec(0.2), "variate", EncodeOptions(chunk_bytes=1000, evaluate=True)),
        (300, IntCodec(), "position", EncodeOptions(row_group_size=100, embed="whole")),
        (600, FloatCodec("float16"), "variate", EncodeOptions(row_group_size=512, chunk_bytes=2**20)),
    ],
    ids=["usual", "small chunks", "positions", "large chunks"],
)
def test_bytes_are_those_of_a_real_store(
    tiny_model: HVAE, thousand: ImageSource, tmp_path: Path, images: int, codec, granularity, options
):
    source = thousand.subset(range(images))
    stats = kl_stats(tiny_model, thousand.evenly(64))
    mask = LatentMask.from_keep(stats, 0.4, granularity=granularity)
    plan = {"mask": mask, "codec": codec, "stats": stats, "options": options}
    calls: list[tuple[int, int]] = []
    encoder, spec = plan_store(tiny_model, source, **plan)
    forecast = forecast_encoding(encoder, spec, progress=lambda *call: calls.append(call))
    assert (forecast.images, forecast.measured_on, calls[-1]) == (images, 64, (64, 64))
    assert forecast.seconds > 0
    within(forecast, encode_images(tiny_model, source, tmp_path / "a.zarr", **plan))


def test_bytes_of_an_appended_store(tiny_model: HVAE, thousand: ImageSource, tmp_path: Path):
    stats, path = kl_stats(tiny_model, thousand.evenly(64)), tmp_path / "a.zarr"
    mask, rest = LatentMask.from_keep(stats, 0.4), thousand.subset(range(300, 700))
    encode_images(tiny_model, thousand.subset(range(300)), path, mask=mask, stats=stats)
    before = tree(tmp_path)
    forecast = forecast_append(tiny_model, rest, path)
    assert tree(tmp_path) == before
    assert forecast.images == 400
    within(forecast, append(tiny_model, rest, path), forecast.old_latent_bytes)


def test_a_few_images_are_all_measured(tiny_model: HVAE, thousand: ImageSource):
    few = thousand.subset([5, 900])
    stats = kl_stats(tiny_model, few)
    encoder, spec = plan_store(tiny_model, few, mask=LatentMask.from_keep(stats, 0.4), stats=stats)
    forecast = forecast_encoding(encoder, spec)
    assert (forecast.images, forecast.measured_on, forecast.row_groups) == (2, 2, 1)
    assert forecast.latent_bytes > 0


def test_the_whole_encode_in_outlook(tmp_path: Path, tiny_run: Path, thousand: ImageSource):
    tiny_run = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("analysis"))
    tiny_model = load_model(tiny_run)
    before, wish = tree(tiny_run), (IntCodec(), EncodeOptions(), 200)
    stage = lambda name: lambda done, total: None  # noqa: E731
    told = outlook_on_encode(tiny_model, TrainingAndHeldOut(thousand), thousand, CutoffSpec(keep=0.4), *wish, stage)
    assert tree(tiny_run) == before
    assert (told.ranked_on, told.chosen.cost and told.chosen.cost.images) == (64, 64)
    assert min(told.ranking_seconds, told.cost_seconds, told.forecast.seconds) > 0
    assert told.seconds == told.ranking_seconds + told.cost_seconds + told.forecast.seconds
    unmeasured = outlook_on_encode(
        tiny_model, TrainingAndHeldOut(thousand), thousand, CutoffSpec(keep=0.4), *wish[:2], 0, stage
    )
    assert (unmeasured.chosen.cost, unmeasured.cost_seconds) == (None, 0.0)
    assert unmeasured.forecast.bytes == told.forecast.bytes
    searched = outlook_on_encode(
        tiny_model, TrainingAndHeldOut(thousand), thousand, CutoffSpec(tolerance=0.05), *wish[:2], 0, stage
    )
    assert searched.cost_seconds > 0
    assert replace(searched, cost_seconds=0.0).seconds < searched.seconds
