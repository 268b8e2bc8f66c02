"""What a survey says of real files of many kinds is what opening, decoding and reading them find."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from hvae_codec.data.jxl import jxl_plugin
from hvae_codec.data.parquet_groups import ParquetGroups
from hvae_codec.data.sources import open_images
from hvae_codec.data.survey import survey
from photos import cut


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of patches in many modes and formats, some of which no model can take."""
    folder = tmp_path_factory.mktemp("kinds")
    for name in ("cats", "dogs", "none"):
        (folder / name).mkdir()
    colour = Image.fromarray(cut(1, 32)[0].transpose(1, 2, 0))
    grey, deep = colour.convert("L"), np.asarray(colour.convert("L")).astype(np.uint16) * 257
    colour.save(folder / "cats/a.png")
    colour.resize((20, 12)).save(folder / "cats/wide.bmp")
    glass = colour.copy()
    glass.putalpha(128)
    glass.save(folder / "cats/alpha.webp", lossless=True)
    colour.quantize(8).save(folder / "cats/palette.png")
    colour.quantize(8).save(folder / "cats/seen_through.png", transparency=3)
    colour.convert("CMYK").save(folder / "cats/print.jpg")
    grey.save(folder / "dogs/grey.jpeg")
    grey.convert("LA").save(folder / "dogs/grey_alpha.png")
    grey.convert("1").save(folder / "dogs/ink.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    colour.crop((0, 0, 32, 8)).save(folder / "dogs/turned.jpg", exif=exif)
    colour.crop((0, 0, 32, 8)).save(folder / "dogs/turned.png", exif=exif)
    grey.save(folder / "dogs/moving.gif", save_all=True, append_images=[colour.convert("P")])
    Image.fromarray(deep).save(folder / "none/deep.png")
    Image.fromarray(np.asarray(grey).astype(np.float32)).save(folder / "none/float.tif")
    (folder / "none/empty.png").write_bytes(b"")
    (folder / "none/text.jpg").write_text("no image")
    (folder / "none/notes.heic").write_text("not read")
    return folder


OPTIONS = [{}, {"depth": 8}, {"upscale": False}, {"max_pixels": 300}, {"crop": "0,0,16,16"}, {"crop": "celeba"}]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_is_refused_is_what_decoding_refuses(kinds: Path, options, channels: int):
    source = open_images(kinds, size=16, channels=channels, **options)
    unusable = {source.names[i]: reason for i, reason in source.container.unusable().items()}
    found = survey(source)
    assert {name: reason for reason, names in found.refused.items() for name in names} == unusable
    assert len(unusable) >= 3


def test_a_set_of_the_other_colour_is_refused_whole(tmp_path: Path):
    for i, pixels in enumerate(cut(3, channels=1)):
        Image.fromarray(pixels[0]).save(tmp_path / f"{i}.png")
    assert survey(open_images(tmp_path, size=16, channels=3)).refused == {"grey": ["0.png", "1.png", "2.png"]}
    Image.fromarray(cut(1, 20, channels=1)[0, 0]).save(tmp_path / "3.png")
    source = open_images(tmp_path, size=16, channels=3, max_pixels=300)
    assert survey(source).refused == {"grey": ["0.png", "1.png", "2.png"], "of too many pixels": ["3.png"]}
    assert [*source.container.unusable().values()] == ["grey", "grey", "grey", "of too many pixels"]
    (tmp_path / "3.png").unlink()
    found = survey(open_images(tmp_path, size=16, channels=3, colour="rgb"))
    assert (found.refused, found.changes) == ({}, Counter({"recoloured": 3}))


@pytest.mark.parametrize("options", [{}, {"depth": 8}, {"background": "white", "crop": "none"}], ids=str)
def test_what_is_changed_is_what_reading_counts(kinds: Path, options):
    source = open_images(kinds, size=16, channels=3, skip_unusable=True, **options)
    found = survey(source)
    source.read(range(len(source)))
    assert not found.refused
    assert found.skipped == source.skipped
    read = {"resized": source.resized, "alpha": source.alpha_dropped, "recoloured": source.recoloured}
    read |= {"depth": source.depth_reduced, "first frame": source.frames_dropped}
    assert {name: found.changes[name] for name in read} == read
    assert found.changes["enlarged"] == 3  # of 12 and of 8 pixels


def test_sizes_modes_and_formats(kinds: Path):
    found = survey(open_images(kinds, size=16, channels=3))
    assert (found.images, found.looked_at) == (16, 16)
    assert found.sizes == {(32, 32): 11, (20, 12): 1, (8, 32): 2}
    assert found.modes == {
        "colour": 4,
        "colour with alpha": 1,
        "palette": 2,  # GIFs have one
        "palette with alpha": 1,
        "CMYK": 1,
        "grey": 1,
        "grey with alpha": 1,
        "black and white": 1,
        "grey, more than 8 bits": 2,
    }
    assert found.formats == {"PNG": 7, "BMP": 1, "WEBP": 1, "JPEG": 3, "GIF": 1, "TIFF": 1}
    assert found.endings == {".png": 8, ".bmp": 1, ".webp": 1, ".jpg": 3, ".jpeg": 1, ".gif": 1, ".tif": 1}
    assert found.classes == {"cats": 6, "dogs": 6, "none": 4}
    assert found.other_files == {".heic": 1}


@pytest.mark.skipif(jxl_plugin() is None, reason="takes the extra jxl")
def test_jpeg_xl_is_not_decoded_if_it_is_too_large(tmp_path: Path):
    colour = Image.fromarray(cut(1, 32)[0].transpose(1, 2, 0))
    colour.crop((0, 0, 12, 20)).save(tmp_path / "a.jxl")
    colour.convert("L").crop((0, 0, 12, 20)).save(tmp_path / "grey.jxl")
    colour.save(tmp_path / "large.jxl")
    found = survey(open_images(tmp_path, size=8, channels=3, max_pixels=1000))
    assert (found.sizes, found.modes, found.formats) == ({(12, 20): 2}, {"colour": 1, "grey": 1}, {"JXL": 2})
    assert found.refused == {"of too many pixels": ["large.jxl"]}


def test_archives_and_arrays_say_the_same(kinds: Path, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "kinds.zip", "w") as archive:
        for path in sorted(kinds.rglob("*.*")):
            archive.write(path, path.relative_to(kinds))
    in_folder, in_zip = (survey(open_images(path, size=16, channels=3)) for path in (kinds, tmp_path / "kinds.zip"))
    assert (in_zip.sizes, in_zip.modes, in_zip.refused) == (in_folder.sizes, in_folder.modes, in_folder.refused)
    np.save(tmp_path / "a.npy", cut(5, 20, channels=4).transpose(0, 2, 3, 1))
    found = survey(open_images(tmp_path / "a.npy", size=16, channels=3))
    assert (found.sizes, found.modes, found.formats) == ({(20, 20): 5}, {"colour with alpha": 5}, {"array": 5})
    assert found.changes == {"resized": 5, "alpha": 5}
    pictures = [Image.fromarray(pixels.transpose(1, 2, 0)) for pixels in cut(2)]
    assert survey(open_images(pictures, size=16, channels=3)).modes == {"colour": 2}


def test_of_many_images_some_are_looked_at(tmp_path: Path):
    for split, count in (("train", 7), ("val", 3), ("test", 2)):
        (tmp_path / split).mkdir()
        for i, pixels in enumerate(cut(count)):
            Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / split / f"{i}.png")
    source, calls = open_images(tmp_path, size=16, channels=3), []
    found = survey(source.split("train"), source, limit=4, progress=lambda *call: calls.append(call))
    assert (found.images, found.looked_at, found.sizes[16, 16]) == (7, 4, 4)
    assert found.endings == {".png": 7}
    assert found.splits == {"train": 7, "val": 3, "test": 2}
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_of_row_groups_some_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = []
    for pixels in cut(40):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(file := io.BytesIO(), "PNG")
        rows.append({"bytes": file.getvalue()})
    pyarrow.parquet.write_table(pa.table({"image": rows, "other": rows}), tmp_path / "a.parquet", row_group_size=4)
    source = open_images(tmp_path / "a.parquet", size=16, channels=3, column="image")
    assert survey(source).formats == {"PNG": 40}
    read, read_group = [], ParquetGroups.read
    monkeypatch.setattr(ParquetGroups, "read", lambda groups, group: read.append(group) or read_group(groups, group))
    source = open_images(tmp_path / "a.parquet", size=16, channels=3, column="other")
    found = survey(source.subset(range(4, 40)), source, limit=12)
    assert (found.images, found.looked_at, sorted(read)) == (36, 12, [1, 5, 9])
