"""Images to a store through the public API: everything of every image arrives, whatever happens on the way."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray
import zarr

from hvae_codec import LatentMask, encode_images, kl_stats, load_model, make_codec, open_images, open_store, repair
from hvae_codec.analysis.reconstruction import SizeMeter
from hvae_codec.config import CHUNK_BYTES
from hvae_codec.data.sources import as_source
from hvae_codec.encode import in_process
from hvae_codec.encode.coder import LatentCoder
from hvae_codec.encode.pipeline import EncodeOptions, encode_worker
from hvae_codec.encode.repair import RepairOptions
from hvae_codec.encode.sketch import SKETCH
from hvae_codec.errors import DataError, StoreError, UsageError
from hvae_codec.model.checkpoint import WEIGHTS_FILE, load_weights, save_model
from hvae_codec.model.hvae import HVAE
from hvae_codec.store.arrays import chunk_length
from hvae_codec.store.metadata import SourceRecord
from hvae_codec.store.workers import Worker
from photos import save_png
from stores import tree

IMAGES = 600
"""Two row groups of 256 and a short one."""


@pytest.fixture(scope="module")
def images(cut_patches) -> np.ndarray:
    return cut_patches(IMAGES)


@pytest.fixture(scope="module")
def run(tiny_config, tiny_run, tmp_path_factory) -> Path:
    """A run whose latents differ much from image to image: the tiny one with the weights around z enlarged."""
    weights = load_weights(tiny_run / WEIGHTS_FILE)
    for name, weight in weights.items():
        if any(part in name for part in ("skip", "posterior", "z_conv", "output_conv")):
            weight.mul_(1.6)
        if name.endswith("posterior_conv.bias"):
            weight[len(weight) // 2 :] -= 1.0  # smaller standard deviations
    run = tmp_path_factory.mktemp("runs") / "lively"
    save_model(run, tiny_config, weights)
    return run


@pytest.fixture(scope="module")
def model(run) -> HVAE:
    return load_model(run)


@pytest.fixture(scope="module")
def stats(model, images):
    return kl_stats(model, images[:200])


@pytest.fixture(scope="module")
def mask(stats) -> LatentMask:
    return LatentMask.from_keep(stats, 0.5)


@pytest.fixture(scope="module")
def folder(images, tmp_path_factory) -> Path:
    """The images as files, in two classes, the names' order not that of writing."""
    folder = tmp_path_factory.mktemp("photos")
    for i in reversed(range(IMAGES)):
        save_png(folder / ("cats" if i % 3 else "dögs") / f"{i:03d}.png", images[i])
    return folder


@pytest.fixture(scope="module")
def source(folder):
    return open_images(folder, size=16, channels=3)


