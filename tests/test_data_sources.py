from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import zarr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hvae_codec.data.pixels import fit
from hvae_codec.data.sources import ImageSource, open_images
from hvae_codec.errors import DataError, UsageError

PHOTOGRAPH = skimage.data.astronaut()


def patch(number: int = 0, size: int = 32) -> np.ndarray:
    top, left = 20 * (number // 20), 20 * (number % 20)
    return PHOTOGRAPH[top : top + size, left : left + size]


def save(path: Path, pixels: np.ndarray | Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def one(folder: Path, channels: int = 3, size: int = 32) -> tuple[np.ndarray, ImageSource]:
    source = open_images(folder, size=size, channels=channels)
    return source.read([0])[0], source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(40):
        save(tmp_path / "data" / ("cats" if i % 2 else "dogs") / f"{i:02d}.png", patch(i))
    return tmp_path / "data"


# --- folders


def test_order_names_and_labels(folder: Path):
    save(folder / "a.png", patch())
    save(folder / "A.JPG", patch(), format="JPEG")
    save(folder / "dogs" / "00.bmp", patch())
    source = open_images(str(folder), size=32, channels=3)
    assert list(source.names) == sorted(source.names)
    assert source.names[:2] == ("A.JPG", "a.png")
    assert {"dogs/00.png", "dogs/00.bmp"} <= set(source.names)
    assert source.labels[:3] == ("", "", "cats")
    assert len(source) == len(source.labels) == 43
    assert source.source_bytes == sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def test_lossless_images_of_the_right_size_are_exact(tmp_path: Path):
    for extension in ("png", "bmp", "tiff"):
        save(tmp_path / f"x.{extension}", patch(3))
    save(tmp_path / "y.webp", patch(3), lossless=True)
    source = open_images(tmp_path, size=32, channels=3)
    batch = source.read(range(4))
    assert batch.dtype == np.uint8
    assert batch.flags.c_contiguous
    for image in batch:
        np.testing.assert_array_equal(image, patch(3).transpose(2, 0, 1))
    assert source.resized == source.alpha_dropped == 0


def test_hidden_and_other_files_are_passed_over(folder: Path):
    before = open_images(folder, size=32, channels=3).names
    for name in (".DS_Store", "Thumbs.db", "notes.txt", ".hidden.png", ".git/x.png", "cats/._01.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no image")
    assert open_images(folder, size=32, channels=3).names == before


def test_links_and_odd_names(tmp_path: Path):
    outside = save(tmp_path / "elsewhere" / "x.png", patch(5))
    data = tmp_path / "data"
    save(data / "e\u0301 \u732b \U0001f63a.png", patch(1))
    (data / "link.png").symlink_to(outside)
    (data / "folder").symlink_to(outside.parent)
    (data / "loop").symlink_to(data)
    source = open_images(data, size=32, channels=3)
    assert set(source.names) == {"e\u0301 \u732b \U0001f63a.png", "link.png", "folder/x.png"}
    np.testing.assert_array_equal(source.read([source.names.index("link.png")])[0], patch(5).transpose(2, 0, 1))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path):
    save(tmp_path / "x.png", patch())
    os.rename(tmp_path / "x.png", os.fsencode(tmp_path) + b"/\xff.png")
    with pytest.raises(DataError, match="not UTF-8"):
        open_images(tmp_path, size=32, channels=3)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one encoding of names")
def test_names_are_utf8_in_every_locale(tmp_path: Path):
    save(tmp_path / "K\u00e4se" / "\u732b.png", patch())
    code = (
        "import sys; from hvae_codec.data.sources import open_images; assert sys.getfilesystemencoding() == 'ascii'; "
        f"source = open_images({str(tmp_path)!r}, size=32, channels=3); "
        "print(ascii((source.names, source.labels, source.read([0]).shape)))"
    )
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ascii((("K\u00e4se/\u732b.png",), ("K\u00e4se",), (1, 3, 32, 32)))


def test_runs_stores_and_analyses_are_passed_over(folder: Path):
    before = open_images(folder, size=32, channels=3)
    marks = {
        "cats/x.zarr": ["zarr.json"],
        "dogs/old.zarr": [".zarray"],
        "g": [".zgroup"],
        "runs/a": ["config.json", "model.safetensors"],
        "report": ["cutoffs.json", "cutoffs.csv"],
        "new.partial": [],
        "old.replaced": [],
    }
    for name, files in marks.items():
        save(folder / name / "deep" / "x.png", patch())
        for file in files:
            (folder / name / file).touch()
    source = open_images(folder, size=32, channels=3)
    assert source.container.passed_over == sorted(marks)
    assert source.names == before.names
    assert source.fingerprint == before.fingerprint
    assert open_images(folder / "report", size=32, channels=3).names == ("deep/x.png",)
    with pytest.raises(DataError, match=r"no images in .* besides those of a,"):
        open_images(folder / "runs", size=32, channels=3)


def test_files_that_tell_nothing_alone(folder: Path):
    for name in ("cats/config.json", "dogs/cutoffs.json", "dogs/model.safetensors", "sample-data.json"):
        (folder / name).touch()
    source = open_images(folder, size=32, channels=3)
    assert len(source) == 40
    assert not source.container.passed_over


def test_missing_empty_and_wrong_paths(tmp_path: Path):
    with pytest.raises(DataError, match="there is no"):
        open_images(tmp_path / "nothing", size=32, channels=3)
    with pytest.raises(DataError, match=r"\.png, \.jpg"):
        open_images(tmp_path, size=32, channels=3)
    file = save(tmp_path / "x.png", patch())
    with pytest.raises(DataError, match="not a folder"):
        open_images(file, size=32, channels=3)
    with pytest.raises(UsageError, match="size"):
        open_images(tmp_path, size=0, channels=3)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x.h5", "HDF5"),
        ("x.lmdb/data.mdb", "LMDB"),
        ("train.tfrecord-00000-of-01024", "TFRecord"),
        ("x.beton", "FFCV"),
        ("x/shard.00000.mds", "MDS"),
    ],
)
def test_formats_that_are_not_read_name_the_way_through_python(tmp_path: Path, name: str, kind: str):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=rf"is {kind}, which is not read; .*open_images\(dataset\)"):
        open_images(tmp_path / Path(name).parts[0], size=32, channels=3)


