"""A store back to a folder: names and classes as they were, nothing outside it, nothing half-done that looks whole."""

from __future__ import annotations

import csv
import dataclasses
import os
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hvae_codec import open_store
from hvae_codec.data.sources import as_source, open_images
from hvae_codec.encode import decode_to_files
from hvae_codec.encode.decode_to_files import decode_to_folder
from hvae_codec.encode.pipeline import encode_images
from hvae_codec.encode.png_names import _inside, png_names
from hvae_codec.errors import DataError, StoreError
from hvae_codec.prune.kl_stats import kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.storage.new_folder import MARKER
from stores import tree

NAMES = ["1.png", "cats/1.jpg", "cats/2.jpg", "cats/2.png", "cats/Ä b.webp", "dogs/old.2020/1.tiff", "train/x/y/z.GIF"]


@pytest.fixture(scope="module")
def stats(tiny_model, photo_patches):
    return kl_stats(tiny_model, photo_patches)


@pytest.fixture(scope="module")
def make_store(tiny_model, stats, photo_patches, tmp_path_factory):
    def make(names):
        source = dataclasses.replace(as_source(photo_patches[: len(names)]), names=tuple(names))
        path = tmp_path_factory.mktemp("stores") / "out.zarr"
        return encode_images(tiny_model, source, path, mask=LatentMask.from_keep(stats, 0.5), stats=stats)

    return make


@pytest.fixture(scope="module")
def store(make_store):
    return make_store(NAMES)


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_names_and_class_folders_come_back(store, tiny_model, tmp_path):
    seen = []
    out = tmp_path / "deep" / "out"
    assert decode_to_folder(store, tiny_model, out, batch_size=3, progress=lambda *done: seen.append(done)) == 7
    assert seen == [(3, 7), (6, 7), (7, 7)]
    expected = ["1.png", "cats/1.png", "cats/2.jpg.png", "cats/2.png", "cats/Ä b.png"]
    expected += ["dogs/old.2020/1.png", "train/x/y/z.png"]
    assert files(out) == sorted(expected)
    pixels = store.decode(range(7), tiny_model)
    for name, image in zip(expected, pixels, strict=True):
        with Image.open(out / name) as file:
            assert file.format == "PNG"
            decoded = np.asarray(file).transpose(2, 0, 1)
        np.testing.assert_allclose(decoded, image, atol=1)
    assert sorted(open_images(out, size=16, channels=3).names) == sorted(expected)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]


def test_single_positions_are_decoded_too(tiny_model, stats, photo_patches, tmp_path):
    mask = LatentMask.from_keep(stats, 0.1, granularity="position")
    store = encode_images(tiny_model, photo_patches[:3], tmp_path / "out.zarr", mask=mask, stats=stats)
    decode_to_folder(store, tiny_model, tmp_path / "out", file_format="npy")
    images = np.load(tmp_path / "out" / "images.npy")
    np.testing.assert_allclose(images.transpose(0, 3, 1, 2), store.decode(range(3), tiny_model), atol=1)


