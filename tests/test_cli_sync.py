"""The whole command sync, its exit codes and its JSON; edited images in encode and append."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from hvae_codec import LatentMask, encode_images, kl_stats, load_model, open_images, open_store
from hvae_codec.analysis.ranking_file import ranking_path
from hvae_codec.encode.pipeline import EncodeOptions
from hvae_codec.prune.kl_stats import save_kl_stats
from hvae_codec.store.row_group_writer import RowGroupWriter
from hvae_codec_cli.app import main
from photos import save_png
from stores import tree

IMAGES, LONG_AGO = 20, 10**18


@pytest.fixture(scope="module")
def origin(tiny_run, cut_patches, tmp_path_factory) -> Path:
    """A folder with data/, runs/latest and out.zarr."""
    folder = tmp_path_factory.mktemp("work")
    for i, patch in enumerate(cut_patches(IMAGES)):
        save_png(folder / "data" / "cats" / f"{i:02d}.png", patch)
    shutil.copytree(tiny_run, folder / "runs" / "latest")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        model, images = load_model("runs/latest"), open_images("data", size=16, channels=3)
        stats = kl_stats(model, images)
        save_kl_stats(ranking_path(Path("runs/latest")), stats)
        options = EncodeOptions(batch_size=4, row_group_size=8)
        encode_images(model, images, "out.zarr", mask=LatentMask.from_keep(stats, 0.5), stats=stats, options=options)
    return folder


@pytest.fixture
def work(origin, tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "work"
    shutil.copytree(origin, folder)
    for file in (folder / "data").rglob("*.png"):
        age(file)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def call(work, capsys):
    """`call(arguments)`: exit code, standard output and the last line of standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(exit_info.value.code or 0), out, err.splitlines()[-1] if err else ""

    return run


def age(file: Path) -> None:
    os.utime(file, ns=(LONG_AGO, LONG_AGO))


def edit(number: int) -> str:
    """Change the last byte of an image file, which Pillow does not look at; gives its name."""
    file = Path(f"data/cats/{number:02d}.png")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return f"cats/{number:02d}.png"


def test_nothing_differs(call):
    code, out, _ = call("sync", "data", "out.zarr")
    assert (code, out) == (0, "out.zarr has the 20 images of data as they are now\n")
    assert call("sync", "data", "out.zarr", "--apply")[0] == 0


def test_what_was_not_asked_for_is_not_taken_for_gone(call):
    """The first image, which a hash of its name holds out."""
    out = call("sync", "data", "out.zarr", "--split", "train")[1]
    assert "1 gone: cats/00.png" in out
    assert "of the split val, and none of that was asked for" in out


@pytest.mark.slow
def test_what_differs_and_that_it_is_applied(call, cut_patches):
    edit(3)
    edit(4)
    Path("data/cats/19.png").unlink()
    Path("data/cats/00.png").rename("data/cats/18a.png")
    save_png(Path("data/dogs/0.png"), cut_patches(30)[29])
    before = tree(Path("out.zarr"))
    code, out, _ = call("sync", "data", "out.zarr", "--check")
    assert code == 1
    for line in (
        "out.zarr has 20 images, and data has 20",
        "  1 new: dogs/0.png",
        "  2 changed: cats/03.png, cats/04.png",
        "  1 renamed: cats/00.png to cats/18a.png",
        "  1 gone: cats/19.png",
        "To encode: 3 images, in 2 of 3 row groups; to keep: 17, 0 of 3 row groups as they are",
    ):
        assert line in out
    assert tree(Path("out.zarr")) == before
    code, data, _ = call("sync", "data", "out.zarr", "--json")
    assert (code, json.loads(data)) == (
        1,
        {
            "store": "out.zarr",
            "differs": True,
            "images": 20,
            "stored_images": 20,
            "new": ["dogs/0.png"],
            "changed": ["cats/03.png", "cats/04.png"],
            "renamed": [["cats/00.png", "cats/18a.png"]],
            "relabelled": [],
            "gone": ["cats/19.png"],
            "to_encode": {"images": 3, "row_groups": 2},
            "to_keep": {"images": 17, "row_groups": 0},
        },
    )
    code, data, _ = call("sync", "data", "out.zarr", "--apply", "--out", "new.zarr", "--json")
    assert (code, json.loads(data)["applied"], len(json.loads(data)["changed"])) == (0, "new.zarr", 2)
    code, applied, _ = call("sync", "data", "out.zarr", "--apply")
    assert code == 0
    assert out in applied
    assert tree(Path("out.zarr")) == tree(Path("new.zarr"))
    assert call("verify", "out.zarr")[0] == call("sync", "data", "out.zarr")[0] == 0


@pytest.mark.usefixtures("without_ctimes")
def test_check_finds_what_times_do_not_say(call):
    assert call("sync", "data", "out.zarr")[0] == 0
    edit(7)
    age(Path("data/cats/07.png"))
    assert call("sync", "data", "out.zarr")[0] == 0
    code, out, _ = call("sync", "data", "out.zarr", "--check")
    assert (code, "1 changed: cats/07.png" in out) == (1, True)