@pytest.fixture(scope="module")
def store(model, source, mask, stats, tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "out.zarr"
    return encode_images(model, source, path, mask=mask, stats=stats)


def latent_bytes(store) -> int:
    """Bytes of the chunks of all latent arrays, without the shards' indices (16 bytes a chunk and a checksum)."""
    total = 0
    for resolution in store.resolutions:
        array = store.group[f"z{resolution}"]
        index = 16 * (array.shards[0] // array.chunks[0]) + 4
        shards = [p for p in (store.path / f"z{resolution}" / "c").rglob("*") if p.is_file()]
        assert len(shards) == len(store.row_groups)
        total += sum(p.stat().st_size - index for p in shards)
    return total


def test_every_image_is_where_its_name_is(store, source, model, mask):
    assert len(store) == IMAGES
    assert len(store.row_groups) == 3
    assert store.names == list(source.names)
    assert store.labels == list(source.labels)
    assert set(store.labels) == {"cats", "dögs"}
    assert LatentMask.from_dict(store.mask).to_dict() == mask.to_dict()
    assert store.metadata.source == SourceRecord(fingerprint=source.fingerprint, bytes=source.source_bytes)
    coder = LatentCoder.of_store(store, model)
    for i in (0, 255, 256, 511, 512, 599):
        alone = coder.encode(torch.from_numpy(source.read([i])))
        others = store.stored((i + 1) % IMAGES)
        assert np.mean([(numbers != others[r]).mean() for r, numbers in store.stored(i).items()]) > 0.05
        for resolution, numbers in store.stored(i).items():
            # A number at the edge of rounding may fall to the other side in another batch.
            assert np.abs(numbers.astype(int) - alone[resolution][0]).max() <= 1
            assert (numbers != alone[resolution][0]).mean() < 0.01


def test_the_readmes_python(run, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = images[:60]
    model = load_model(run)
    elbo = model.elbo(torch.from_numpy(images))
    assert elbo.nelbo.shape == (60,)
    torch.testing.assert_close(elbo.nelbo, elbo.rate + elbo.distortion)
    stats = kl_stats(model, images)
    mask = LatentMask.from_keep(stats, 0.03)
    assert mask.kept_variates == 1 or mask.kept_dims <= 0.03 * mask.dims
    assert LatentMask.from_cutoff(stats, 0.01).kept_dims > 0
    returned = encode_images(model, images, "out.zarr", mask=mask)
    store = open_store("out.zarr")
    assert len(store) == len(returned) == 60
    latents = store.latents(0)
    assert sum(z.size for z in latents.values()) == mask.kept_dims
    assert all(z.dtype == np.float32 for z in latents.values())
    decoded = store.decode([17, 42])
    assert decoded.shape == (2, 3, 16, 16)
    assert decoded.dtype == np.uint8
    np.testing.assert_allclose(decoded, store.decode(range(60))[[17, 42]], atol=1)
    with pytest.raises(UsageError, match="no variate has more than"):
        LatentMask.from_cutoff(stats, 1e9)


def test_public_names_are_there():
    import hvae_codec

    assert set(hvae_codec.__all__) <= set(dir(hvae_codec))
    assert all(getattr(hvae_codec, name) is not None for name in hvae_codec.__all__)
    with pytest.raises(AttributeError, match="no attribute 'encoed'"):
        hvae_codec.encoed  # noqa: B018


def test_latents_are_read_without_torch(store):
    code = f"""
        import sys
        import hvae_codec
        latents = hvae_codec.open_store({str(store.path)!r}).latents(0)
        assert latents and "torch" not in sys.modules, [m for m in sys.modules if m.startswith("torch")][:3]
        print(sum(z.size for z in latents.values()))
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == store.kept_dims


def test_plain_zarr_and_xarray_read_the_same_latents(store):
    latents = store.latents(slice(None))
    group = zarr.open_group(store.path, mode="r")
    with xarray.open_zarr(store.path, consolidated=False) as dataset:
        assert dataset["name"].values.tolist() == store.names
        for r in store.resolutions:
            plain = group[f"z{r}"][:] * group[f"step{r}"][:][:, None, None]
            labelled = (dataset[f"z{r}"] * dataset[f"step{r}"]).transpose("image", f"c{r}", f"y{r}", f"x{r}")
            np.testing.assert_array_equal(plain, latents[f"z{r}"])
            np.testing.assert_array_equal(labelled.values, latents[f"z{r}"])


def test_plain_zarr_scatters_single_positions(images, model, stats, tmp_path):
    mask = LatentMask.from_keep(stats, 0.1, granularity="position")
    store = encode_images(model, images[:9], tmp_path / "out.zarr", mask=mask, stats=stats)
    assert (store.kept_dims, store.columns.granularity) == (mask.kept_dims, "position")
    group = zarr.open_group(store.path, mode="r")
    planes = [np.full((9, *keep.shape), np.nan, np.float32) for keep in mask.keep]
    for r in store.resolutions:
        z = group[f"z{r}"][:] * group[f"step{r}"][:]
        for column, (latent_group, variate, y, x) in enumerate(group[f"dimension{r}"][:]):
            planes[latent_group][:, variate, y, x] = z[:, column]
    coder, z = LatentCoder.of_store(store, model), store.latents(slice(None))
    for index, (plane, keep) in enumerate(zip(planes, mask.keep, strict=True)):
        np.testing.assert_array_equal(~np.isnan(plane), np.broadcast_to(keep, plane.shape))
        if index in coder.groups:
            kept = coder.groups[index]
            expected = z[f"z{kept.resolution}"][:, kept.columns]
            own = torch.from_numpy(plane)[:, kept.variates]
            np.testing.assert_array_equal(kept.take(own).numpy(), expected)


class Stop(Exception):  # noqa: N818 - not an error
    """The process dies."""


@pytest.mark.slow
@pytest.mark.parametrize(("after", "granularity"), [(256, "variate"), (512, "variate"), (256, "position")])
def test_an_interrupted_encode_goes_on(source, model, stats, tmp_path, after, granularity):
    path, unbroken = tmp_path / "out.zarr", tmp_path / "unbroken.zarr"
    mask = LatentMask.from_keep(stats, 0.5, granularity=granularity)
    encode_images(model, source, unbroken, mask=mask, stats=stats)

    def stop(done, total):
        assert total == IMAGES
        if done == after:
            raise Stop

    with pytest.raises(Stop):
        encode_images(model, source, path, mask=mask, stats=stats, progress=stop)
    assert not path.exists()
    with pytest.raises(StoreError, match="is unfinished; run the same"):
        open_store(path)
    seen: list[int] = []
    encode_images(model, source, path, mask=mask, stats=stats, progress=lambda done, total: seen.append(done))
    # What was being written when it stopped may have been finished.
    assert seen[-1:] in ([], [IMAGES])
    assert set(seen) <= set(range(after + 256, IMAGES, 256)) | {IMAGES}
    assert tree(path) == tree(unbroken)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.zarr", "unbroken.zarr"]


@pytest.fixture(params=[1, 4])
def cores(request):
    """PyTorch on so many threads, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.slow
def test_what_is_encoded_with_it_does_not_change_an_image(model, images, stats, tmp_path, cores):
    """With whole batches, with a short one, by workers, and again by repair: the same bytes."""
    mask, codec = LatentMask.from_keep(stats, 0.1), make_codec("float32")
    some, options = images[:37], EncodeOptions(row_group_size=32, batch_size=16, evaluate=True, verify=True)
    arguments = {"mask": mask, "codec": codec, "stats": stats, "options": options}
    encode_images(model, some, tmp_path / "whole.zarr", **arguments)
    whole = tree(tmp_path / "whole.zarr")
    for number in range(2):
        encode_worker(model, some, tmp_path / "shared.zarr", Worker(number, 2), **arguments)
    assert tree(tmp_path / "shared.zarr") == whole

    latents = max(file for file in whole if re.match(r"z\d+/c/1/", file))
    for file in (latents, "rate/c/1", f"{SKETCH}/c/1"):
        damaged = tmp_path / "shared.zarr" / file
        damaged.write_bytes(damaged.read_bytes()[:-3])
    repair(tmp_path / "shared.zarr", as_source(some), model, options=RepairOptions(batch_size=16))
    assert tree(tmp_path / "shared.zarr") == whole


def test_another_encode_does_not_go_on(source, model, mask, stats, tmp_path):
    path = tmp_path / "out.zarr"

    def stop(done, total):
        raise Stop

    def start(source, mask, **options):
        with pytest.raises(Stop):
            encode_images(model, source, path, mask=mask, stats=stats, progress=stop, **options)

    start(source, mask)
    positions = LatentMask.from_keep(stats, 0.5, granularity="position")
    for other, kept in (
        (source.subset(range(599)), mask),
        (source, LatentMask.from_keep(stats, 0.2)),
        (source, positions),
    ):
        with pytest.raises(StoreError, match="unfinished store of other images"):
            encode_images(model, other, path, mask=kept, stats=stats)
    start(source.subset(range(300)), mask, options=EncodeOptions(overwrite=True))


def test_a_store_is_overwritten_only_when_asked(images, model, mask, stats, tmp_path):
    path = tmp_path / "out.zarr"
    encode_images(model, images[:5], path, mask=mask, stats=stats)
    before = tree(path)
    with pytest.raises(StoreError, match=r"exists; .*--overwrite"):
        encode_images(model, images[:9], path, mask=mask, stats=stats)
    assert tree(path) == before
    encode_images(model, images[:9], path, mask=mask, stats=stats, options=EncodeOptions(overwrite=True))
    assert len(open_store(path)) == 9
    assert [p.name for p in tmp_path.iterdir()] == ["out.zarr"]
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "cat.png").write_bytes(b"x")
    with pytest.raises(StoreError, match="no store of this package"):
        encode_images(model, images[:5], foreign, mask=mask, stats=stats, options=EncodeOptions(overwrite=True))
    assert [p.name for p in foreign.iterdir()] == ["cat.png"]


def test_what_cannot_be_encoded_is_refused(images, model, mask, stats, tmp_path):
    wrong = {
        "other hash": LatentMask(mask.keep, mask.resolutions, "0" * 64),
        "other shape": LatentMask(mask.keep[:-1], mask.resolutions[:-1], mask.model_hash),
        "other resolution": LatentMask(mask.keep, (1, *mask.resolutions[1:]), ""),
    }
    path = tmp_path / "out.zarr"
    for name, other in wrong.items():
        with pytest.raises(UsageError, match="made for another model"):
            encode_images(model, images[:5], path, mask=other, stats=stats)
        assert not list(tmp_path.iterdir()), name
    nothing = LatentMask(tuple(keep & False for keep in mask.keep), mask.resolutions)
    with pytest.raises(StoreError, match="keeps no latents"):
        encode_images(model, images[:5], path, mask=nothing, stats=stats)
    for bad, message in (
        (images[:0], "no image in it"),
        (as_source(images).subset([]), "no images to encode"),
        (images[:5].astype(float), "give uint8"),
        (images[:5, :1], r"\[1, 16, 16\]; .* \[3, 16, 16\]"),
        (images[:5, :, :8, :8], r"images are \[3, 8, 8\]"),
    ):
        with pytest.raises(DataError, match=message):
            encode_images(model, bad, path, mask=mask, stats=stats)
    assert not path.exists()
    encode_images(model, images[:5], path, mask=mask, stats=stats)  # nothing that failed is in the way
    assert [p.name for p in tmp_path.iterdir()] == ["out.zarr"]


def test_statistics_of_another_model_are_refused(images, model, mask, stats, tmp_path):
    other = type(stats)(stats.kl_bits[:-1], stats.posterior_std[:-1], stats.images, "0" * 64)
    with pytest.raises(UsageError, match="measured with another model"):
        encode_images(model, images[:5], tmp_path / "out.zarr", mask=mask, stats=other)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 50, 1000])
