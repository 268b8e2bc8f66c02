"""An image whose codes do not fit into the store that was begun: nothing of what was encoded before it is lost."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from hvae_codec import open_store, repair
from hvae_codec.data.sources import as_source
from hvae_codec.encode import pipeline
from hvae_codec.encode.append import append
from hvae_codec.encode.forecast import forecast_encoding
from hvae_codec.encode.pipeline import EncodeOptions, encode_images, encode_worker, plan_store
from hvae_codec.errors import UsageError
from hvae_codec.prune.kl_stats import KLStats, kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.store.narrowing import CodeRangeError
from hvae_codec.store.quantiser import IntCodec
from hvae_codec.store.workers import Worker
from stores import tree

CODEC = IntCodec(0.06)  # of photographs, codes reach 112; of a black image, 136
OPTIONS = EncodeOptions(row_group_size=8, batch_size=8)
PLANNED, WIDE = {2: "int8", 8: "int8", 16: "int8"}, {2: "int16", 8: "int8", 16: "int8"}


@pytest.fixture
def images(photo_patches) -> np.ndarray:
    """Three row groups; the last image is black."""
    return np.concatenate([photo_patches[:23], np.zeros_like(photo_patches[:1])])


@pytest.fixture(scope="module")
def stats(tiny_model, photo_patches) -> KLStats:
    return kl_stats(tiny_model, photo_patches, sample=False)


@pytest.fixture(autouse=True)
def _no_margin(monkeypatch) -> None:
    """Plan bytes for all arrays, as a ranking does that never saw a black image."""
    monkeypatch.setattr("hvae_codec.encode.code_dtypes.MARGIN", 1.0)


@pytest.fixture
def given(tiny_model, stats):
    return {"mask": LatentMask.from_keep(stats, 0.3), "codec": CODEC, "stats": stats, "options": OPTIONS}


@pytest.fixture
def expected(tiny_model, images, given, tmp_path, monkeypatch) -> dict[str, bytes]:
    """What is encoded if the type is known before."""
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "array_dtypes", lambda *_, **__: WIDE)
        store = encode_images(tiny_model, images, tmp_path / "expected.zarr", **given)
    assert abs(store.raw_latents(2, range(24)).astype(int)).max() > 127
    return tree(store.path)


class Heard:
    """What an encode says, and how far it gets."""

    def __init__(self) -> None:
        self.sentences, self.rewritten, self.done = [], [], []
        self.told = {
            "on_warning": self.sentences.append,
            "widening": lambda *call: self.rewritten.append(call),
            "progress": lambda *call: self.done.append(call),
        }


def test_an_encode_makes_room_and_goes_on(tiny_model, images, given, expected, tmp_path):
    assert plan_store(tiny_model, images, **given)[1].array_dtypes == PLANNED
    heard = Heard()
    store = encode_images(tiny_model, images, tmp_path / "out.zarr", **given, **heard.told)
    assert tree(store.path) == expected
    (sentence,) = heard.sentences
    assert all(part in sentence for part in ("image 23", "has the code", "z2", "16 bits"))
    assert heard.rewritten == [(8, 16), (16, 16)]
    assert heard.done[-1] == (24, 24)


def test_so_does_one_with_8_bits_asked_for(tiny_model, images, given, expected, tmp_path):
    given["options"] = dataclasses.replace(OPTIONS, code_bits=8, packing="archive")
    store = encode_images(tiny_model, images, tmp_path / "out.zarr", **given)
    numbers = store.raw_latents(2, range(24))
    np.testing.assert_array_equal(numbers, open_store(tmp_path / "expected.zarr").raw_latents(2, range(24)))
    assert numbers.dtype == np.int16


def test_workers_elsewhere_make_room(tiny_model, images, given, expected, tmp_path):
    """Also for an image in the first row group, while others are under way."""
    for number, order in enumerate((range(24), range(23, -1, -1))):
        heard = Heard()
        with ThreadPoolExecutor(2) as pool:
            path = tmp_path / f"{number}.zarr"
            store = encode_images(tiny_model, images[order], path, **given, executor=pool, **heard.told)
        assert len(heard.sentences) == 1
        assert heard.done[-1] == (24, 24)
        if not number:
            assert tree(store.path) == expected
        assert store.raw_latents(2, [0]).dtype == np.int16


@pytest.mark.parametrize("moment", ["_noted", "_rewrite_row_group", "documents_of"])
def test_a_killed_encode_finds_what_it_rewrote(tiny_model, images, given, expected, tmp_path, monkeypatch, moment):
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(f"hvae_codec.store.widening.{moment}", kill)
        with pytest.raises(Killed):
            encode_images(tiny_model, images, tmp_path / "out.zarr", **given)
    heard = Heard()
    store = encode_images(tiny_model, images, tmp_path / "out.zarr", **given, **heard.told)
    assert tree(store.path) == expected
    assert heard.done[0][0] == 24  # of which 16 were there
    assert len(heard.sentences) == (moment != "_rewrite_row_group")


def test_one_of_several_workers_leaves_that_to_one_alone(tiny_model, images, given, expected, tmp_path):
    path = tmp_path / "out.zarr"
    assert encode_worker(tiny_model, images, path, Worker(1, 2), **given) is None
    with pytest.raises(CodeRangeError, match=r"image 23.* has the code -?\d+ in z2.*without --worker") as error:
        encode_worker(tiny_model, images, path, Worker(0, 2), **given)
    assert isinstance(error.value, UsageError)
    written = tree(path.with_name("out.zarr.partial"))
    assert {f"committed/c/{r}" for r in (0, 1)} <= {*written}
    assert tree(encode_images(tiny_model, images, path, **given).path) == expected
    for number in (0, 1):
        assert tree(encode_worker(tiny_model, images, path, Worker(number, 2), **given).path) == expected


def test_images_that_are_appended_do_not_change_the_store(tiny_model, images, given, tmp_path):
    path = tmp_path / "out.zarr"
    before = tree(encode_images(tiny_model, images[:20], path, **given).path)
    with pytest.raises(CodeRangeError, match=r"image 23.*recode --code-bits 16 .*out\.zarr"):
        append(tiny_model, images[20:], path, prefix="new/")
    assert tree(path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["out.zarr"]


def test_repair_says_that_an_image_cannot_have_been_encoded(tiny_model, images, given, tmp_path):
    path = tmp_path / "out.zarr"
    encode_images(tiny_model, images[:8], path, **given)
    for damaged in (path / "z2/c/0/0/0/0", path / "checksum/c/0"):  # which would tell other images
        damaged.write_bytes(b"damaged")
    others = np.concatenate([images[:7], images[-1:]])
    report = repair(path, as_source(others), tiny_model)
    assert not report.after.ok
    assert any("image 7" in note and "z2" in note and "another image" in note for note in report.notes), report
    assert (path / "z2/c/0/0/0/0").read_bytes() == b"damaged"


def test_a_forecast_has_the_types_that_its_images_need(tiny_model, images, given):
    encoder, spec = plan_store(tiny_model, images, **given)
    forecast = forecast_encoding(encoder, spec)
    with pytest.raises(CodeRangeError):
        forecast_encoding(encoder, spec, widens=False)
    assert forecast.images == 24