def test_other_files_beside_class_folders_do_not_matter(folder: Path):
    before = open_images(folder, size=32, channels=3).names
    for name in ("features.h5", "copy.tar", "data.parquet", "x.mdb", "train_data.npz"):
        (folder / name).write_bytes(b"x")
    assert open_images(folder, size=32, channels=3).names == before


@pytest.mark.parametrize(
    "name",
    ["features.h5", "data.mdb", "val_data.npz", "t10k-images-idx3-ubyte", "a.tar", "cifar-10-batches-py/data_batch_1"],
)
def test_files_of_other_kinds_beside_folders_of_images_are_passed_over(tmp_path: Path, name: str):
    save(tmp_path / "cats" / "1.png", Image.fromarray(patch()))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    assert open_images(tmp_path, size=32, channels=3).names == ("cats/1.png",)


# --- modes


def test_palettes_and_cmyk_become_rgb(tmp_path: Path):
    colour = Image.fromarray(patch())
    save(tmp_path / "a.gif", colour.convert("P"))
    save(tmp_path / "b.png", colour.quantize(16))
    save(tmp_path / "c.jpg", colour.convert("CMYK"), quality=95)
    save(tmp_path / "d.tif", colour.convert("LAB"))
    source = open_images(tmp_path, size=32, channels=3)
    batch = source.read(range(4))
    np.testing.assert_array_equal(batch[1], np.asarray(colour.quantize(16).convert("RGB")).transpose(2, 0, 1))
    assert np.abs(batch[2:].astype(int) - patch().transpose(2, 0, 1)).mean() < 6
    assert source.alpha_dropped == 0