def test_the_batch_size_changes_no_more_than_rounding(images, model, mask, stats, tmp_path, batch_size):
    images = images[:300]
    usual = encode_images(model, images, tmp_path / "a.zarr", mask=mask, stats=stats)
    options = EncodeOptions(batch_size=batch_size)
    other = encode_images(model, images, tmp_path / "b.zarr", mask=mask, stats=stats, options=options)
    numbers, differing = 0, np.zeros(len(images), dtype=bool)
    for r, codes in usual.stored(slice(None)).items():
        flips = codes != other.stored(slice(None))[r]
        assert flips.mean() < 1e-3
        differing |= flips.any(axis=(1, 2, 3))
        numbers += codes.size
    assert numbers == len(images) * mask.kept_dims
    assert differing.mean() < 0.05
    a, b = (LatentCoder.of_store(s, model).decode(s.stored(slice(None))) for s in (usual, other))
    torch.testing.assert_close(a[~differing], b[~differing], rtol=0, atol=1e-4)


def test_integer_codes_are_small(images, model, mask, stats, store, tmp_path):
    """Measured on a larger model: 4.47 bits/dim as float16, 0.32 as codes."""
    halves = encode_images(model, images, tmp_path / "h.zarr", mask=mask, stats=stats, codec=make_codec("float16"))
    assert halves.kept_dims == store.kept_dims
    assert latent_bytes(halves) > 4 * latent_bytes(store)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keep", "codec", "granularity"),
    [(0.1, "int", "variate"), (1.0, "int", "variate"), (0.5, "float16", "variate"), (0.1, "int", "position")],
)
def test_sizes_are_known_before_a_store_is_written(images, model, stats, tmp_path, keep, codec, granularity):
    mask = LatentMask.from_keep(stats, keep, granularity=granularity)
    written = encode_images(model, images, tmp_path / "o.zarr", mask=mask, stats=stats, codec=make_codec(codec))
    coder = LatentCoder.of_store(written, model)
    meter = SizeMeter(written.metadata.packing, written.spec().array_dtypes)
    for i in range(0, IMAGES, 100):
        meter.add(coder.encode(torch.from_numpy(images[i : i + 100])))
    assert meter.total_bytes() / IMAGES == pytest.approx(latent_bytes(written) / IMAGES, rel=0.05)
    for r in written.resolutions:
        image_bytes = 2 * math.prod(written.columns.item(r))
        assert written.group[f"z{r}"].chunks[0] == chunk_length(256, CHUNK_BYTES, image_bytes)


