"""The whole commands verify and repair: what they say, their exit codes, and how they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hvae_codec import LatentMask, encode_images, kl_stats, load_model, open_images
from hvae_codec.analysis.ranking_file import ranking_path
from hvae_codec.encode.pipeline import EncodeOptions
from hvae_codec.prune.kl_stats import save_kl_stats
from hvae_codec_cli.app import main
from photos import save_png
from stores import tree

IMAGES, SHARD = 20, 8


@pytest.fixture(scope="module")
def origin(tiny_run, cut_patches, tmp_path_factory) -> Path:
    """A folder with data/, runs/latest and out.zarr, whose images have sketches."""
    folder = tmp_path_factory.mktemp("work")
    for i, patch in enumerate(cut_patches(IMAGES)):
        save_png(folder / "data" / f"class{i % 2}" / f"{i:02d}.png", patch)
    shutil.copytree(tiny_run, folder / "runs" / "latest")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        model, images = load_model("runs/latest"), open_images("data", size=16, channels=3)
        stats = kl_stats(model, images)
        save_kl_stats(ranking_path(Path("runs/latest")), stats)
        options = EncodeOptions(batch_size=4, row_group_size=SHARD, verify=True)
        encode_images(model, images, "out.zarr", mask=LatentMask.from_keep(stats, 0.5), stats=stats, options=options)
    return folder


@pytest.fixture
def work(origin, tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "work"
    shutil.copytree(origin, folder)
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


def damage() -> None:
    for shard in (Path("out.zarr/z8/c/1/0/0/0"), Path("out.zarr/z8/c/2/0/0/0")):
        shard.unlink()
    shutil.rmtree("out.zarr/step8/c")
    shutil.rmtree("out.zarr/name/c")


@pytest.mark.parametrize("options", [(), ("--deep",), ("--deep", "--model", "runs/latest", "--device", "cpu")])
def test_all_is_well(call, options):
    files = len(tree(Path("out.zarr")))
    code, out, _ = call("verify", "out.zarr", *options)
    assert (code, out) == (0, f"out.zarr: 20 images in 3 row groups, {files} files: all is well\n")


def test_damage_is_a_table_and_exit_code_1(call):
    Path("out.zarr/z8/c/1/0/0/0").unlink()
    Path("out.zarr/committed/c/2").write_bytes(b"torn")
    code, out, _ = call("verify", "out.zarr")
    assert code == 1
    assert "2 files are damaged or missing" in out
    (lost,) = (line for line in out.splitlines() if "z8/c/1/0/0/0" in line)
    assert "is missing" in lost
    assert "8-15" in lost
    assert "class0/08.png, class0/10.png" in lost or "class0/16.png" in lost
    (torn,) = (line for line in out.splitlines() if "committed/c/2" in line)
    assert "16-19" in torn


def test_json_says_the_same(call):
    Path("out.zarr/z8/c/1/0/0/0").unlink()
    code, out, _ = call("verify", "out.zarr", "--json")
    data = json.loads(out)
    assert (code, data["ok"], data["damaged_row_groups"], data["images"]) == (1, False, [1], IMAGES)
    (found,) = data["damages"]
    assert (found["file"], found["problem"], found["images"]) == ("z8/c/1/0/0/0", "is missing", [[8, 15]])
    assert len(found["names"]) == 3


@pytest.mark.slow
def test_on_other_processes_the_report_is_the_same(call):
    Path("out.zarr/z8/c/1/0/0/0").unlink()
    Path("out.zarr/committed/c/2").write_bytes(b"torn")
    assert call("verify", "out.zarr", "--on", "local:2")[:2] == call("verify", "out.zarr")[:2]


def test_repair_mends_it(call):
    before = tree(Path("out.zarr"))
    damage()
    code, out, _ = call("repair", "out.zarr", "data", "--batch-size", 4)
    first, second = out.splitlines()
    assert code == 0
    assert "files replaced: " in first
    assert "all is well" in second
    assert tree(Path("out.zarr")) == before
    code, out, _ = call("repair", "out.zarr", "data", "--batch-size", 4)
    assert (code, "nothing to repair" in out.splitlines()[0]) == (0, True)


def test_metadata_are_repaired_without_images(call):
    before = tree(Path("out.zarr"))
    Path("out.zarr/zarr.json").unlink()
    shutil.move("data", "gone")
    shutil.move("runs", "no-runs")
    for options in ((), ("--deep",)):
        code, out, _ = call("verify", "out.zarr", *options)
        assert (code, "zarr.json │ is missing" in out) == (1, True)
    for command in (("decode", "out.zarr", "images"), ("info", "out.zarr")):
        code, out, err = call(*command)
        assert code == 1
        assert "`hvae-codec repair out.zarr`" in err
    code, out, _ = call("repair", "out.zarr")
    assert code == 0
    for part in ("damaged row groups: 0; ", "files replaced: 1; ", "zarr.json is restored from"):
        assert part in out.splitlines()[0]
    assert tree(Path("out.zarr")) == before
    code, out, _ = call("repair", "out.zarr")
    assert (code, "nothing to repair" in out.splitlines()[0]) == (0, True)


def test_metadata_and_row_groups_are_repaired_by_one_command(call):
    before = tree(Path("out.zarr"))
    damage()
    Path("out.zarr/zarr.json").write_bytes(before["zarr.json"].replace(b'"shard"', b'"shart"'))
    code, out, _ = call("repair", "out.zarr")
    assert (code, "which were not given" in out) == (1, True)
    Path("out.zarr/zarr.json").unlink()
    code, out, _ = call("repair", "out.zarr", "data", "--batch-size", 4)
    assert (code, "restored from its second copy" in out) == (0, True)
    assert tree(Path("out.zarr")) == before


def test_what_cannot_be_repaired_is_said(call):
    damage()
    Path("data/class0/16.png").unlink()
    code, out, _ = call("repair", "out.zarr", "data", "--batch-size", 4)
    assert code == 1
    assert "name, step8 cannot be made anew" in out
    assert "step8/c/0" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("verify", "none.zarr"), "there is no store none.zarr"),
        (("verify", "data"), "data is no zarr store"),
        (("verify", "out.zarr", "--deep", "--model", "none"), "there is no run at none"),
        (("verify", "out.zarr", "--on", "local"), "--on is 'local'; give local:N"),
        (("repair", "out.zarr", "--on", "dask:0"), "--on is 'dask:0'; give from 1 to 1,024 processes"),
        (("repair", "out.zarr", "none"), "there is no none"),
        (("repair", "none.zarr", "data"), "there is no store none.zarr"),
    ],
)
def test_bad_input_is_one_sentence(call, arguments, message):
    code, out, err = call(*arguments)
    assert code in (1, 2)
    assert (out, err.startswith("hvae-codec: ")) == ("", True)
    assert message in err
