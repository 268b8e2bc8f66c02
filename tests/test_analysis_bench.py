"""A model, a store and image codecs on the same images: figures are of what was really stored and decoded."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from hvae_codec import LatentMask, bench, encode_images, kl_stats, load_model, make_codec, open_images
from hvae_codec.analysis.bench import ModelCurve, OpenedStore, held_by
from hvae_codec.analysis.quality import mean_squared_error, psnr, ssim
from hvae_codec.analysis.rate_distortion import COLUMNS
from hvae_codec.analysis.reconstruction import SizeMeter
from hvae_codec.encode.array_dtypes import array_dtypes
from hvae_codec.encode.coder import LatentCoder, quantiser_steps
from hvae_codec.errors import DataError, UsageError
from hvae_codec.model.hvae import HVAE
from photos import save_png


@pytest.fixture(scope="module")
def stats(tiny_model, photo_patches):
    return kl_stats(tiny_model, photo_patches)


@pytest.fixture(scope="module")
def masks(stats):
    return {f"keep {100 * keep:g}%": LatentMask.from_keep(stats, keep) for keep in (0.3, 1.0)}


@pytest.fixture(scope="module")
def found(tiny_model, stats, masks, photo_patches):
    curve = ModelCurve(model=tiny_model, stats=stats, masks=masks, steps=(2.0, 0.5))
    done = []
    result = bench(photo_patches, curve, qualities=[30, 90], batch_size=10, progress=lambda *at: done.append(at))
    assert done[-1] == (24, 24)
    assert done == sorted(done)
    return result


@pytest.fixture
def folder(photo_patches, tmp_path):
    """A folder with 16 images for training and 8 held-out ones."""
    for i, patch in enumerate(photo_patches):
        save_png(tmp_path / "data" / ("train" if i < 16 else "val") / f"{i:02d}.png", patch)
    return tmp_path / "data"


def opened(path: object, size: int = 16, channels: int = 3):
    return open_images(path, size=size, channels=channels)


def test_the_models_rows_are_what_its_coder_stores_and_decodes(found, tiny_model, stats, masks, photo_patches):
    rows = found.table[found.table["kind"] == "model"]
    assert rows[["method", "setting"]].to_numpy().tolist() == [
        [rule, step] for rule in masks for step in ("step 0.5", "step 2")
    ]
    for row in rows.to_dict(orient="records"):
        codec = make_codec("int", float(row["setting"].split()[1]))
        mask = masks[row["method"]]
        coder = LatentCoder(tiny_model, mask, codec, quantiser_steps(mask, codec, stats))
        meter = SizeMeter("zstd", array_dtypes(mask, codec, stats))
        stored = coder.encode(torch.from_numpy(photo_patches))
        meter.add(stored)
        decoded = coder.decode_pixels(stored).numpy()
        assert row["payload_bytes"] == pytest.approx(meter.total_bytes() / 24)
        assert row["psnr"] == pytest.approx(psnr(mean_squared_error(photo_patches, decoded)), abs=1e-3)
        assert row["ssim"] == pytest.approx(ssim(photo_patches, decoded).mean(), abs=1e-4)
        assert np.isnan(row["bytes"])
        assert row["encode_per_second"] > 0 < row["decode_per_second"]


def test_files_are_counted_with_and_without_headers(found, tmp_path, photo_patches):
    from PIL import Image

    row = found.table.set_index(["method", "setting"]).loc[("PNG", "lossless")]
    for i, pixels in enumerate(photo_patches):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / f"{i}.png", optimize=True)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    Image.new("RGB", (1, 1), (128, 128, 128)).save(header := tmp_path / "header.png", optimize=True)
    assert row["bytes"] == pytest.approx(np.mean(sizes))
    assert row["payload_bytes"] == pytest.approx(np.mean(sizes) - header.stat().st_size)
    assert row["bits_per_dim"] == pytest.approx(8 * np.mean(sizes) / 768)
    assert row["exact"]
    assert row["ssim"] == 1.0


def test_the_table_has_all_columns_and_plain_numbers(found):
    assert list(found.table) == list(COLUMNS)
    assert set(found.table["kind"]) == {"model", "lossless", "lossy"}
    for name in ("payload_bytes", "bytes", "psnr", "encode_per_second"):
        assert pd.api.types.is_float_dtype(found.table[name])
    assert found.about["images"] == 24
    assert found.about["stores"] == {}
    assert found.about["model_bytes"] > 1000


@pytest.mark.parametrize(("changes", "levels"), [({"output": "bernoulli"}, {0, 255}), ({"bits": 2}, {0, 64, 128, 192})])
def test_codecs_are_given_the_bits_that_the_model_sees(tiny_config, cut_patches, changes, levels):
    config = dataclasses.replace(tiny_config.model, channels=1, **changes)
    model, images = HVAE(config).eval(), cut_patches(6, config.image_size, 1)
    stats = kl_stats(model, images)
    curve = ModelCurve(model=model, stats=stats, masks={"all": LatentMask.everything(stats)}, steps=[1.0])
    found = bench(images, curve, qualities=[50])
    seen = model.likelihood.quantised(torch.from_numpy(images)).numpy()
    assert set(np.unique(seen).tolist()) <= levels
    lossless = found.table[found.table["kind"] == "lossless"]
    assert len(lossless) == 3
    assert lossless["exact"].all()
    assert found.about["bits"] == model.config.pixel_bits


def test_a_store_is_all_its_bytes_and_the_images_it_decodes_to(tiny_model, stats, masks, folder, tmp_path):
    images = opened(folder)
    store = encode_images(tiny_model, images, tmp_path / "out.zarr", mask=masks["keep 30%"], stats=stats)
    held_out = held_by(images.split("val"), [store])
    row = bench(held_out, None, [OpenedStore(store, tiny_model)], qualities=[50]).table.iloc[0]
    assert (row["kind"], row["method"], row["setting"]) == ("store", "out.zarr", "step 1")
    assert row["bytes"] == pytest.approx(store.nbytes_on_disk() / 24)
    latents = [size for name, size in store.path.files() if name.startswith("z") and "/c/" in name]
    assert row["payload_bytes"] == pytest.approx(sum(latents) / 24)
    decoded = store.decode(range(16, 24), tiny_model)
    assert row["psnr"] == pytest.approx(psnr(mean_squared_error(held_out.read(range(8)), decoded)), abs=1e-3)
    assert np.isnan(row["encode_per_second"])


def test_images_that_the_store_does_not_hold(tiny_model, stats, masks, folder, tmp_path, photo_patches):
    images = opened(folder)
    training = images.split("train")
    store = encode_images(tiny_model, training, tmp_path / "out.zarr", mask=masks["keep 30%"], stats=stats)
    with pytest.raises(DataError, match=r"out.zarr has none of these 8 held-out images; give --split"):
        held_by(images.split("val"), [store])
    assert list(held_by(images, [store]).names) == list(training.names)
    save_png(folder / "train" / "03.png", photo_patches[3] ^ 1)
    with pytest.raises(DataError, match=r"1 of the 16 images.*03\.png.*sync"):
        bench(opened(folder).split("train"), None, [OpenedStore(store, tiny_model)])


def test_what_cannot_be_compared(tiny_model, tiny_config, stats, masks, photo_patches, tmp_path):
    with pytest.raises(UsageError, match="neither a model nor a store"):
        bench(photo_patches)
    curve = ModelCurve(model=tiny_model, stats=stats, masks=masks)
    with pytest.raises(DataError, match="no image in it"):
        bench(photo_patches[:0], curve)
    model = HVAE(dataclasses.replace(tiny_config.model, bits=5)).eval()
    mask = LatentMask.everything(other := kl_stats(model, photo_patches))
    store = encode_images(model, photo_patches, tmp_path / "five.zarr", mask=mask, stats=other)
    with pytest.raises(UsageError, match="5 and 8 bits"):
        bench(photo_patches, curve, [OpenedStore(store, model)])


def test_torch_has_its_threads_back(tiny_run, photo_patches, stats, masks):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        curve = ModelCurve(model=load_model(tiny_run), stats=stats, masks=masks, steps=[1.0])
        bench(photo_patches[:2], curve, qualities=[50])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