def test_the_first_frame_is_read_and_others_are_counted(tmp_path: Path):
    frames = [Image.fromarray(patch(i)) for i in range(3)]
    for name in ("a.tif", "b.webp", "c.png"):
        save(tmp_path / name, frames[0], save_all=True, append_images=frames[1:], lossless=True)
    for name in ("d.tif", "e.webp", "f.png"):
        save(tmp_path / name, frames[0], lossless=True)
    palettes = [frame.quantize(16) for frame in frames]
    save(tmp_path / "g.gif", palettes[0], save_all=True, append_images=palettes[1:])
    save(tmp_path / "h.gif", palettes[0])
    source = open_images(tmp_path, size=32, channels=3)
    images = source.read(range(8))
    for image in images[:6]:
        np.testing.assert_array_equal(image, patch(0).transpose(2, 0, 1))
    np.testing.assert_array_equal(images[6], images[7])
    assert source.frames_dropped == 4
    assert source.subset([3, 4, 5, 6]).frames_dropped == 1


def test_one_bit_becomes_grey(tmp_path: Path):
    bits = Image.fromarray(patch()).convert("1")
    save(tmp_path / "x.png", bits)
    pixels, _ = one(tmp_path, channels=1)
    np.testing.assert_array_equal(pixels[0], np.asarray(bits) * np.uint8(255))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB key"])
def test_alpha_is_dropped_and_counted_once(tmp_path: Path, mode: str):
    colour = Image.fromarray(patch())
    options = {"P": {"transparency": bytes(range(16))}, "RGB key": {"transparency": (0, 0, 0)}}.get(mode, {})
    image = colour.quantize(16) if mode == "P" else colour.convert(mode[:4].strip())
    if "A" in mode:
        image.putalpha(77)
    save(tmp_path / "x.png", image, **options)
    channels = 1 if mode == "LA" else 3
    pixels, source = one(tmp_path, channels)
    source.read([0, 0])
    assert source.alpha_dropped == 1
    expected = np.atleast_3d(np.asarray(image.convert("L" if mode == "LA" else "RGB")))
    np.testing.assert_array_equal(pixels, expected.transpose(2, 0, 1))


def test_a_set_for_a_model_of_other_channels_is_refused(tmp_path: Path):
    save(tmp_path / "grey" / "g.png", patch()[..., 0])
    save(tmp_path / "colour" / "c.png", patch())
    with pytest.raises(
        DataError, match=r"g\.png is grey \(1 channel\).*colour \(3 channels\).*--set model\.channels=1"
    ):
        one(tmp_path / "grey", 3)
    with pytest.raises(DataError, match=r"c\.png is colour \(3 channels\).*grey.*--set model\.channels=3"):
        one(tmp_path / "colour", 1)


def test_deep_images_are_refused(tmp_path: Path):
    deep = patch()[..., 0].astype(np.uint16) * 257
    save(tmp_path / "a" / "x.png", deep)
    save(tmp_path / "b" / "x.tif", deep)
    save(tmp_path / "c" / "x.tif", deep.astype(np.float32))
    rgb = png_of_16_bits(np.repeat(deep[..., None], 3, 2))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.png").write_bytes(rgb)
    for name, channels in (("a", 1), ("b", 1), ("c", 1), ("d", 3)):
        with pytest.raises(DataError, match="257"):
            one(tmp_path / name, channels)


