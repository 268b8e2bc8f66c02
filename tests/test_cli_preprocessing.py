"""What is done to images is said once, and later commands take it from the run or the store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hvae_codec import LatentMask, append, encode_images, kl_stats, load_model, open_images, open_store, repair
from hvae_codec.config import Config
from hvae_codec.errors import DataError
from hvae_codec.model.checkpoint import load_run_config, save_config
from hvae_codec.train.loop import TrainOptions, train
from hvae_codec_cli.app import main
from stores import tree

HOW = ("--crop", "2,3,16,16", "--resize", "area", "--background", "white", "--no-upscale")
RECORD = {"background": "white", "crop": "2,3,16,16", "resize": "area", "upscale": False}

pytestmark = pytest.mark.slow

Call = Callable[..., tuple[str, str]]


def code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, *(() if arguments[0] == "info" else ("--device", "cpu"))])
    return int(stopped.value.code or 0)


def save_images(folder: Path, numbers: range) -> None:
    """Photographs of 20 x 24 pixels; some are grey, or have alpha."""
    folder.mkdir()
    for i in numbers:
        pixels = np.random.default_rng(i).integers(0, 256, (24, 20, 4), np.uint8)
        pixels = pixels[..., 0] if i % 5 == 1 else pixels if i % 5 == 2 else pixels[..., :3]
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")


@pytest.fixture(scope="module")
def made(tiny_config: Config, tmp_path_factory) -> Iterator[Path]:
    """A run of one step on such images, and a store; both know what was done to them."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_images(Path("data"), range(12))
        save_images(Path("more"), range(20, 24))
        save_config(Path("tiny"), tiny_config)
        small = ("--config", "tiny/config.json", "--steps", "1", "--no-tensorboard")
        assert code("train", "data", *small, "--out", "runs/a", *HOW) == 0
        assert code("encode", "data", "a.zarr", "--keep", "50%", "--evaluate", "none", "--shard", "4") == 0
        yield folder


@pytest.fixture
def hvae(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> Call:
    """`hvae(code, arguments)`: what a command says on standard output and standard error, in a copy of `made`."""
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "made", symlinks=True))

    def call(expected: int, *arguments: str) -> tuple[str, str]:
        capsys.readouterr()
        found = code(*arguments)
        out, errors = capsys.readouterr()
        assert found == expected, errors
        return out, errors

    return call


def test_a_run_and_its_stores_say_what_was_done_to_the_images(hvae: Call):
    assert json.loads(Path("runs/a/origin.json").read_text())["preprocessing"] == RECORD
    assert open_store("a.zarr").preprocessing == RECORD
    for name in ("runs/a", "a.zarr"):
        assert json.loads(hvae(0, "info", name, "--json")[0])["preprocessing"] == RECORD
        assert "--background white --crop 2,3,16,16 --resize area --no-upscale" in hvae(0, "info", name)[0]


def test_later_commands_take_it_from_there(hvae: Call):
    """What is stored is what comes out of images that were cropped by hand, of a run that says nothing."""
    folder = Path("cropped")
    folder.mkdir()
    pixels = open_images("data", size=16, channels=3, **RECORD).read(range(12))
    for i, image in enumerate(pixels):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i:02d}.png")
    shutil.copytree("runs/a", "runs/silent")
    Path("runs/silent/origin.json").unlink()
    hvae(0, "encode", "cropped", "b.zarr", "--model", "runs/silent", "--keep", "50%", "--evaluate", "none", "--shard=4")
    stores = open_store("a.zarr"), open_store("b.zarr")
    for found, expected in zip(*(store.latents(slice(None)).values() for store in stores), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert stores[1].preprocessing == {}
    notes = hvae(0, "evaluate", "data", "--split", "all")[1]
    assert "12 of 12 images of another size were cropped to 2,3,16,16 and resized" in notes
    assert "2 of 12 images with an alpha channel were laid on #ffffff" in notes
    assert "3 of 12 images were grey, and were made colour" in notes
    hvae(0, "train", "data", "--resume", "--out", "runs/a", "--steps", "2", "--no-tensorboard")
    assert json.loads(Path("runs/a/origin.json").read_text())["preprocessing"] == RECORD


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("encode data b.zarr --crop centre", "runs/a was begun with --crop 2,3,16,16, not centre; leave out --crop"),
        ("evaluate data --resize adm", "runs/a was begun with --resize area, not adm"),
        ("analyze-kl data --background black", "runs/a was begun with --background white, not black"),
        ("prune data --keep 50% --steps 1 --crop none", "runs/a was begun with --crop"),
        ("train data --resume --out runs/a --steps 2 --crop celeba", "runs/a was begun with --crop"),
        ("append more a.zarr --crop celeba", "a.zarr was made with --crop 2,3,16,16, not celeba"),
        ("repair a.zarr data --resize lanczos", "a.zarr was made with --resize area, not lanczos"),
        ("encode data b.zarr --colour grey", "--colour is grey, and the model takes images of 3 channels"),
        ("encode data b.zarr --crop 1,2,3", "--crop is '1,2,3'; give centre, celeba, none, or X,Y,W,H"),
    ],
)
def test_a_command_that_says_otherwise_is_refused(hvae: Call, arguments: str, message: str):
    before = tree(Path("runs")) | tree(Path("a.zarr"))
    assert message in hvae(2, *arguments.split())[1]
    assert tree(Path("runs")) | tree(Path("a.zarr")) == before


