"""A damaged or lost group `zarr.json` is told, and restored byte for byte from the second copy of the metadata."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from hvae_codec import open_store, repair, verify
from hvae_codec.encode.repair import restore_metadata
from hvae_codec.errors import StoreError
from hvae_codec.store.damage import Damage
from hvae_codec.store.metadata import StoreMetadata, attribute_checksum
from stores import GRANULARITIES, make_spec, make_store, photo_latents, tree, without_copy, write_all

OTHER_COPY = Damage("committed/zarr.json", "has a whole copy of other metadata than the group's zarr.json", names=[])
DAMAGED_COPY = Damage("committed/zarr.json", "has no whole copy of the store's metadata", names=[])


@pytest.fixture
def path(tmp_path) -> Path:
    return make_store(tmp_path / "out.zarr", make_spec(12)).path


def assert_restored(path: Path, whole: dict[str, bytes]) -> None:
    """`verify` names the group's file, `open_store` the remedy, and `repair` puts back what was there."""
    (damage,) = verify(path).damages
    assert damage.file == "zarr.json"
    if damage.problem != "does not say that it is a zarr group":  # without which it can be read
        with pytest.raises(StoreError, match=r"zarr\.json is .*; `hvae-codec repair .*out\.zarr`"):
            open_store(path)
    report = repair(path)
    assert (report.after.ok, report.rewritten, report.notes) == (True, ["zarr.json"], [])
    assert tree(path) == whole


@pytest.mark.slow
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_damaged_group_is_restored(tmp_path, granularity):
    path = make_store(tmp_path / "out.zarr", make_spec(12, granularity=granularity)).path
    whole, rng = tree(path), np.random.default_rng(0)
    content, file = whole["zarr.json"], path / "zarr.json"
    file.unlink()
    assert_restored(path, whole)
    for length in (0, 1, len(content) // 2, len(content) - 3):
        file.write_bytes(content[:length])
        assert_restored(path, whole)
    keys = [b'"zarr_format"', b'"node_type"', b'"hvae_codec"', b'"format_version": ', b'"checksum"', b'"shard": ']
    places = [content.index(key) + len(key) - 2 for key in keys] + rng.integers(len(content), size=4).tolist()
    for place in places:
        changed = content[:place] + bytes([content[place] ^ 1 << int(rng.integers(7))]) + content[place + 1 :]
        file.write_bytes(changed)
        try:
            same = json.loads(changed) == json.loads(content)
        except ValueError:
            same = False
        if same:  # space between words
            file.write_bytes(content)
        else:
            assert_restored(path, whole)


@pytest.mark.slow
def test_a_group_that_is_none_is_restored(path):
    whole = tree(path)
    for other in (b"[]", b"null", b'{"attributes": 3}', (path / "name" / "zarr.json").read_bytes(), b"\xff\xfe"):
        (path / "zarr.json").write_bytes(other)
        assert_restored(path, whole)


def test_what_a_user_added_to_the_attributes_is_kept(path):
    zarr.open_group(path, mode="r+").update_attributes({"mine": {"a": 1}})
    whole = tree(path)
    (path / "zarr.json").write_bytes(whole["zarr.json"].replace(b'"shard": 8', b'"shard": 9'))
    assert_restored(path, whole)


def test_other_damage_is_told_and_restoring_takes_nothing_else(path):
    """The latents are checked as ever, with what the copy says of them."""
    (path / "zarr.json").unlink()
    (path / "z4" / "c" / "1" / "0" / "0" / "0").unlink()
    report = verify(path)
    assert [(damage.file, damage.row_group) for damage in report.damages] == [
        ("zarr.json", None),
        ("z4/c/1/0/0/0", 1),
    ]
    assert restore_metadata(path) == ["zarr.json"]
    assert restore_metadata(path) == []
    assert open_store(path).latents(0)
    report = repair(path)
    assert report.notes == ["damaged row groups are encoded again from their images, which were not given"]
    assert [damage.file for damage in report.after.damages] == ["z4/c/1/0/0/0"]


@pytest.mark.parametrize("change", [(b"hvae_codec_copy", b"hvae_codec_copz"), (b'shard\\":8', b'shard\\":9')])
def test_a_damaged_copy_is_told_and_costs_no_images(path, change):
    file, key = path / "committed" / "zarr.json", path / "committed" / "c" / "0"
    file.write_bytes(file.read_bytes().replace(*change))
    assert verify(path).damages == [DAMAGED_COPY]
    assert open_store(path).latents(0)
    key.unlink()  # digests are looked at all the same
    assert [damage.file for damage in verify(path).damages] == ["committed/zarr.json", "committed/c/0"]
    (path / "zarr.json").unlink()
    with pytest.raises(StoreError, match=r"it has no zarr\.json"):
        repair(path)


@pytest.fixture
def other(tmp_path) -> Path:
    """A store of other images, of the same shapes."""
    return make_store(tmp_path / "other.zarr", make_spec(12, labels=["dog"] * 12)).path


def replace_text(file: Path, old: bytes, new: bytes) -> None:
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new))


def test_the_copy_of_another_store_is_told_and_replaced(path, other):
    whole = tree(path)
    shutil.copy(other / "committed" / "zarr.json", path / "committed" / "zarr.json")
    assert verify(path).damages == [OTHER_COPY]
    assert repair(path).rewritten == ["committed/zarr.json"]  # the tables say that the group is right
    assert tree(path) == whole