@pytest.mark.slow
def test_one_split(call, cut_patches):
    Path("data/cats").rename("data/train")
    for i in range(2):
        save_png(Path(f"data/test/{i}.png"), cut_patches(30)[20 + i])
    assert call("sync", "data", "out.zarr", "--split", "train", "--apply")[0] == 0
    assert call("sync", "data", "out.zarr", "--split", "train")[0] == 0
    code, out, _ = call("sync", "data", "out.zarr")
    assert (code, "2 new" in out, "--split train compares these alone" in out) == (1, True, True)
    code, out, _ = call("sync", "data", "out.zarr", "--split", "test")
    assert (code, "20 gone" in out, "2 new" in out) == (1, True, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere", "out.zarr"], 1, "there is no nowhere"),
        (["data", "nowhere.zarr"], 1, "there is no store"),
        (["data", "out.zarr", "--out", "new.zarr"], 2, "give --apply, too"),
        (["data", "out.zarr", "--crop", "none"], 2, "out.zarr was made with --crop centre"),
        (["data", "s3://bucket/out.zarr", "--apply"], 2, "--out"),
        (["else", "out.zarr", "--apply"], 1, "none of the 20 images in out.zarr is in else"),
    ],
)
def test_what_is_refused(call, cut_patches, arguments, code, message):
    save_png(Path("else/a.png"), cut_patches(30)[29])
    before = tree(Path("out.zarr"))
    found, _, err = call("sync", *arguments)
    assert (found, message in err) == (code, True), err
    assert tree(Path("out.zarr")) == before


def test_append_says_which_of_its_images_were_changed(call):
    name = edit(5)
    code, _, err = call("append", "data", "out.zarr")
    assert (code, f"({name} with other bytes: sync encodes what has changed)" in err) == (1, True), err
    age(Path("data") / name)
    shutil.copytree("data", "copy")
    assert "with other bytes" in call("append", "copy", "out.zarr", "--check")[2]


def stopped_after(monkeypatch, row_groups: int) -> None:
    """Let a disk be full after so many row groups."""
    write = RowGroupWriter.write

    def fails(self, row_group, *numbers):
        if row_group >= row_groups:
            raise OSError(28, "No space left on device")
        return write(self, row_group, *numbers)

    monkeypatch.setattr(RowGroupWriter, "write", fails)


@pytest.mark.slow
def test_a_resumed_encode_names_an_image_that_was_edited(call, monkeypatch):
    words = ["encode", "data", "new.zarr", "--keep", "50%", "--evaluate", "none", "--shard", "8"]
    with monkeypatch.context() as patch:
        stopped_after(patch, 2)
        assert call(*words)[0] == 1
    name = edit(3)
    edit(17)  # which is not encoded yet
    code, _, err = call(*words)
    assert (code, name in err, "new.zarr.partial" in err, "--overwrite" in err) == (1, True, True, True), err
    age(Path("data") / name)
    assert call(*words, "--check")[0] == 1
    assert call(*words, "--overwrite")[0] == 0
    checksums = open_images("data", size=16, channels=3).checksums(range(IMAGES))
    np.testing.assert_array_equal(open_store("new.zarr").checksums, checksums)


def test_a_resumed_encode_of_unchanged_images_reads_none_again(call, monkeypatch):
    words = ["encode", "data", "new.zarr", "--keep", "50%", "--evaluate", "none", "--shard", "8"]
    with monkeypatch.context() as patch:
        stopped_after(patch, 2)
        assert call(*words)[0] == 1
    with monkeypatch.context() as patch:
        patch.setattr("hvae_codec.data.containers.Container.read_checksum", lambda *_: pytest.fail("it was read"))
        assert call(*words)[0] == 0


@pytest.mark.slow
def test_a_resumed_append_names_an_image_that_was_edited(call, monkeypatch, cut_patches):
    for i in range(12):
        save_png(Path(f"more/dogs/{i:02d}.png"), cut_patches(IMAGES + 12)[IMAGES + i])
    with monkeypatch.context() as patch:
        stopped_after(patch, 3)  # the rest of the third row group is filled with four of them
        assert call("append", "more", "out.zarr")[0] == 1
    content = Path("more/dogs/02.png").read_bytes()
    Path("more/dogs/02.png").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, _, err = call("append", "more", "out.zarr")
    assert (code, "dogs/02.png was changed" in err, "out.zarr.partial" in err) == (1, True, True), err
    assert len(open_store("out.zarr")) == IMAGES
    Path("more/dogs/02.png").write_bytes(content)
    assert call("append", "more", "out.zarr")[0] == 0
    assert len(open_store("out.zarr")) == IMAGES + 12


@pytest.mark.usefixtures("without_ctimes")
def test_repair_compares_all_images_with_check(call):
    assert call("repair", "out.zarr", "data", "--check")[0] == 0
    name = edit(11)
    age(Path("data") / name)
    assert name not in call("repair", "out.zarr", "data")[1]
    code, out, _ = call("repair", "out.zarr", "data", "--check")
    assert (code, f"1 of the images given, such as {name}, have other bytes" in out) == (0, True), out
    code, _, err = call("repair", "out.zarr", "--check")
    assert (code, "give DATA" in err) == (2, True)