def png_of_16_bits(pixels: np.ndarray) -> bytes:
    """A 16-bit RGB PNG, which Pillow can read but not write."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_exif_orientation_is_applied(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side: turn right
    save(tmp_path / "x.png", patch(), exif=exif)
    pixels, _ = one(tmp_path)
    np.testing.assert_array_equal(pixels, np.rot90(patch(), -1).transpose(2, 0, 1))


# --- sizes


def test_other_sizes_are_cropped_to_the_centre_and_resized(tmp_path: Path):
    save(tmp_path / "wide.png", PHOTOGRAPH[:200, :310])
    save(tmp_path / "tall.png", PHOTOGRAPH[:200, :31])
    save(tmp_path / "right.png", patch())
    source = open_images(tmp_path, size=32, channels=3)
    assert source.resized == 0
    batch = source.read(range(3))
    centre = Image.fromarray(PHOTOGRAPH[:200, 55:255]).resize((32, 32), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(batch[2], np.asarray(centre).transpose(2, 0, 1))
    source.read(range(3))
    assert source.resized == 2
    assert source.subset([0]).resized == 0


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.integers(1, 20))
def test_fit_gives_the_asked_shape(height: int, width: int, channels: int, size: int):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    out = fit(pixels, size)
    assert out.shape == (channels, size, size)
    if height == width == size:
        np.testing.assert_array_equal(out, pixels.transpose(2, 0, 1))


# --- damage


def break_files(folder: Path) -> list[str]:
    whole = (folder / "cats" / "01.png").read_bytes()
    (folder / "cats" / "01.png").write_bytes(whole[: len(whole) // 2])
    (folder / "cats" / "03.png").write_bytes(b"")
    (folder / "dogs" / "00.png").write_bytes(b"<html>404</html>")
    (folder / "dogs" / "zz.png").symlink_to(folder / "nowhere.png")
    flipped = bytearray((folder / "dogs" / "02.png").read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (folder / "dogs" / "02.png").write_bytes(flipped)
    return ["cats/01.png", "cats/03.png", "dogs/00.png", "dogs/02.png", "dogs/zz.png"]


def test_broken_images_are_named(folder: Path):
    for name in break_files(folder):
        source = open_images(folder, size=32, channels=3)
        with pytest.raises(DataError, match=rf"{name} is broken.*--skip-unusable"):
            source.read([source.names.index(name)])


def test_skip_unusable_leaves_them_out(folder: Path):
    broken = break_files(folder)
    source = open_images(folder, size=32, channels=3, skip_unusable=True)
    assert source.skipped == dict.fromkeys(broken, "broken")
    assert len(source) == 36
    assert not set(broken) & set(source.names)
    assert sum(len(batch) for batch in source.batches(7)) == 36


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_every_kind_of_unusable_file_is_skipped_and_named(folder: Path):
    save(folder / "deep.png", patch()[..., 0].astype(np.uint16) * 257)
    save(folder / "huge.png", Image.new("1", (10_000, 9_000)))
    (folder / "broken.png").write_bytes(b"")
    os.mkfifo(folder / "pipe.png")
    reasons = {
        "broken.png": "broken",
        "deep.png": "deeper than 8 bits",
        "huge.png": "of too many pixels",
        "pipe.png": "not a regular file",
    }
    source = open_images(folder, size=32, channels=3)
    for name in reasons:
        with pytest.raises(DataError, match=f"{name} .*, or pass --skip-unusable"):
            source.read([source.names.index(name)])
    source = open_images(folder, size=32, channels=3, skip_unusable=True)
    assert source.skipped == reasons
    assert len(source) == 40
    assert open_images(folder, size=32, channels=3, skip_broken=True).skipped == reasons, "its old name"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_what_is_no_regular_file_is_never_opened(tmp_path: Path):
    save(tmp_path / "data" / "b.png", patch())
    os.mkfifo(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "c.png").symlink_to("a.png")
    (tmp_path / "data" / "d.png").symlink_to("/dev/zero")
    (tmp_path / "data" / "e.png").symlink_to("e.png")
    source = open_images(tmp_path / "data", size=32, channels=3)
    for i in (0, 2, 3):
        with pytest.raises(DataError, match=rf"{source.names[i]} is not a regular file"):
            source.read([i])
    assert open_images(tmp_path / "data", size=32, channels=3, skip_unusable=True).names == ("b.png",)
    os.mkfifo(tmp_path / "x.npy")
    with pytest.raises(DataError, match=r"x\.npy is not a regular file"):
        open_images(tmp_path / "x.npy", size=32, channels=3)


def test_nothing_left_is_an_error_with_the_usual_reason(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"none of the 1 images in .*: .*a\.png is broken.*remove it$"):
        open_images(tmp_path, size=32, channels=1, skip_unusable=True)
    save(tmp_path / "b.png", patch())
    save(tmp_path / "c.png", patch())
    with pytest.raises(DataError, match=r"none of the 3 images in .*: .*b\.png is colour.*--set model\.channels=3"):
        open_images(tmp_path, size=32, channels=1, skip_unusable=True)


def test_decompression_bombs_are_refused(tmp_path: Path):
    save(tmp_path / "x.png", Image.new("1", (10_000, 9_000)))
    with pytest.raises(DataError, match=r"x\.png has more than .* pixels"):
        one(tmp_path, 1)


# --- batches


def test_batches_are_in_order_and_the_last_is_smaller(folder: Path):
    source = open_images(folder, size=32, channels=3)
    batches = list(source.batches(7, start=2, stop=39))
    assert [len(batch) for batch in batches] == [7, 7, 7, 7, 7, 2]
    np.testing.assert_array_equal(np.concatenate(batches), source.read(range(2, 39)))
    assert source.read([]).shape == (0, 3, 32, 32)


def test_closing_the_generator_ends_its_threads(folder: Path):
    before = threading.active_count()
    batches = open_images(folder, size=32, channels=3).batches(1)
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_read_ahead_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch):
    read = []
    source = open_images(folder, size=32, channels=3)
    original = type(source.container).read
    monkeypatch.setattr(
        type(source.container), "read", lambda self, positions: read.append(len(positions)) or original(self, positions)
    )
    batches = source.batches(1)
    next(batches)
    batches.close()
    assert len(read) <= 5


def test_errors_come_in_the_place_of_their_batch(folder: Path):
    (folder / "cats" / "21.png").write_bytes(b"")
    before = threading.active_count()
    good = []
    with pytest.raises(DataError, match=r"21\.png is broken"):
        good.extend(open_images(folder, size=32, channels=3).batches(4))
    assert len(good) == 2  # cats/21.png is the eleventh image
    assert threading.active_count() == before


def test_batch_size_zero_is_refused_at_once(folder: Path):
    with pytest.raises(UsageError, match="batch size"):
        open_images(folder, size=32, channels=3).batches(0)


# --- fingerprints


def test_fingerprint_depends_on_names_bytes_size_and_channels(folder: Path, tmp_path: Path):
    def fingerprint(path: Path, size: int = 32, channels: int = 3) -> str:
        return open_images(path, size=size, channels=channels).fingerprint

    first = fingerprint(folder)
    assert len(bytes.fromhex(first)) == 32
    copied = shutil.copytree(folder, tmp_path / "copy")
    os.utime(copied / "cats" / "01.png", (0, 0))
    assert fingerprint(copied) == first
    assert len({first, fingerprint(folder, 16), fingerprint(folder, 32, 1)}) == 3
    source = open_images(folder, size=32, channels=3)
    assert source.subset([1, 0]).fingerprint != source.subset([0, 1]).fingerprint
    (copied / "cats" / "01.png").rename(copied / "cats" / "1.png")
    assert fingerprint(copied) != first


def test_array_fingerprint_sees_the_pixels(tmp_path: Path):
    images = np.stack([patch(i) for i in range(30)])
    np.save(tmp_path / "a.npy", images)
    images[0, 0, 0, 0] ^= 1
    np.save(tmp_path / "b.npy", images)
    a, b = (open_images(tmp_path / name, size=32, channels=3) for name in ("a.npy", "b.npy"))
    assert a.fingerprint != b.fingerprint


# --- arrays


@pytest.fixture(params=["npy", "npz", "zarr"])
def array(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    images = np.stack([patch(i) for i in range(30)])
    path = tmp_path / f"x.{request.param}"
    if request.param == "npy":
        np.save(path, images)
    elif request.param == "npz":
        np.savez(path, images=images, other=images[:3])
    else:
        zarr.create_array(str(path), data=images, chunks=(8, 32, 32, 3))
    return path


def test_arrays_read_in_any_order(array: Path):
    source = open_images(array, size=32, channels=3)
    assert source.names[17] == "00000017"
    assert set(source.labels) == {""}
    wanted = [3, 4, 5, 29, 0, 4]
    np.testing.assert_array_equal(source.read(wanted), np.stack([patch(i) for i in wanted]).transpose(0, 3, 1, 2))
    assert source.source_bytes == 30 * 32 * 32 * 3
    assert sum(len(batch) for batch in source.batches(8)) == 30
    assert source.resized == 0


def test_arrays_are_resized_like_files(array: Path, tmp_path: Path):
    source = open_images(array, size=16, channels=3)
    save(tmp_path / "f" / "x.png", patch(2))
    pixels, _ = one(tmp_path / "f", size=16)
    np.testing.assert_array_equal(source.read([2])[0], pixels)
    assert source.resized == 1


def test_grey_alpha_and_many_channels(tmp_path: Path):
    np.save(tmp_path / "grey.npy", np.stack([patch(i)[..., 0] for i in range(3)]))
    assert open_images(tmp_path / "grey.npy", size=32, channels=1).read([1, 2]).shape == (2, 1, 32, 32)
    np.save(tmp_path / "rgba.npy", np.zeros((3, 32, 32, 4), np.uint8))
    source = open_images(tmp_path / "rgba.npy", size=32, channels=3)
    assert source.read([1]).shape == (1, 3, 32, 32)
    assert source.alpha_dropped == 1
    np.save(tmp_path / "seven.npy", np.zeros((3, 40, 30, 7), np.uint8))
    assert open_images(tmp_path / "seven.npy", size=32, channels=7).read([1]).shape == (1, 7, 32, 32)


def test_npz_labels(tmp_path: Path):
    images = np.zeros((3, 32, 32), np.uint8)
    np.savez(tmp_path / "a.npz", x=images, labels=np.array([[3], [1], [2]]))
    assert open_images(tmp_path / "a.npz", size=32, channels=1).labels == ("3", "1", "2")
    np.savez(tmp_path / "b.npz", x=images, labels=np.array(["a", "b"]))
    with pytest.raises(DataError, match="3 images but 2 labels"):
        open_images(tmp_path / "b.npz", size=32, channels=1)
    np.savez(tmp_path / "c.npz", x=images, y=images)
    with pytest.raises(DataError, match="x, y"):
        open_images(tmp_path / "c.npz", size=32, channels=1)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((3, 32, 32, 3), np.float32), "convert the images to uint8"),
        (np.zeros((32, 32), np.uint8), r"one image \[H, W\]; give \[N, H, W\].*array\[None\]"),
        (np.zeros((32, 30, 3), np.uint8), r"one image \[H, W, C\]; give \[N, H, W, C\].*array\[None\]"),
        (np.zeros((32, 32, 4), np.uint8), r"one image \[H, W, C\]"),
        (np.zeros((3, 32, 32), np.uint8), r"one image \[C, H, W\]; .*array\.transpose\(1, 2, 0\)\[None\]"),
        (np.zeros((1, 2, 32, 32, 3), np.uint8), r"\[N, H, W, C\]"),
        (np.uint8(0), r"\[N, H, W, C\]"),
        (np.zeros((0, 32, 32, 3), np.uint8), "no image"),
        (np.zeros((5, 3, 32, 32), np.uint8), "transpose"),
        (np.zeros((5, 32, 32), np.uint8), r"--set model\.channels=1"),
        (np.array([{}]), "cannot be read"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, images: np.ndarray, message: str):
    np.save(tmp_path / "x.npy", images)
    with pytest.raises(DataError, match=message):
        open_images(tmp_path / "x.npy", size=32, channels=3)


def test_damaged_arrays_are_refused(array: Path):
    if array.is_dir():
        chunk = next(path for path in sorted((array / "c").rglob("*")) if path.is_file())
        chunk.write_bytes(chunk.read_bytes()[:-5])
        with pytest.raises(DataError, match="cannot read images"):
            open_images(array, size=32, channels=3).read([0])
        (array / "zarr.json").write_text("{")
    else:
        array.write_bytes(array.read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot be read"):
        open_images(array, size=32, channels=3)


LAYOUTS = [
    ({"chunks": (8, 32, 32, 3)}, "c/1/0/0/0", "8 to 15"),
    ({"chunks": (8, 16, 32, 3)}, "c/3/1/0/0", "24 to 29"),
    ({"chunks": (4, 32, 32, 3), "shards": (8, 32, 32, 3)}, "c/1/0/0/0", "8 to 15"),
    ({"chunks": (8, 32, 32, 3), "zarr_format": 2}, "1.0.0.0", "8 to 15"),
]


@pytest.mark.parametrize(("layout", "chunk", "images"), LAYOUTS)
def test_a_missing_chunk_of_a_zarr_array_is_an_error(tmp_path: Path, layout: dict, chunk: str, images: str):
    """zarr reads it as black images."""
    zarr.create_array(str(tmp_path / "x.zarr"), data=np.stack([patch(i) for i in range(30)]), **layout)
    source = open_images(tmp_path / "x.zarr", size=32, channels=3)
    assert len(source.read(range(30))) == 30
    (tmp_path / "x.zarr" / chunk).unlink()
    source = open_images(tmp_path / "x.zarr", size=32, channels=3)
    assert source.read([0]).any()
    with pytest.raises(DataError, match=rf"lacks the file {chunk}.* images {images} .*write_empty_chunks"):
        source.read(range(30))


def test_blank_images_that_zarr_wrote_are_images(tmp_path: Path):
    images = np.stack([np.zeros_like(patch())] * 8 + [patch(i) for i in range(8)])
    zarr.create_array(str(tmp_path / "x.zarr"), data=images, chunks=(4, 32, 32, 3), config={"write_empty_chunks": True})
    zarr.create_array(str(tmp_path / "y.zarr"), data=images, chunks=(4, 32, 32, 3), shards=(16, 32, 32, 3))
    for name in ("x.zarr", "y.zarr"):
        source = open_images(tmp_path / name, size=32, channels=3)
        np.testing.assert_array_equal(source.read(range(16)), images.transpose(0, 3, 1, 2))


def test_a_zarr_group_is_refused_with_its_arrays(tmp_path: Path):
    zarr.create_group(str(tmp_path / "g.zarr")).create_array("photos", data=np.zeros((3, 32, 32, 3), np.uint8))
    with pytest.raises(DataError, match="the arrays photos"):
        open_images(tmp_path / "g.zarr", size=32, channels=3)
    assert len(open_images(tmp_path / "g.zarr" / "photos", size=32, channels=3)) == 3


def test_a_store_is_refused_with_what_to_do():
    with pytest.raises(DataError, match=r"variate-int\.zarr is a store of latents.*decode"):
        open_images(Path(__file__).parent / "golden/stores/variate-int.zarr", size=8, channels=3)


def test_the_loader_does_not_import_torch():
    code = "import sys, hvae_codec.data.sources; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
