"""Looking before leaping: --dry-run writes nothing and says what comes, --images takes some, --json is one object."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hvae_codec import open_store
from hvae_codec.config import config_to_toml
from hvae_codec_cli.app import main
from photos import cut, save_png
from stores import tree


@pytest.fixture(scope="module")
def origin(tmp_path_factory, tiny_config, tiny_run: Path) -> Path:
    """A folder with data/ (24 images of several kinds in two classes), data.npy, runs/latest, tiny.toml, half.zarr."""
    folder = tmp_path_factory.mktemp("look")
    for number, pixels in enumerate(cut(24)):
        save_png(folder / f"data/{'cats' if number < 16 else 'dogs'}/{number:02d}.png", pixels)
    Image.fromarray(cut(1, 16, 1)[0, 0]).save(folder / "data/cats/01.png")  # grey
    Image.fromarray(cut(1, 40)[0].transpose(1, 2, 0)).save(folder / "data/cats/02.png")
    (folder / "data/cats/03.heic").write_text("no image that is read")
    np.save(folder / "data.npy", cut(24).transpose(0, 2, 3, 1))
    (folder / "tiny.toml").write_text(config_to_toml(tiny_config))
    shutil.copytree(tiny_run, folder / "runs/latest")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(SystemExit) as ended:
            main(["encode", "data", "half.zarr", "--keep", "50%", "--evaluate", "none", "--images", ":16"])
    assert not ended.value.code
    return folder


@pytest.fixture
def work(origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `origin` to work in."""
    shutil.copytree(origin, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.fixture
def hvae(capsys):
    """`hvae(code, arguments)`: what a command says on standard output and standard error."""

    def call(code: int, arguments: str) -> tuple[str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(arguments.split())
        out, errors = capsys.readouterr()
        assert (stopped.value.code or 0) == code, errors
        return out, errors

    return call


@pytest.fixture
def dry(work: Path, hvae):
    """`dry(arguments)`: standard output, and as JSON, of a command with --dry-run, which must write nothing."""

    def call(arguments: str) -> tuple[str, dict[str, Any]]:
        before = tree(work), sorted(work.rglob("*"))
        text, _ = hvae(0, f"{arguments} --dry-run")
        data, _ = hvae(0, f"{arguments} --dry-run --json")
        assert (tree(work), sorted(work.rglob("*"))) == before
        return text, json.loads(data)

    return call


ENCODE = "encode data out.zarr --keep 50% --evaluate 8"


def test_encode_dry(work, dry, hvae):
    shutil.rmtree(work / "runs/latest/analysis")
    text, found = dry(ENCODE)
    survey, forecast = found["survey"], found["forecast"]
    assert (found["dry_run"], found["problem"], survey["images"]) == (True, "", 24)
    assert survey["sizes"] == {"16x16": 23, "40x40": 1}
    assert survey["modes"] == {"colour": 23, "grey": 1}
    assert survey["classes"] == {"cats": 16, "dogs": 8}
    assert survey["other_files"] == {".heic": 1}
    assert (survey["changes"]["resized"], survey["changes"]["recoloured"]) == (1, 1)
    assert (survey["refused"], survey["skipped"]) == ({}, {})
    assert "16 × 16 23, 40 × 40 1" in text
    assert "smallest 16 × 16, largest 40 × 40" in text
    assert "24 images to encode, in a store of 1 row group" in text
    assert "a ranking of this model, which the run has not" in text
    assert forecast["cutoff"]["cost"]["images"] <= 8
    hvae(0, ENCODE)
    assert forecast["store_bytes"] == pytest.approx(open_store("out.zarr").nbytes_on_disk(), rel=0.15)
    ranked = json.loads(hvae(0, "encode data other.zarr --keep 50% --evaluate none --dry-run --json")[0])["forecast"]
    assert ranked["ranking_seconds"] == ranked["cutoff_cost_seconds"] == 0
    assert ranked["cutoff"]["cost"] is None


def test_append_dry(work, dry, hvae):
    text, found = dry("append data half.zarr --images 16:")
    assert found["survey"]["classes"] == {"dogs": 8}
    assert (found["forecast"]["images_to_encode"], found["forecast"]["row_groups"]) == (8, 1)
    assert "8 images to encode" in text
    hvae(0, "append data half.zarr --images 16:")
    assert found["forecast"]["store_bytes"] == pytest.approx(open_store("half.zarr").nbytes_on_disk(), rel=0.15)


def test_held_out_images_of_their_own(work, dry, hvae):
    np.save(work / "val.npy", 255 - cut(9).transpose(0, 2, 3, 1))
    text, found = dry("encode data.npy out.zarr --keep 50% --evaluate 8 --val val.npy --images :5")
    own, other = found["survey"], found["other_survey"]
    assert (own["data"], own["images"], own["splits"]) == ("data.npy", 5, {"train": 24})
    assert (other["data"], other["images"], other["splits"]) == ("val.npy", 9, {"val": 9})
    assert found["forecast"]["images_to_encode"] == 5
    assert "data.npy: 5 images" in text
    assert "val.npy: 9 images" in text
    _, found = dry("train data.npy --config tiny.toml --val val.npy --out runs/new")
    assert (found["forecast"]["training_images"], found["other_survey"]["splits"]) == (24, {"val": 9})
    command = "encode data.npy out.zarr --keep 50% --evaluate none --val val.npy"
    assert "val.npy with --split val has 9" in hvae(2, f"{command} --split val --images 9:")[1]
    done = json.loads(hvae(0, f"{command} --split val --images -2: --json")[0])
    assert (done["images_given"], done["images"]) == (2, 2)
    assert list(open_store("out.zarr").names) == ["00000007", "00000008"]
    assert list(open_store("out.zarr").file_bytes) == [768, 768]


def test_words_in_names_that_are_no_splits(work, dry):
    (work / "data/dogs").rename(work / "data/test")
    assert dry(ENCODE)[1]["survey"]["splits"] == {"train": 16, "val": 8}  # as nothing else is held out
    survey = dry(f"{ENCODE} --splits none")[1]["survey"]
    assert (sum(survey["splits"].values()), survey["classes"]) == (24, {"cats": 16, "test": 8})
    assert survey["splits"].keys() == {"train", "val"}
    assert survey["preprocessing"] == {"splits": "none"}


def test_append_under_a_prefix(work, dry, hvae):
    _, found = dry("append data half.zarr --images :3 --prefix again/")
    hvae(0, "append data half.zarr --images :3 --prefix again/")
    store = open_store("half.zarr")
    assert list(store.names[-3:]) == [f"again/cats/{i:02d}.png" for i in range(3)]
    assert found["forecast"]["store_bytes"] == pytest.approx(store.nbytes_on_disk(), rel=0.15)


def test_train_dry(work, dry, hvae):
    text, found = dry("train data --config tiny.toml --steps 40 --out runs/new")
    forecast = found["forecast"]
    assert (forecast["steps"], forecast["steps_left"], forecast["images_per_step"]) == (40, 40, 8)
    assert forecast["epochs"] == 40 * 8 / forecast["training_images"]
    assert forecast["cached_bytes"] == forecast["training_images"] * 3 * 16 * 16
    assert forecast["seconds"] == 40 * forecast["seconds_per_step"] > 0
    assert "40 steps of 8 images" in text
    _, found = dry("train data --config tiny.toml --set train.compile=true --out runs/new")
    assert found["forecast"]["seconds_per_step"] is None
    assert "compiled" in found["forecast"]["not_tried"]


@pytest.mark.slow
def test_a_run_that_is_continued(work, dry, hvae):
    shutil.rmtree(work / "runs")
    hvae(0, "train data --config tiny.toml --steps 2 --no-tensorboard --out runs/new")
    text, found = dry("train data --resume --steps 5 --out runs/new")
    assert (found["forecast"]["steps"], found["forecast"]["steps_left"]) == (5, 3)
    assert "5 steps, 3 left" in text
    before = tree(work / "runs")
    _, errors = hvae(1, "train data/dogs --resume --steps 5 --out runs/new --dry-run")
    assert "--allow-other-data" in errors
    hvae(0, "train data/dogs --resume --steps 5 --out runs/new --dry-run --allow-other-data")
    assert tree(work / "runs") == before


def test_what_cannot_be_used(work, hvae):
    (work / "data/cats/04.png").write_bytes(b"")
    Image.fromarray(cut(1)[0, 0].astype(np.uint16)).save(work / "data/cats/05.png")
    before = tree(work)
    refused = {"broken": {"images": 1, "names": ["cats/04.png"]}}
    refused["deeper than 8 bits"] = {"images": 1, "names": ["cats/05.png"]}
    for command in (ENCODE, "train data --config tiny.toml --set train.batch_size=24 --out runs/new"):
        out, errors = hvae(1, f"{command} --dry-run --json")
        found = json.loads(out)
        assert found["survey"]["refused"] == refused
        assert found["forecast"] is None
        assert "cats/04.png" in found["problem"]
        assert errors.splitlines()[-1] == f"hvae-codec: {found['problem']}"
    out, _ = hvae(1, f"{ENCODE} --dry-run")
    assert "1 broken: cats/04.png" in out
    assert "2 images that cannot be used; --skip-unusable leaves them out" in " ".join(out.split())
    found = json.loads(hvae(0, f"{ENCODE} --dry-run --json --skip-unusable")[0])
    assert (found["survey"]["refused"], found["survey"]["skipped"]) == ({}, refused)
    assert found["survey"]["images"] == 22
    assert found["forecast"]
    assert "2 images will be left out" in hvae(0, f"{ENCODE} --dry-run --skip-unusable")[0]
    assert tree(work) == before


def check_codes(found, expected) -> None:
    """Batches of other sizes may round a latent to the next code, once in a while."""
    assert found.keys() == expected.keys()
    for resolution, codes in found.items():
        differences = np.abs(codes.astype(int) - expected[resolution])
        assert differences.max() <= 1
        assert (differences > 0).mean() < 0.01


@pytest.mark.slow
def test_some_images_are_as_all_of_them(work, hvae):
    command = "encode data out.zarr --keep 50% --evaluate none"
    hvae(0, command)
    everything, numbers = open_store("out.zarr"), range(24)
    for text, chosen in (("3:9", numbers[3:9]), ("-4:", numbers[-4:]), ("::5", numbers[::5])):
        hvae(0, f"{command} --overwrite --images {text}".replace("out.zarr", "some.zarr"))
        some = open_store("some.zarr")
        assert list(some.names) == [everything.names[i] for i in chosen]
        assert list(some.labels) == [everything.labels[i] for i in chosen]
        check_codes(some.stored(slice(None)), everything.gather(chosen))
    hvae(0, f"{command} --overwrite --images all".replace("out.zarr", "some.zarr"))
    assert tree(work / "some.zarr") == tree(work / "out.zarr")


@pytest.mark.slow
@pytest.mark.parametrize("data", ["data", "data.npy"])
def test_a_store_in_two_parts_is_the_store_of_all(work, hvae, data):
    hvae(0, f"encode {data} all.zarr --keep 50% --evaluate none")
    hvae(0, f"encode {data} out.zarr --keep 50% --evaluate none --images :10")
    hvae(0, f"append {data} out.zarr --images 10:24")
    joined, whole = open_store("out.zarr"), open_store("all.zarr")
    assert list(joined.names) == list(whole.names)
    check_codes(joined.stored(slice(None)), whole.stored(slice(None)))


def test_numbers_of_an_array_are_never_given_twice(work, hvae):
    hvae(0, "encode data.npy out.zarr --keep 50% --evaluate none --images 8:16")
    hvae(0, "append data.npy out.zarr --images :8")
    names = open_store("out.zarr").names
    assert len(set(names)) == 16
    assert names[8] == "00000016"


def test_encode_append_and_decode_in_json(work, hvae):
    (work / "data/cats/04.png").write_bytes(b"")
    out, errors = hvae(0, f"{ENCODE} --images :16 --skip-unusable --json")
    found, store = json.loads(out), open_store("out.zarr")
    assert (found["store"], found["finished"], found["images"], found["row_groups"]) == ("out.zarr", True, 16, 1)
    assert found["images_skipped"] == {"broken": 1}
    assert found["bytes"] == store.nbytes_on_disk()
    assert found["bits_per_dim"] == store.bits_per_dim()
    cost = found["cutoff"]["cost"]
    assert cost["change_bits_per_dim"] == cost["nelbo_bits_per_dim"] - cost["nelbo_of_all_bits_per_dim"]
    assert found["ranking"] == {"path": "runs/latest/analysis/kl_stats.npz", "images": 23, "is_new": False}
    assert "NELBO" in errors
    assert found["seconds"] > 0
    out, _ = hvae(0, "append data out.zarr --images 16: --skip-unusable --json")
    found = json.loads(out)
    assert (found["images"], found["images_given"]) == (23, 7)
    out, _ = hvae(0, "decode out.zarr back --images 2:5 --json")
    found = json.loads(out)
    assert (found["out"], found["images"], found["format"]) == ("back", 3, "png")


def test_workers_say_whether_the_store_is_there(work, hvae):
    command = f"{ENCODE} --shard 8 --json --worker"
    first, second = (json.loads(hvae(0, f"{command} {worker}/2")[0]) for worker in (0, 1))
    assert (first["finished"], first["worker"]) == (False, "0/2")
    assert (second["finished"], second["row_groups"]) == (True, 3)


@pytest.mark.parametrize(
    ("code", "arguments", "told"),
    [
        (2, "encode data new.zarr --images 24:", "--images 24: names no image; data has 24"),
        (2, "encode data new.zarr --images 9:3", "--images 9:3 names no image"),
        (2, "encode data new.zarr --images 0-9", "--images is '0-9'; give all, a number, or a range"),
        (2, "encode data new.zarr --images 5::-1", "'5::-1'"),
        (2, "encode data new.zarr --split val --images 20:", "data with --split val has"),
        (2, "append data half.zarr --images 99", "--images 99 names no image; data has 24"),
        (1, "append data half.zarr --images 3:5 --dry-run", "these names already, such as cats/03.png"),
        (1, "append data nowhere.zarr --dry-run", "there is no store nowhere.zarr"),
        (1, "encode data half.zarr --dry-run", "half.zarr"),
        (2, "encode data new.zarr --dry-run --worker 0/2", "--worker 0/2 is given"),
        (1, "encode nowhere new.zarr --dry-run", "there is no nowhere"),
        (2, "train data --config tiny.toml --json --out runs/new", "give both, or leave it out"),
        (1, "train data --dry-run --resume --out runs/new", "there is no run at runs/new"),
        (1, "train data/cats/03.heic --config tiny.toml --dry-run --out runs/new", "03.heic"),
    ],
)
def test_wrong_input(work, hvae, code, arguments, told):
    before = tree(work)
    _, errors = hvae(code, arguments)
    assert told in errors.splitlines()[-1]
    assert errors.splitlines()[-1].startswith("hvae-codec: ")
    assert tree(work) == before