@pytest.mark.parametrize("shape", ["first row group", "a later one"])
def test_latents_that_the_codec_would_clip_are_refused_and_another_step_works(
    model, images, stats, mask, tmp_path, monkeypatch, shape
):
    path, codec = tmp_path / "out.zarr", make_codec("int", 1e-6)
    if shape == "a later one":
        real, calls = in_process.check_clipped, iter(range(9))
        monkeypatch.setattr(in_process, "check_clipped", lambda *a: real(*a) if next(calls) else None)
    with pytest.raises(UsageError, match=r"[\d,]+ of [\d,]+ latents of images \d.*step 1e-06; give a larger --step"):
        encode_images(model, images[:500], path, mask=mask, stats=stats, codec=codec)
    assert not list(tmp_path.iterdir())
    assert len(encode_images(model, images[:5], path, mask=mask, stats=stats)) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"row_group_size": 10**12}, r"--shard\) is 1000000000000; give 1 to 1048576"),
        ({"row_group_size": 0}, r"--shard\) is 0; give 1"),
        ({"chunk_bytes": 10**12}, r"--chunk\) is 1000000000000; give 1 to"),
        ({"batch_size": 0}, r"--batch-size\) is 0; give 1"),
        ({"row_group_size": 1000003}, r"1,000,003 images have batches of 1, where 64 would do; give --shard 1000000"),
        ({"row_group_size": 521, "batch_size": 1}, "521 images have chunks of 1, where .*; give --shard 512"),
    ],
)
def test_sizes_that_cannot_be_right(model, images, stats, mask, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        encode_images(
            model, images[:5], tmp_path / "out.zarr", mask=mask, stats=stats, options=EncodeOptions(**options)
        )
    assert not list(tmp_path.iterdir())