def test_the_metadata_of_another_store_do_not_replace_the_right_copy(path, other):
    """As after half of a synchronisation: the file in the root is old, all else is new."""
    shutil.copy(other / "zarr.json", path / "zarr.json")
    mixed = tree(path)
    assert [damage.file for damage in verify(path).damages] == ["committed/zarr.json", "zarr.json"]
    assert repair(path).rewritten == []
    assert tree(path) == mixed


@pytest.mark.parametrize("damage", [(b'"node_type": "group"', b'"node_type": "grouq"'), (b'"shard": ', b'"sharc": ')])
def test_the_copy_of_another_store_is_not_put_over_damaged_metadata(path, other, damage):
    whole = tree(path)
    shutil.copy(other / "committed" / "zarr.json", path / "committed" / "zarr.json")
    replace_text(path / "zarr.json", *damage)
    if b"node" in damage[0]:  # its own metadata are whole, and written again
        assert sorted(repair(path).rewritten) == ["committed/zarr.json", "zarr.json"]
        assert tree(path) == whole
        return
    before = tree(path)
    with pytest.raises(StoreError, match="another store's; restore"):
        repair(path)
    assert tree(path) == before


def test_damaged_metadata_are_not_written_over_a_damaged_copy(path):
    replace_text(path / "zarr.json", b'"shard": 8', b'"shard": 2')
    replace_text(path / "committed" / "zarr.json", b"shard", b"sharc")
    before = tree(path)
    assert {damage.file for damage in verify(path).damages} >= {"zarr.json"}
    assert repair(path).rewritten == []
    assert tree(path) == before


def test_arrays_that_disagree_on_the_number_of_images_are_left_alone(path, tmp_path):
    """As after half of a synchronisation with a longer store."""
    longer = make_store(tmp_path / "longer.zarr", make_spec(16)).path
    for name in ("name", "label"):
        shutil.rmtree(path / name)
        shutil.copytree(longer / name, path / name)
    next(path.glob("z*/zarr.json")).unlink()
    before = tree(path)
    assert repair(path).rewritten == []
    assert tree(path) == before


def test_a_copy_makes_no_store_of_an_unfinished_one(path, tmp_path):
    spec = make_spec()
    partial = write_all(tmp_path / "half.zarr", spec, photo_latents(spec), only=1).unfinished
    (partial / "zarr.json").unlink()
    (path / "zarr.json").rename(path / "unfinished.json")  # as in a bucket
    for place in (partial, tmp_path / "half.zarr", path):
        for call in (open_store, verify, repair, restore_metadata):
            with pytest.raises(StoreError, match="unfinished"):
                call(place)


def test_what_a_kill_after_publishing_leaves_in_a_bucket_is_no_damage(path):
    shutil.copy(path / "zarr.json", path / "unfinished.json")
    assert verify(path).damages == []
    (path / "unfinished.json").unlink()
    shutil.copytree(path, replaced := path.with_name("out.zarr.replaced"))
    (replaced / "zarr.json").unlink()
    with pytest.raises(StoreError):
        repair(replaced)  # on its way out


def test_stores_without_a_copy_are_as_they_were(path):
    without_copy(path)
    assert (verify(path).damages, verify(path).notes) == ([], [])
    assert [*restore_metadata(path), *repair(path).rewritten] == []
    content = (path / "zarr.json").read_bytes()
    (path / "zarr.json").write_bytes(content.replace(b'"bits": 8', b'"bits": 9'))
    with pytest.raises(StoreError, match=r"damaged, .* checksum"):
        open_store(path)
    report = repair(path)
    assert (report.rewritten, [damage.file for damage in report.after.damages]) == ([], ["zarr.json"])
    (path / "zarr.json").unlink()
    with pytest.raises(StoreError, match=r"it has no zarr\.json"):
        restore_metadata(path)


@pytest.mark.parametrize("damage", ["none", "version"])
def test_a_newer_version_is_no_damage(path, damage):
    """Neither where the copy says so too, nor where it is damaged."""
    metadata = json.loads((path / "zarr.json").read_text())["attributes"]["hvae_codec"] | {"format_version": 6}
    metadata["checksum"] = attribute_checksum(metadata)
    zarr.open_group(path, mode="r+").update_attributes({"hvae_codec": metadata})
    if damage == "none":
        zarr.open_array(path / "committed", mode="r+").update_attributes({"hvae_codec_copy": json.dumps(metadata)})
    for call in (open_store, verify, repair):
        with pytest.raises(StoreError, match=r"version 6, .* up to 5"):
            call(path)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_metadata_go_round(tmp_path, granularity):
    store = make_store(tmp_path / "out.zarr", make_spec(12, granularity=granularity))
    attribute = json.loads((store.path / "zarr.json").read_text())["attributes"]["hvae_codec"]
    typed = dataclasses.replace(StoreMetadata.from_attribute(attribute), as_read=None)
    assert json.loads(json.dumps(typed.to_attribute())) == attribute


def test_what_a_later_version_adds_to_the_metadata_survives_a_repair(path):
    document = json.loads((path / "zarr.json").read_text())
    later = document["attributes"]["hvae_codec"]
    later["model"]["licence"], later["colour"] = "MIT", "sRGB"
    later["checksum"] = attribute_checksum(later)
    (path / "zarr.json").write_text(json.dumps(document))
    copy = json.loads((path / "committed" / "zarr.json").read_text())
    copy["attributes"]["hvae_codec_copy"] = json.dumps(later)
    (path / "committed" / "zarr.json").write_text(json.dumps(copy))
    assert open_store(path).latents(0)
    (path / "zarr.json").unlink()
    assert restore_metadata(path) == ["zarr.json"]
    assert json.loads((path / "zarr.json").read_text())["attributes"]["hvae_codec"] == later