def test_append_and_repair_prepare_images_as_the_store_says(hvae: Call):
    hvae(0, "append", "more", "a.zarr", "--max-pixels", "99999999", "--crop", "2,3,16,16")
    assert open_store("a.zarr").preprocessing == RECORD | {"max_pixels": 99999999}
    before = tree(Path("a.zarr"))
    shard = min(Path("a.zarr").glob("z*/c/1/**/*"), key=str)
    shard = shard if shard.is_file() else next(path for path in sorted(shard.rglob("*")) if path.is_file())
    shard.write_bytes(shard.read_bytes()[:-9])
    hvae(0, "repair", "a.zarr", "data")
    assert tree(Path("a.zarr")) == before


def test_images_opened_otherwise_are_refused_from_python(hvae: Call):
    images, model = open_images("more", size=16, channels=3), load_model("runs/a")
    with pytest.raises(DataError, match=r"a\.zarr was made with --background white, and .* background='drop'"):
        append(model, images, "a.zarr")
    with pytest.raises(DataError, match=r"a\.zarr was made with"):
        repair("a.zarr", images, model)
    more = open_images("more", size=16, channels=3, **open_store("a.zarr").preprocessing)
    assert len(append(model, more, "a.zarr")) == 16
    assert append(model, images.read([0]), "a.zarr").preprocessing["crop"] == RECORD["crop"], "an array is as it is"


def test_encode_and_train_from_python_compare_with_the_run(hvae: Call):
    images, model = open_images("data", size=16, channels=3), load_model("runs/a")
    stats = kl_stats(model, images)
    mask = LatentMask.from_keep(stats, 0.5)
    with pytest.raises(DataError, match=r"runs/a was begun with --background white, and .* background='drop'"):
        encode_images(model, images, "b.zarr", mask=mask, stats=stats)
    assert not Path("b.zarr").exists()
    assert len(encode_images(model, images.read(range(12)), "b.zarr", mask=mask, stats=stats)) == 12, "as it is"
    alike = open_images("data", size=16, channels=3, **RECORD)
    assert encode_images(model, alike, "c.zarr", mask=mask, stats=stats).preprocessing == RECORD
    config, other = load_run_config(Path("runs/a")), TrainOptions(other_data=True, tensorboard=False)
    with pytest.raises(DataError, match=r"runs/a was begun with --background white, and"):
        train(Path("runs/a"), config, images.split("train"), images.split("val"), other)
    train(Path("runs/a"), config, alike.split("train"), alike.split("val"), other)


def test_what_could_not_be_used_is_counted_by_reason(hvae: Call):
    Path("data/a.png").touch()
    Image.new("L", (15, 24)).save("data/b.png")
    Image.fromarray(np.zeros((24, 20), np.uint16)).save("data/c.png")
    Image.fromarray(np.zeros((24, 20), np.uint16)).save("data/d.png")
    for i in range(3):
        Path(f"data/{i}.heic").touch()
    notes = hvae(0, "evaluate", "data", "--split", "all", "--skip-unusable")[1]
    assert "4 of 16 images could not be used and were left out" in notes
    for line in ("  broken (1): a.png", "  deeper than 8 bits (2): c.png, d.png", "  too small for --crop (1): b.png"):
        assert line in notes
    assert "3 other files (.heic 3) were not read" in notes
    notes = hvae(0, "evaluate", "data", "--split", "all", "--skip-broken", "--depth", "8")[1]
    assert "2 of 16 images had more than 8 bits per channel, and were converted to 8" in notes


def test_the_column_of_images_is_kept(hvae: Call, photo_patches):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = {}
    for column, patches in (("image", photo_patches[:8]), ("img", photo_patches[8:16])):
        save_patches(Path(column), patches)
        files[column] = [path.read_bytes() for path in sorted(Path(column).glob("*.png"))]
    pq.write_table(pa.table(files), "x.parquet")
    small = ("--config", "tiny/config.json", "--steps", "1", "--no-tensorboard", "--out", "runs/b")
    _, errors = hvae(1, "train", "x.parquet", *small)
    assert "image, img" in errors
    assert "--column image" in errors
    hvae(0, "train", "x.parquet", *small, "--column", "img")
    assert json.loads(Path("runs/b/origin.json").read_text())["preprocessing"] == {"column": "img"}
    encode = ("--keep", "50%", "--evaluate", "none", "--model", "runs/b")
    hvae(0, "encode", "x.parquet", "b.zarr", *encode)
    hvae(0, "encode", "img", "c.zarr", *encode)  # which has no columns, and is not asked for one
    first, second = open_store("b.zarr"), open_store("c.zarr")
    for resolution, latents in first.latents(slice(8)).items():
        np.testing.assert_array_equal(latents, second.latents(slice(8))[resolution])
    assert (first.preprocessing, second.preprocessing) == ({"column": "img"}, {})
    _, errors = hvae(2, "append", "image", "b.zarr", "--column", "img")
    assert "image has no columns" in errors
    hvae(0, "append", "x.parquet", "c.zarr", "--column", "image")
    _, errors = hvae(1, "train", "x.parquet", "--out", "runs/b", "--steps", "2", "--resume", "--column", "image")
    assert "not those that" in errors


def save_patches(folder: Path, patches: np.ndarray) -> None:
    folder.mkdir()
    for i, patch in enumerate(patches):
        Image.fromarray(patch.transpose(1, 2, 0)).save(folder / f"{i:02d}.png")
