"""Batches as a GPU has them, on a CPU: filled up and cut, read from buffers, fetched behind; the codes stay."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hvae_codec.data.sources import as_source
from hvae_codec.encode.batch_coder import BatchCoder, BatchDecoder
from hvae_codec.encode.coder import LatentCoder, quantiser_steps
from hvae_codec.encode.decode_to_files import decode_to_folder
from hvae_codec.encode.encoded_store import EncodedStore
from hvae_codec.encode.image_encoder import ImageEncoder
from hvae_codec.encode.pipeline import EncodeOptions, encode_images
from hvae_codec.errors import StoreError
from hvae_codec.model.checkpoint import load_model
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.recorded import OnBatches, Recording
from hvae_codec.prune.kl_stats import KLStats, kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.store.quantiser import FloatCodec, IntCodec

SIZE = 8


class AlwaysOnBuffers(Recording):
    """What a GPU does: work is given buffers, and a result is overwritten by the next."""

    def of(self, function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
        on_batches, kept = OnBatches(function, device, self._failed), []

        def overwriting(*given: torch.Tensor) -> Any:
            results = on_batches(*given)
            if not kept or [a.shape for a in tensors(results)] != [a.shape for a in tensors(kept[0])]:
                kept[:] = [results]
                return results
            for old, new in zip(tensors(kept[0]), tensors(results), strict=True):
                old.copy_(new)
            return kept[0]

        return overwriting


def tensors(results: Any) -> Iterator[torch.Tensor]:
    if isinstance(results, torch.Tensor):
        yield results
    for result in results if isinstance(results, tuple | list) else ():
        yield from tensors(result)


@pytest.fixture(scope="module")
def stats(tiny_model, photo_patches) -> KLStats:
    return kl_stats(tiny_model, photo_patches)


@pytest.fixture
def like_a_gpu(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> HVAE:
    """The tiny model, whose batches go through it as on a GPU; copies to the host are real ones."""
    monkeypatch.setattr(BatchDecoder, "on_gpu", True)
    monkeypatch.setattr(
        "hvae_codec.model.arriving.Arriving.__init__", lambda self, t: vars(self).update(_copy=t.clone())
    )
    monkeypatch.setattr("hvae_codec.model.arriving.Arriving.numpy", lambda self: self._copy.numpy())
    model = load_model(tiny_run)
    model.recording = AlwaysOnBuffers()
    return model


def coder_of(model: HVAE, stats: KLStats, codec: Any = None, granularity: str = "variate") -> LatentCoder:
    mask, codec = LatentMask.from_keep(stats, 0.4, granularity=granularity), codec or IntCodec()
    return LatentCoder(model, mask, codec, quantiser_steps(mask, codec, stats))


@pytest.mark.parametrize("granularity", ["variate", "position"])
@pytest.mark.parametrize("codec", [IntCodec(), FloatCodec("float32")], ids=lambda codec: codec.name)
def test_an_image_has_the_same_codes_in_every_batch(like_a_gpu, stats, photo_patches, codec, granularity):
    """The last, partial one too, and whatever it was filled up with."""
    coder = coder_of(like_a_gpu, stats, codec, granularity)
    batches = BatchCoder(coder, SIZE)
    whole = batches.start_encoding(photo_patches[:SIZE]).stored()
    some = batches.start_encoding(photo_patches[:3]).stored()
    direct = coder.encode(torch.from_numpy(photo_patches[:SIZE]))
    for resolution, numbers in whole.items():
        assert numbers.shape == (SIZE, *coder.columns.item(resolution))
        assert numbers.dtype == codec.dtype
        np.testing.assert_array_equal(numbers, direct[resolution])
        np.testing.assert_array_equal(some[resolution], numbers[:3])
    pixels = batches.start(whole)()
    np.testing.assert_array_equal(pixels, coder.decode_pixels(direct).numpy())
    np.testing.assert_array_equal(batches.start(some)(), pixels[:3])


@pytest.mark.parametrize("channels_last", [False, True])
def test_on_a_cpu_nothing_is_filled_up(tiny_model, stats, photo_patches, channels_last):
    coder = coder_of(tiny_model, stats)
    batches, few = BatchCoder(coder, SIZE), photo_patches[:3]
    if channels_last:  # as files are read
        few = np.ascontiguousarray(few.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    batch = batches.start_encoding(few)
    assert len(batch.images) == 3
    for resolution, numbers in batch.stored().items():
        np.testing.assert_array_equal(numbers, coder.encode(torch.from_numpy(few))[resolution])


def test_batches_are_fetched_behind_and_in_order(like_a_gpu, stats, photo_patches):
    """20 images in batches of 8: what the model computes for the next one does not spoil what is yet to be fetched."""
    encoder = ImageEncoder.of(coder_of(like_a_gpu, stats), as_source(photo_patches[:20]), 256, SIZE, evaluate=True)
    parts = list(encoder.batches(range(20)))
    assert [len(part["rate"]) for _, part in parts] == [8, 8, 4]
    for first, (stored, measured) in zip((0, 8, 16), parts, strict=True):
        alone = ImageEncoder.of(encoder.coder, encoder.source, 256, SIZE, evaluate=True)
        again, figures = alone.encode_range(range(first, min(first + 8, 20)))
        for resolution, numbers in again.items():
            np.testing.assert_array_equal(stored[resolution], numbers)
        for name, numbers in figures.items():
            np.testing.assert_array_equal(measured[name], numbers)


def test_stores_are_those_of_a_cpu(like_a_gpu, tiny_model, stats, photo_patches, tmp_path):
    """Written, verified, measured and decoded through full batches: equal but for what rounding does to other sizes."""
    options = EncodeOptions(batch_size=SIZE, row_group_size=16, evaluate=True, verify=True)
    mask, stores = LatentMask.from_keep(stats, 0.4), {}
    for name, model in {"gpu": like_a_gpu, "cpu": tiny_model}.items():
        path = tmp_path / f"{name}.zarr"
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(BatchDecoder, "on_gpu", name == "gpu")
            stores[name] = encode_images(model, photo_patches[:20], path, mask=mask, stats=stats, options=options)
            decode_to_folder(stores[name], model, tmp_path / name, file_format="npy", batch_size=SIZE)
    assert_like(stores["gpu"], stores["cpu"])
    pixels = [np.load(tmp_path / name / "images.npy").astype(int) for name in stores]
    assert np.abs(pixels[0] - pixels[1]).max() <= 1


def assert_like(one: EncodedStore, other: EncodedStore) -> None:
    for name in ("rate", "distortion"):
        np.testing.assert_allclose(one.per_image(name), other.per_image(name), rtol=1e-4)
    for resolution, numbers in one.stored(slice(None)).items():
        expected = other.stored(slice(None))[resolution]
        np.testing.assert_array_equal(numbers[:16], expected[:16])
        assert np.mean(numbers == expected) > 0.99


def test_pixels_that_are_not_finite(like_a_gpu, stats, photo_patches):
    coder = coder_of(like_a_gpu, stats, FloatCodec("float32"))
    decoder = BatchDecoder(coder, SIZE)
    stored = coder.encode(torch.from_numpy(photo_patches[:10]))
    assert decoder.decode_checked(stored).shape == (10, 3, 16, 16)
    next(iter(stored.values()))[9] = np.nan
    with pytest.raises(StoreError, match="not finite"):
        decoder.decode_checked(stored)


def test_the_same_decoder_goes_on_after_batches_of_other_sizes(tiny_model, stats, photo_patches):
    coder = coder_of(tiny_model, stats)
    decoder = BatchDecoder(coder, SIZE)
    for start, stop in itertools.pairwise((0, 8, 11, 12, 20)):
        stored = coder.encode(torch.from_numpy(photo_patches[start:stop]))
        np.testing.assert_array_equal(decoder.start(stored)(), coder.decode_pixels(stored).numpy())
