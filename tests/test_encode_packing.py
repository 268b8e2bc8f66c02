"""Stores of int8 codes, plain and archived, through all that is done with stores: they stay what they are."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hvae_codec import (
    LatentDataset,
    LatentMask,
    encode_images,
    kl_stats,
    make_codec,
    open_images,
    repair,
    verify,
    verify_deep,
)
from hvae_codec.encode.append import append
from hvae_codec.encode.forecast import forecast_append, forecast_encoding
from hvae_codec.encode.pipeline import EncodeOptions, encode_worker, plan_store
from hvae_codec.encode.repair import RepairOptions
from hvae_codec.encode.sync import sync
from hvae_codec.errors import UsageError
from hvae_codec.report.about import describe
from hvae_codec.store.narrowing import CodeRangeError
from hvae_codec.store.workers import Worker
from photos import save_png
from stores import tree

IMAGES, SHARD = 20, 8
OPTIONS = EncodeOptions(batch_size=4, row_group_size=SHARD, chunk_bytes=500, code_bits=8)


@pytest.fixture(scope="module")
def folder(cut_patches, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i, pixels in enumerate(cut_patches(IMAGES)):
        save_png(folder / f"{i:03d}.png", pixels)
    return folder


@pytest.fixture(scope="module")
def stats(tiny_model, photo_patches):
    return kl_stats(tiny_model, photo_patches)


@pytest.fixture(
    scope="module", params=[("zstd", "variate"), ("archive", "variate"), ("archive", "position")], ids="-".join
)
def encoding(request, stats):
    """What all encodes of a store have in common."""
    packing, granularity = request.param
    mask = LatentMask.from_keep(stats, 0.5, granularity=granularity)
    return {"mask": mask, "stats": stats, "options": replace(OPTIONS, packing=packing)}


@pytest.fixture(scope="module")
def made(encoding, folder, tiny_model, tmp_path_factory):
    return encode_images(tiny_model, images(folder), tmp_path_factory.mktemp("made") / "out.zarr", **encoding)


@pytest.fixture
def path(made, tmp_path) -> Path:
    return shutil.copytree(made.path.folder, tmp_path / "out.zarr")


def images(folder: Path):
    return open_images(folder, size=16, channels=3)


def assert_same_kind(store, made) -> None:
    """It has the version, the packing and the types of `made`, and is whole."""
    assert (store.format_version, store.metadata.packing) == (5, made.metadata.packing)
    assert {*store.metadata.dtypes.values()} == {"int8"}
    assert verify(store.path).ok


def test_latents_do_not_depend_on_the_packing(made, encoding, folder, tiny_model, tmp_path):
    assert_same_kind(made, made)
    plain = encode_images(
        tiny_model,
        images(folder),
        tmp_path / "4.zarr",
        **encoding | {"options": replace(OPTIONS, packing="blosc", code_bits=None)},
    )
    assert plain.format_version == 4
    for name, z in plain.latents(slice(None)).items():
        assert made.latents(slice(None))[name].tobytes() == z.tobytes()
    np.testing.assert_array_equal(made.decode(range(6), tiny_model), plain.decode(range(6), tiny_model))


def test_it_is_read_by_all(made):
    dataset = LatentDataset(made)
    batch, _ = next(iter(DataLoader(dataset, batch_size=6)))
    for name, z in made.latents(slice(0, 6)).items():
        np.testing.assert_array_equal(batch[name].numpy(), z)
        np.testing.assert_array_equal(made.to_xarray()[f"{name}/z"][:6].to_numpy(), z)
    facts = describe(made.path)
    assert "int8" in facts.pairs["arrays"]
    assert facts.pairs["packing"] == made.metadata.packing == facts.data["packing"]


def test_interrupted_and_by_workers_it_has_the_same_bytes(made, encoding, folder, tiny_model, tmp_path):
    class StoppedError(Exception):
        """In place of a kill."""

    def stop(done: int, _: int) -> None:
        if done >= SHARD:
            raise StoppedError

    with pytest.raises(StoppedError):
        encode_images(tiny_model, images(folder), tmp_path / "a.zarr", **encoding, progress=stop)
    assert (tmp_path / "a.zarr.partial").is_dir()
    encode_images(tiny_model, images(folder), tmp_path / "a.zarr", **encoding)
    for number in range(2):
        encode_worker(tiny_model, images(folder), tmp_path / "b.zarr", Worker(number, 2), **encoding)
    for name in "ab":
        assert tree(tmp_path / f"{name}.zarr") == tree(made.path.folder)


@pytest.mark.slow
def test_as_tasks_it_has_the_same_bytes(made, encoding, folder, tiny_model, tmp_path):
    encode_images(tiny_model, images(folder), tmp_path / "c.zarr", **encoding, executor=ThreadPoolExecutor(2))
    assert tree(tmp_path / "c.zarr") == tree(made.path.folder)


def test_append_and_sync_keep_what_it_is(made, path, folder, cut_patches, tiny_model, tmp_path):
    more = Path(shutil.copytree(folder, tmp_path / "more"))
    new = tmp_path / "new"
    for i, pixels in enumerate(cut_patches(IMAGES + 7)[IMAGES:]):
        save_png(new / f"new-{i}.png", pixels)
        save_png(more / f"new-{i}.png", pixels)
    appended = append(tiny_model, images(new), path, batch_size=4)
    assert len(appended) == IMAGES + 7
    assert_same_kind(appended, made)
    (more / "004.png").unlink()
    synced = sync(tiny_model, images(more), path, batch_size=4)
    assert len(synced) == IMAGES + 6
    assert_same_kind(synced, made)


def test_repair_keeps_what_it_is(made, path, folder, tiny_model):
    for shard in sorted(path.glob("z*/c/1"))[:1]:
        shutil.rmtree(shard) if shard.is_dir() else shard.unlink()
    (path / "committed" / "c" / "2").unlink()
    (path / "z1" / "zarr.json").write_text("{}") if (path / "z1").exists() else None
    (path / "zarr.json").write_text("{}")
    report = repair(path, images(folder), tiny_model, options=RepairOptions(batch_size=4))
    assert report.after.ok, report.after.damages
    assert tree(path) == tree(made.path.folder)


@pytest.mark.parametrize("embed", ["whole", "decoder"])
def test_it_carries_its_model(encoding, folder, tiny_model, tmp_path, embed):
    if embed == "decoder" and encoding["mask"].granularity == "position":
        pytest.skip("a decoder is for whole variates")
    options = replace(encoding["options"], embed=embed, verify=True)
    store = encode_images(tiny_model, images(folder), tmp_path / "out.zarr", **encoding | {"options": options})
    assert_same_kind(store, store)
    assert verify_deep(store.path).ok


@pytest.mark.slow
def test_its_size_is_told(encoding, cut_patches, tiny_model, tmp_path):
    many = cut_patches(300)
    how = encoding | {"options": replace(encoding["options"], row_group_size=64, chunk_bytes=2**17)}
    store = encode_images(tiny_model, many, tmp_path / "out.zarr", **how)
    told = forecast_encoding(*plan_store(tiny_model, many, **how))
    latents = sum(size for key, size in store.path.files() if key.startswith("z") and "/c/" in key)
    assert told.latent_bytes == pytest.approx(latents, rel=0.25)


# --- codes that do not fit -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fine(stats, tiny_model, photo_patches):
    """What encodes some images in steps so fine that their codes just fit into int8, those images, and others."""
    mask = LatentMask.from_keep(stats, 0.5)
    coder = plan_store(tiny_model, photo_patches, mask=mask, stats=stats, options=OPTIONS)[0].coder
    codes = coder.encode(torch.from_numpy(photo_patches))
    most = np.max([np.abs(numbers.astype(int)).reshape(len(numbers), -1).max(axis=1) for numbers in codes.values()], 0)
    order = np.argsort(most)
    assert most[order[-1]] > 1.3 * most[order[9]]
    codec = make_codec("int", float(most[order[9]]) / 118)
    encoding = {"mask": mask, "stats": stats, "codec": codec, "options": OPTIONS}
    return encoding, photo_patches[order[:10]], photo_patches[order[10:]]


def test_encode_refuses_a_code_that_does_not_fit(fine, tiny_model, tmp_path):
    encoding, _, wide = fine
    with pytest.raises(CodeRangeError, match=r"image \d+ \(0+\d+\) has the code -?\d+ in z\d+.* --code-bits 16"):
        encode_images(tiny_model, wide, tmp_path / "out.zarr", **encoding)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CodeRangeError, match=r"\(0+\d+\) has the code"):
        forecast_encoding(*plan_store(tiny_model, wide, **encoding))
    encoding = encoding | {"options": replace(OPTIONS, code_bits=16)}
    store = encode_images(tiny_model, wide, tmp_path / "out.zarr", **encoding)
    assert {*store.metadata.dtypes.values()} == {"int16"}


def test_append_refuses_a_code_that_does_not_fit(fine, tiny_model, tmp_path):
    encoding, fitting, wide = fine
    path = tmp_path / "out.zarr"
    encode_images(tiny_model, fitting, path, **encoding)
    before = tree(path)
    for call in (append, forecast_append):
        with pytest.raises(CodeRangeError, match=r"has the code.*recode --code-bits 16 .*out.zarr OUT"):
            call(tiny_model, wide, path, batch_size=4)
    assert tree(path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["out.zarr"]


@pytest.mark.parametrize(
    ("codec", "changes", "message"),
    [
        ("int", {"packing": "blosc", "code_bits": 8}, "code_bits .--code-bits. is 8.* blosc are int16"),
        ("float16", {"code_bits": 8}, "float16"),
        ("float32", {"code_bits": 16}, "float32"),
        ("float16", {"packing": "archive"}, "archive is for integer codes"),
        ("int", {"packing": "gzip"}, "'gzip'"),
    ],
)
def test_settings_that_do_not_go_together(stats, photo_patches, tiny_model, codec, changes, message):
    options, mask = replace(EncodeOptions(batch_size=4), **changes), LatentMask.from_keep(stats, 0.5)
    with pytest.raises(UsageError, match=message):
        plan_store(tiny_model, photo_patches, mask=mask, stats=stats, codec=make_codec(codec), options=options)


def test_codes_have_8_or_16_bits():
    with pytest.raises(UsageError, match="is 12; give 8 or 16"):
        EncodeOptions(code_bits=12)
