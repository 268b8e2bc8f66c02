"""What info says of a store that is being written, in a folder and in a bucket."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from hvae_codec.config import Config, config_to_dict
from hvae_codec.errors import DataError
from hvae_codec.report.about import describe
from hvae_codec.storage.location import location_of
from hvae_codec.store.metadata import ModelRecord, SourcePart, SourceRecord
from hvae_codec.store.open_writer import writer_class
from hvae_codec.store.quantiser import FloatCodec, IntCodec
from hvae_codec.store.unfinished import find_unfinished
from hvae_codec_cli.app import main
from stores import make_spec, make_store, photo_latents, tree, write_all

IMAGES = 20  # in 3 row groups


@pytest.fixture(scope="module")
def record(tiny_config) -> ModelRecord:
    """A model that there can be, which sizes of finished stores are compared with."""
    return ModelRecord(hash="ab" * 32, config=config_to_dict(Config(tiny_config.model))["model"], run="runs/tiny32")


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    """The name of a store of which one row group is written, in the working folder."""
    monkeypatch.chdir(tmp_path)
    write_all("out.zarr", make_spec(IMAGES), photo_latents(make_spec(IMAGES)), only=1)
    return Path("out.zarr")


@pytest.mark.parametrize("name", ["out.zarr", "out.zarr.partial"])
def test_what_is_done_and_what_is_left(path, name):
    data = describe(name).data
    assert (data["kind"], data["path"], data["unfinished"]) == ("unfinished store", "out.zarr", "out.zarr.partial")
    assert (data["images"], data["images_done"]) == (IMAGES, 8)
    assert (data["row_groups"], data["row_groups_done"], data["row_groups_left"]) == (3, 1, [[1, 2]])
    assert data["bytes"] == sum(len(content) for content in tree(Path("out.zarr.partial")).values())
    assert data["resume"] == "hvae-codec encode DATA out.zarr --model runs/tiny32 --shard 8 --chunk 4096"


def test_a_row_group_without_its_digest_is_not_done(tmp_path, monkeypatch, record):
    monkeypatch.chdir(tmp_path)
    spec = make_spec(IMAGES, model=record)
    write_all("out.zarr", spec, photo_latents(spec), only=2)
    Path("out.zarr.partial/committed/c/0").unlink()
    found = find_unfinished(location_of("out.zarr"))
    assert found is not None
    assert (found.committed, found.images_done) == ({1}, 8)
    write_all("out.zarr", spec, photo_latents(spec)).publish()
    assert find_unfinished(location_of("out.zarr")) is None
    assert describe("out.zarr").data["kind"] == "store"


def test_a_store_that_is_being_replaced_is_shown_with_what_replaces_it(path, record):
    Path("out.zarr.partial").rename("new.zarr.partial")
    make_store(path, make_spec(model=record))
    Path("new.zarr.partial").rename("out.zarr.partial")
    facts = describe("out.zarr")
    assert facts.data["kind"] == "store"
    assert facts.data["unfinished"]["row_groups_done"] == 1
    assert "1 of 3 row groups are written (33.3%); out.zarr.partial" in facts.pairs["to replace it"]
    assert facts.data["unfinished"]["resume"].endswith("--overwrite")
    assert describe("out.zarr.partial").data == facts.data["unfinished"]


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"codec": IntCodec(2.0)}, "--step 2.0"),
        ({"codec": FloatCodec("float16")}, "--codec float16"),
        ({"packing": "zstd", "dtypes": {1: "int8", 4: "int8", 16: "int8"}}, "--code-bits 8"),
        ({"packing": "archive", "dtypes": {1: "int8", 4: "int16", 16: "int8"}}, "--codec archive"),
        ({"granularity": "position"}, "--granularity position"),
        ({"per_image": ("rate", "distortion", "sketch")}, "--evaluate all --verify"),
        ({"source": SourceRecord(fingerprint="cd" * 32, bytes=9, preprocessing={"crop": "celeba"})}, "--crop celeba"),
        ({"model": ModelRecord(hash="ab" * 32, run="runs/a b")}, "'runs/a b'"),
    ],
)
def test_the_command_has_the_options_that_the_store_tells_of(tmp_path, changes, options):
    spec = make_spec(IMAGES, **changes)
    write_all(tmp_path / "out.zarr", spec, {}, only=0)
    command = describe(tmp_path / "out.zarr").data["resume"]
    assert options in command
    assert shlex.split(command)[:4] == ["hvae-codec", "encode", "DATA", str(tmp_path / "out.zarr")]


def test_an_append_continues_by_append(tmp_path, monkeypatch, record):
    monkeypatch.chdir(tmp_path)
    parts = (SourcePart(fingerprint="a", bytes=1, images=12), SourcePart(fingerprint="b", bytes=2, images=8))
    spec = make_spec(IMAGES, source=SourceRecord(fingerprint="c", bytes=3, parts=parts))
    write_all("new.zarr", spec, {}, only=0)
    resume = describe("new.zarr").data["resume"]
    assert resume == "hvae-codec append DATA STORE --out new.zarr --model runs/tiny32"
    make_store("other.zarr", make_spec(model=record))
    Path("other.zarr").rename("new.zarr")
    resume = describe("new.zarr").data["unfinished"]["resume"]
    assert resume == "hvae-codec append DATA new.zarr --model runs/tiny32"


def test_in_a_bucket(bucket):
    location, spec = location_of(f"{bucket}/out.zarr"), make_spec(IMAGES)
    writer = writer_class(location).create_or_resume(location, spec)
    latents = photo_latents(spec)
    for row_group in (0, 2):
        rows = slice(writer.rows(row_group).start, writer.rows(row_group).stop)
        writer.write(row_group, {r: numbers[rows] for r, numbers in latents.items()})
    data = describe(f"{bucket}/out.zarr").data
    assert (data["kind"], data["row_groups_done"], data["row_groups_left"]) == ("unfinished store", 2, [[1, 1]])
    assert (data["images_done"], data["unfinished"]) == (12, f"{bucket}/out.zarr")
    assert data["bytes"] == sum(size for _, size in location.files())


def test_the_command_shows_it(path, capsys):
    for arguments in (["out.zarr"], ["out.zarr", "--json"]):
        with pytest.raises(SystemExit) as ended:
            main(["info", *arguments])
        assert ended.value.code == 0
    shown, _, plain = capsys.readouterr().out.partition("{\n")
    assert json.loads("{" + plain)["row_groups_left"] == [[1, 2]]
    for part in ("1 of 3 row groups are written", "8 of 20", "1-2", "hvae-codec encode DATA out.zarr", "--keep"):
        assert part in shown


def test_what_a_kill_left_while_it_was_created_is_no_store(tmp_path):
    (tmp_path / "out.zarr.partial").mkdir()
    assert find_unfinished(location_of(tmp_path / "out.zarr")) is None
    with pytest.raises(DataError, match="neither a store"):
        describe(tmp_path / "out.zarr.partial")