def test_npy_is_one_array_with_its_names(store, tiny_model, tmp_path):
    assert decode_to_folder(store, tiny_model, tmp_path / "out", file_format="npy", batch_size=4) == 7
    assert files(tmp_path / "out") == ["images.npy", "names.csv"]
    images = np.load(tmp_path / "out" / "images.npy")
    assert (images.shape, images.dtype) == ((7, 16, 16, 3), np.uint8)
    np.testing.assert_allclose(images.transpose(0, 3, 1, 2), store.decode(range(7), tiny_model), atol=1)
    with open(tmp_path / "out" / "names.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [["name", "label"], *([name, ""] for name in NAMES)]
    assert len(open_images(tmp_path / "out" / "images.npy", size=16, channels=3)) == 7


@pytest.mark.parametrize("file_format", ["png", "npy"])
def test_ranges(store, tiny_model, tmp_path, file_format):
    out = tmp_path / "out"
    assert decode_to_folder(store, tiny_model, out, images=range(5, 0, -2), file_format=file_format) == 3
    everything = store.decode(range(7), tiny_model)
    if file_format == "npy":
        decoded = np.load(out / "images.npy").transpose(0, 3, 1, 2)
        np.testing.assert_allclose(decoded, everything[[5, 3, 1]], atol=1)
    else:
        # The name of image 3 is alone among those that are decoded.
        assert files(out) == ["cats/1.png", "cats/2.png", "dogs/old.2020/1.png"]


def test_grey_images(tiny_config, cut_patches, tmp_path):
    from hvae_codec.model.hvae import HVAE

    for channels in (1, 2):
        model = HVAE(dataclasses.replace(tiny_config.model, channels=channels)).eval()
        images = np.repeat(cut_patches(3, 16, 1), channels, axis=1)
        stats = kl_stats(model, images)
        mask = LatentMask.from_keep(stats, 1.0)
        store = encode_images(model, images, tmp_path / f"{channels}.zarr", mask=mask, stats=stats)
        out = tmp_path / f"out{channels}"
        if channels == 1:
            decode_to_folder(store, model, out)
            with Image.open(out / "00000001.png") as file:
                assert (file.mode, file.size) == ("L", (16, 16))
        else:
            with pytest.raises(DataError, match=r"1 or 3 channels, .* 2; .*--format npy"):
                decode_to_folder(store, model, out)
            assert not out.exists()
            decode_to_folder(store, model, out, file_format="npy")
            assert np.load(out / "images.npy").shape == (3, 16, 16, 2)


@pytest.mark.parametrize(
    "name",
    ["../x.png", "/etc/x", "a/../../b", "a/../b", "..", "", "a\0b"],
)
def test_names_never_lead_out_of_the_folder(tiny_model, make_store, tmp_path, name):
    with pytest.raises(StoreError, match="leads out of the folder"):
        png_names(["good.png", name])
    with pytest.raises(StoreError, match="leads out of the folder"):
        _inside(name, windows=True)
    if name in ("../x.png", "/etc/x"):
        store = make_store(["good.png", name])
        out = tmp_path / "below" / "out"
        with pytest.raises(StoreError, match=r"leads out of.*--format npy"):
            decode_to_folder(store, tiny_model, out)
        assert not files(tmp_path)
        decode_to_folder(store, tiny_model, out, file_format="npy")
        assert files(tmp_path) == ["below/out/images.npy", "below/out/names.csv"]


@given(st.lists(st.text("ab./\\:", min_size=1, max_size=8), max_size=6, unique=True))
def test_targets_are_distinct_and_inside(names):
    try:
        targets = png_names(names)
    except StoreError:
        return
    assert len(set(targets)) == len(names)
    for target in targets:
        assert target.suffix == ".png"
        assert not target.is_absolute()
        assert ".." not in target.parts


@pytest.mark.parametrize("name", ["C:\\x", "C:x.png", "..\\x", "\\\\host\\x", "\\x", "a:1.png"])
def test_names_that_lead_out_of_the_folder_on_windows_alone(name):
    with pytest.raises(StoreError, match="leads out of the folder"):
        _inside(name, windows=True)
    assert _inside(name, windows=False).parts == (name,)


def test_a_backslash_separates_on_windows_alone():
    assert _inside("b\\x.png", windows=True) == PurePosixPath("b/x.png")
    assert _inside("b\\x.png", windows=False).parts == ("b\\x.png",)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_names_that_other_systems_forbid_are_kept_here(make_store, tiny_model, tmp_path):
    names = ["shots/12:30:05.png", "a b/#1?.jpg", "a:1.png", "b\\x.png", "..\\y.png", " ", "\x1b[31m\n.png"]
    decode_to_folder(make_store(names), tiny_model, tmp_path / "out")
    expected = ["shots/12:30:05.png", "a b/#1?.png", "a:1.png", "b\\x.png", "..\\y.png", " .png", "\x1b[31m\n.png"]
    assert files(tmp_path / "out") == sorted(expected)


@pytest.mark.parametrize("name", ["x" * 252 + ".jp", "d" * 300 + "/1.png"])
def test_names_that_are_too_long_for_files_leave_nothing(make_store, tiny_model, tmp_path, name):
    with pytest.raises(StoreError, match=r"(x|1).* cannot be the name of a file here \(.*long.*--format npy"):
        decode_to_folder(make_store(["good.png", name]), tiny_model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


DEVICES = ["CON", "nul.png", "a/Aux.tar.gz", "COM1/x.png", "lpt9.jpg", "LPT²", "prn .png", "conin$"]


@pytest.mark.parametrize("name", [*DEVICES, "a.png:stream", "12:30.png", "a./b.png", ".. /b.png", "a /b.png", "b.png "])
def test_names_that_mean_something_else_on_windows_are_refused_there(name):
    with pytest.raises(StoreError, match=r"leads out of.*--format npy"):
        _inside(name, windows=True)
    assert _inside(name, windows=False) == PurePosixPath(name)


@pytest.mark.parametrize(
    "name", ["console.png", "a/com10.png", "nullable/x.png", ".hidden.png", "a b.png", "aux1/1.png"]
)
def test_names_like_others_are_kept_on_windows_too(name):
    assert _inside(name, windows=True) == PurePosixPath(name)


@pytest.mark.parametrize(("names", "same"), [(["a.png", "A.png"], True), (["a.png", "a.png/b.jpg"], False)])
def test_names_that_the_file_system_takes_for_one_do_not_overwrite(
    make_store, tiny_model, tmp_path, monkeypatch, names, same
):
    store = make_store(names)
    if same:  # as where case does not count
        lowered = lambda names: [PurePosixPath(str(path).lower()) for path in png_names(names)]  # noqa: E731
        monkeypatch.setattr("hvae_codec.encode.decode_to_files.png_names", lowered)
    with pytest.raises(StoreError, match=r"two images .* [ab]\.png"):
        decode_to_folder(store, tiny_model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_two_images_of_one_name(make_store, tiny_model, tmp_path):
    store = make_store(["a.png", "b.png", "a.png"])
    with pytest.raises(StoreError, match=r"two images .* a\.png; .*--format npy"):
        decode_to_folder(store, tiny_model, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    decode_to_folder(store, tiny_model, tmp_path / "out", file_format="npy")
    assert len(np.load(tmp_path / "out" / "images.npy")) == 3


def test_collisions():
    assert [str(p) for p in png_names(["a.jpg", "a.png", "a.PNG", "b/a.jpg"])] == [
        "a.jpg.png",
        "a.png",
        "a.PNG.png",
        "b/a.png",
    ]
    with pytest.raises(StoreError, match=r"two images .* a\.jpg\.png; .*--format npy"):
        png_names(["a.jpg", "a.png", "a.jpg.png"])


@pytest.mark.parametrize("file_format", ["png", "npy"])
def test_a_folder_that_is_not_empty_stays_as_it_is(store, tiny_model, tmp_path, file_format):
    out = tmp_path / "out"
    out.mkdir()
    decode_to_folder(store, tiny_model, out, file_format=file_format)
    before = {name: (out / name).read_bytes() for name in files(out)}
    with pytest.raises(DataError, match="is not empty; give"):
        decode_to_folder(store, tiny_model, out, file_format=file_format)
    assert {name: (out / name).read_bytes() for name in files(out)} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="exists and is not empty"):
        decode_to_folder(store, tiny_model, tmp_path / "file", file_format=file_format)
    assert (tmp_path / "file").read_text() == "mine"


class Stop(Exception):  # noqa: N818 - not an error
    """The process dies."""


def interrupt_at(image: int, reason: BaseException):
    """A function that reports progress, until it has `image` images."""

    def stop(done, total):
        if done >= image:
            raise reason

    return stop


@pytest.mark.parametrize("file_format", ["png", "npy"])
@pytest.mark.parametrize("reason", [Stop(), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_decode_goes_on_where_it_stopped(store, tiny_model, tmp_path, file_format, reason):
    out, partial, seen = tmp_path / "out", tmp_path / "out.partial", []
    decode_to_folder(store, tiny_model, tmp_path / "whole", file_format=file_format, batch_size=2)
    with pytest.raises(type(reason)):
        decode_to_folder(
            store, tiny_model, out, file_format=file_format, batch_size=2, progress=interrupt_at(4, reason)
        )
    assert not out.exists()
    last = max((p for p in partial.rglob("*.*") if p.name != MARKER), key=lambda p: p.stat().st_mtime_ns)
    with open(last, "r+b") as file:  # as after kill -9
        file.truncate(last.stat().st_size - 3)
    decode_to_folder(
        store, tiny_model, out, file_format=file_format, batch_size=2, progress=lambda *done: seen.append(done)
    )
    assert seen[0][0] >= 2
    assert seen[-1] == (7, 7)
    assert tree(out) == tree(tmp_path / "whole")
    assert not partial.exists()


@pytest.mark.parametrize("file_format", ["png", "npy"])
def test_another_decode_begins_anew(store, tiny_model, tmp_path, file_format):
    def stopped(**options):
        with pytest.raises(Stop):
            decode_to_folder(store, tiny_model, tmp_path / "out", progress=interrupt_at(1, Stop()), **options)

    stopped(batch_size=2)
    stopped(images=range(3), file_format="npy", batch_size=2)
    seen = []
    options = {"file_format": file_format, "batch_size": 3}
    decode_to_folder(store, tiny_model, tmp_path / "out", progress=lambda *done: seen.append(done), **options)
    assert seen == [(3, 7), (6, 7), (7, 7)]
    decode_to_folder(store, tiny_model, tmp_path / "whole", **options)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_folder_of_that_name_which_decode_did_not_leave_stays(store, tiny_model, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match=r"out\.partial is in the way.*give another folder"):
        decode_to_folder(store, tiny_model, tmp_path / "out")
    assert tree(tmp_path) == {"out.partial/mine.txt": b"mine"}


def test_a_kill_between_the_name_and_the_end(store, tiny_model, tmp_path, monkeypatch):
    out, unlink = tmp_path / "out", Path.unlink

    def stop(path, *args, **kwargs):
        if path == out / MARKER:
            raise Stop
        unlink(path, *args, **kwargs)

    monkeypatch.setattr(Path, "unlink", stop)
    with pytest.raises(Stop):
        decode_to_folder(store, tiny_model, out)
    monkeypatch.undo()
    assert decode_to_folder(store, tiny_model, out) == 7
    assert MARKER not in files(out)
    with pytest.raises(DataError, match="is not empty"):
        decode_to_folder(store, tiny_model, out)


def test_two_names_that_are_one_file_are_found_after_a_kill_too(make_store, tiny_model, tmp_path, monkeypatch):
    """Where case does not count, the second image must not be taken for one that was written."""
    store = make_store(["a.png", "A.png", "b.png"])
    lowered = lambda names: [PurePosixPath(str(path).lower()) for path in png_names(names)]  # noqa: E731
    monkeypatch.setattr("hvae_codec.encode.decode_to_files.png_names", lowered)
    monkeypatch.setattr("hvae_codec.encode.decode_to_files._save", interrupt_at_second(decode_to_files._save))
    with pytest.raises(Stop):
        decode_to_folder(store, tiny_model, tmp_path / "out", batch_size=1)
    monkeypatch.undo()
    monkeypatch.setattr("hvae_codec.encode.decode_to_files.png_names", lowered)
    with pytest.raises(StoreError, match="two images"):
        decode_to_folder(store, tiny_model, tmp_path / "out", batch_size=1)
    assert not list(tmp_path.iterdir())


def interrupt_at_second(save):
    calls = iter(range(9))

    def stop(*args):
        if next(calls):
            raise Stop
        save(*args)

    return stop


def test_after_a_repair_the_same_call_goes_on(make_store, tiny_model, tmp_path):
    store = make_store(NAMES)
    shard = next(p for p in (store.path / f"z{store.resolutions[-1]}" / "c").rglob("*") if p.is_file())
    content = bytearray(shard.read_bytes())
    damaged = content.copy()
    damaged[len(content) // 4] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(StoreError, match="damaged"):
        decode_to_folder(store, tiny_model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    shard.write_bytes(content)
    assert decode_to_folder(open_store(store.path), tiny_model, tmp_path / "out") == 7
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_images_of_two_stores_are_not_mixed(tiny_model, stats, photo_patches, tmp_path):
    """Stores of equal names, sizes and fingerprints, but of other pixels."""
    stores = []
    for name, pixels in (("a", photo_patches[:6]), ("b", photo_patches[6:12])):
        source = as_source(pixels)
        source = dataclasses.replace(source, names=tuple(f"{i}.png" for i in range(6)))
        source.__dict__["fingerprint"] = "the same"
        mask = LatentMask.from_keep(stats, 0.5)
        stores.append(encode_images(tiny_model, source, tmp_path / f"{name}.zarr", mask=mask, stats=stats))
    first, second = stores
    assert first.metadata.fingerprint == second.metadata.fingerprint
    with pytest.raises(Stop):
        decode_to_folder(first, tiny_model, tmp_path / "out", batch_size=2, progress=interrupt_at(4, Stop()))
    decode_to_folder(second, tiny_model, tmp_path / "out", batch_size=2)
    decode_to_folder(second, tiny_model, tmp_path / "whole", batch_size=2)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
