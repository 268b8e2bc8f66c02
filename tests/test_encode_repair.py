"""Damaged stores are mended from their images, byte for byte, and never with other images."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from PIL import Image

from hvae_codec import (
    LatentMask,
    encode_images,
    kl_stats,
    load_model,
    open_images,
    open_store,
    repair,
    verify,
    verify_deep,
)
from hvae_codec.data.sources import as_source
from hvae_codec.encode import repair as repair_module
from hvae_codec.encode.append import append
from hvae_codec.encode.pipeline import EncodeOptions
from hvae_codec.encode.repair import RepairOptions
from hvae_codec.errors import StoreError, UsageError
from hvae_codec.model.checkpoint import save_model
from hvae_codec.model.hvae import HVAE
from hvae_codec.storage.folder import FolderLocation
from hvae_codec.store.arrays import row_group_digest
from hvae_codec.store.reader import Store
from hvae_codec.store.schema import WRITE_ALL
from photos import save_png
from stores import make_spec, make_store, tree, without_copy

pytestmark = pytest.mark.slow

IMAGES, SHARD = 20, 8


@pytest.fixture(scope="module")
def folder(cut_patches, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i, pixels in enumerate(cut_patches(IMAGES)):
        save_png(folder / ("cats" if i % 3 else "dogs") / f"{i:03d}.png", pixels)
    return folder


@pytest.fixture(scope="module")
def source(folder):
    return open_images(folder, size=16, channels=3)


@pytest.fixture(scope="module")
def stats(tiny_model, source):
    return kl_stats(tiny_model, source)


@pytest.fixture(scope="module")
def encoded(tiny_model, source, stats, tmp_path_factory) -> Callable[[str], Path]:
    """`encoded(granularity)`: a store that is made once."""

    @functools.cache
    def make(granularity: str) -> Path:
        path = tmp_path_factory.mktemp("stores") / "out.zarr"
        mask = LatentMask.from_keep(stats, 0.5, granularity=granularity)
        options = EncodeOptions(batch_size=4, row_group_size=SHARD, evaluate=True, verify=True)
        return encode_images(tiny_model, source, path, mask=mask, stats=stats, options=options).path

    return make


@pytest.fixture
def whole(request, encoded) -> Path:
    """A store of three row groups, the last one short, with each image's rate, distortion and sketch."""
    return encoded(getattr(request, "param", "variate"))


@pytest.fixture
def store(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out.zarr"))


@pytest.fixture
def run_repair(store, source, tiny_model, stats) -> Callable:
    def call(images=source, model=tiny_model, **options):
        return repair(store, images, model, stats=stats, options=RepairOptions(batch_size=4), **options)

    return call


def shards(path: Path, row_group: int, arrays: str = "z*") -> list[Path]:
    return sorted(p for a in path.glob(arrays) for p in (a / "c" / str(row_group)).rglob("*") if p.is_file())


def flip(path: Path, at: int = 20) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def damage(path: Path, what: str) -> None:
    """The kinds of damage that are mended, by name."""
    if what == "everything":
        for kind in ("swapped shards", "a lost shard", "tables", "lost rates and sketches"):
            damage(path, kind)
    elif what == "a flipped byte":
        flip(shards(path, 1)[-1])
    elif what == "a lost shard":
        shards(path, 2)[0].unlink()
    elif what == "a lost row group":
        for shard in shards(path, 0):
            shard.unlink()
    elif what == "a lost digest":
        (path / "committed" / "c" / "1").unlink()
    elif what == "a lost row group and its digest":
        for file in (*shards(path, 2), path / "committed" / "c" / "2"):
            file.unlink()
    elif what == "swapped shards":
        first, second = shards(path, 0)[-1], shards(path, 1)[-1]
        content = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(content)
    elif what == "lost rates and sketches":
        (path / "rate" / "c" / "1").unlink()
        flip(path / "distortion" / "c" / "2")
        (path / "sketch" / "c" / "0").unlink()
    elif what == "tables":
        for name in (
            "name",
            "label",
            *(p.name for p in path.glob("step*")),
            *(p.name for p in path.glob("dimension*")),
        ):
            shutil.rmtree(path / name / "c")
    elif what == "array metadata":
        for array in path.iterdir():
            if array.is_dir():
                (array / "zarr.json").write_text("{}")
        shards(path, 1)[0].unlink()


KINDS = [
    "a flipped byte",
    "a lost shard",
    "a lost row group",
    "a lost digest",
    "a lost row group and its digest",
    "swapped shards",
    "lost rates and sketches",
    "tables",
    "array metadata",
]


@pytest.mark.parametrize(
    ("whole", "what"), [*(("variate", kind) for kind in KINDS), ("position", "everything")], indirect=["whole"]
)
def test_a_repaired_store_is_what_it_was(whole, store, run_repair, what):
    damage(store, what)
    assert not verify(store).ok
    seen = []
    report = run_repair(progress=lambda done, total: seen.append((done, total)))
    assert report.after.ok, report.after.damages
    assert (report.notes == []) == (what != "a lost row group and its digest"), report.notes
    assert set(report.rewritten) <= set(tree(whole))
    assert tree(store) == tree(whole)
    assert what == "tables" or seen[-1][0] == seen[-1][1] > 0
    assert run_repair().rewritten == []


def test_images_are_found_by_name_among_others(whole, store, run_repair, source, folder, cut_patches, tmp_path):
    more = Path(shutil.copytree(folder, tmp_path / "more"))
    Image.fromarray(cut_patches(1)[0].transpose(1, 2, 0)).save(more / "aardvark.png")
    damage(store, "a lost row group")
    damage(store, "a lost shard")
    report = run_repair(open_images(more, size=16, channels=3))
    assert (report.after.ok, report.notes) == (True, [])
    assert tree(store) == tree(whole)


def test_what_images_are_missing_is_said_and_the_others_are_used(whole, store, run_repair, source):
    damage(store, "a lost row group")
    damage(store, "a lost shard")
    report = run_repair(source.subset(range(5, IMAGES)))
    assert report.after.damaged_row_groups == [0]
    (note,) = report.notes
    assert "images 0 to 7 cannot be encoded again: cats/001.png and 4 others" in note
    assert all("c/2/" in file for file in report.rewritten)
    assert run_repair().after.ok
    assert tree(store) == tree(whole)


@pytest.mark.parametrize("what", ["a flipped byte", "a lost digest", "a lost row group", "lost metadata"])
def test_other_images_are_not_put_in(store, run_repair, folder, tmp_path, what):
    others = Path(shutil.copytree(folder, tmp_path / "others"))
    for path in others.rglob("*.png"):
        with Image.open(path) as image:
            image.rotate(180).save(path)
    damage(store, "a lost row group and its digest" if what == "a lost row group" else what)
    if what == "lost metadata":
        shutil.rmtree(store / "name")
    before = tree(store)
    images = open_images(others, size=16, channels=3)
    report = run_repair(images.subset([*range(1, IMAGES), 0]))
    assert not report.after.ok
    assert "give the images that were encoded" in report.notes[0] or "give those, or restore" in report.notes[0]
    metadata = ["name/zarr.json"] if what == "lost metadata" else []  # no images are put in by that
    assert report.rewritten == metadata
    assert {name: content for name, content in tree(store).items() if name not in metadata} == before


def test_another_model_and_damage_that_cannot_be_mended_are_refused(
    store, run_repair, source, tiny_model, tiny_config, tmp_path
):
    torch.manual_seed(3)
    save_model(tmp_path / "other", tiny_config, HVAE(tiny_config.model).state_dict())
    damage(store, "a lost shard")
    with pytest.raises(StoreError, match=r"was made with model .*, and"):
        run_repair(model=load_model(tmp_path / "other"))
    without_copy(store)
    content = (store / "zarr.json").read_text()
    (store / "zarr.json").write_text(content.replace('"package_version": "0', '"package_version": "9'))
    report = run_repair()
    assert report.after.damages[0].file == "zarr.json"
    assert "its metadata are damaged, they have another checksum" in report.notes[-1]
    with pytest.raises(StoreError, match="there is no store"):
        repair(tmp_path / "none.zarr", source, tiny_model)


@pytest.mark.parametrize("what", ["a lost row group", "swapped shards", "tables"])
def test_a_killed_repair_leaves_the_store_no_worse(whole, store, run_repair, monkeypatch, what):
    expected = open_store(whole).stored(slice(None))
    for allowed in range(2):
        shutil.rmtree(store)
        shutil.copytree(whole, store)
        damage(store, what)
        before = {d.file for d in verify(store).damages}
        patch_replacing(monkeypatch, allowed)
        with pytest.raises(Killed):
            run_repair()
        monkeypatch.undo()
        report = verify(store)
        assert {d.file for d in report.damages} <= before
        assert any("no part of the store" in note for note in report.notes)
        if what == "a lost row group":
            for r, numbers in open_store(store).stored(slice(SHARD, None)).items():
                np.testing.assert_array_equal(numbers, expected[r][SHARD:])
        assert run_repair().after.ok
        assert tree(store) == tree(whole)


class Killed(BaseException):
    """The process dies."""


def patch_replacing(monkeypatch, allowed: int) -> None:
    """Let the process die while it writes a file, when `allowed` are written."""
    real, calls = FolderLocation.write, []

    def write(store, key, content):
        calls.append(key)
        if len(calls) > allowed:
            array = store / key.partition("/")[0]
            left = array if array.is_dir() else store
            (left / "0.12ab.partial").write_bytes(content[:10])
            raise Killed
        real(store, key, content)

    monkeypatch.setattr(FolderLocation, "write", write)


@pytest.mark.parametrize("whole", ["variate", "position"], indirect=True)
def test_what_takes_no_images_is_mended_without_them(whole, store):
    files = [file for file in store.glob("**/zarr.json") if file.parent.name != "committed"]
    for lost in (["committed"], ["name", "z8"], ["committed", "label", "rate"], ["step8", "z8"]):
        for name in lost:
            (store / name / "zarr.json").unlink()
        report = repair(store)
        assert (report.after.ok, report.notes) == (True, [])
        assert sorted(report.rewritten) == [f"{name}/zarr.json" for name in lost]
        assert tree(store) == tree(whole)
    for file in (*files, *store.glob("dimension*/c/0/0")):
        if file.parent.name not in ("name", "label"):
            file.unlink()
    assert repair(store).after.ok
    assert tree(store) == tree(whole)
    for file in files:
        file.unlink()
    report = repair(store)  # nothing says how many images there are
    assert report.rewritten == ["zarr.json"]
    assert not report.after.ok


def test_one_flipped_byte_costs_one_pass_over_the_store(tmp_path, monkeypatch):
    """And what was damaged is read again: chunk by chunk, and to see what is left."""
    path = make_store(tmp_path / "out.zarr", make_spec(30, row_group_size=2)).path
    flip(shards(path, 7)[-1])
    real, rows = Store.raw_latents, []

    def counted(self, resolution, wanted, cache=None):
        rows.append(len(wanted))
        return real(self, resolution, wanted, cache)

    monkeypatch.setattr(Store, "raw_latents", counted)
    report = repair(path)
    assert ([damage.row_group for damage in report.after.damages], len(report.notes)) == ([7], 1)
    resolutions, row_group = 3, 2
    assert resolutions * 30 <= sum(rows) <= resolutions * (30 + 3 * row_group)


def test_what_takes_images_is_said_without_them(store, source):
    for file in ("zarr.json", "label/c/0", "z8/zarr.json"):
        (store / file).unlink()
    shards(store, 1)[0].unlink()
    report = repair(store)
    assert report.rewritten == ["zarr.json", "z8/zarr.json"]
    first, *others = report.notes
    assert first.startswith("label ")
    assert "restore" in first
    assert len(others) == 1
    assert "which were not given" in others[0]
    assert {damage.row_group for damage in report.after.damages} == {None, 1}
    with pytest.raises(UsageError, match="without a model"):
        repair(store, source)


def test_a_group_and_what_takes_images_are_mended_at_once(whole, store, run_repair):
    damage(store, "tables")
    damage(store, "a lost shard")
    (store / "zarr.json").unlink()
    report = run_repair()
    assert (report.after.ok, report.notes, report.rewritten[0]) == (True, [], "zarr.json")
    assert tree(store) == tree(whole)


def test_row_groups_are_mended_where_names_cannot_be(store, run_repair, source):
    damage(store, "a lost shard")
    (store / "label" / "c" / "0").unlink()
    others = source.subset(range(IMAGES - 1, -1, -1))  # in another order
    report = run_repair(others)
    assert [damage.file for damage in report.after.damages] == ["label/c/0"]
    damage(store, "a lost row group")
    (store / "name" / "c" / "0").unlink()
    report = run_repair(others)
    assert report.after.damaged_row_groups == [0]
    assert "label, name cannot be made anew" in report.notes[0]
    assert "names are lost" in report.notes[1]


@pytest.mark.parametrize("file", ["zarr.json", "c/0"])
def test_a_model_that_a_store_carries_is_put_back(tiny_model, source, stats, tiny_config, tmp_path, file):
    path, options = tmp_path / "out.zarr", EncodeOptions(row_group_size=SHARD, embed="whole")
    encode_images(tiny_model, source, path, mask=LatentMask.from_keep(stats, 0.5), stats=stats, options=options)
    whole = tree(path)
    assert verify_deep(path).ok
    (path / "model" / file).unlink()
    (damage,) = verify(path).damages
    assert (damage.file, damage.problem, list(damage.images)) == (f"model/{file}", "is missing", [])
    torch.manual_seed(3)
    save_model(tmp_path / "other", tiny_config, HVAE(tiny_config.model).state_dict())
    report = repair(path, source, load_model(tmp_path / "other"))
    assert "carries another model" in report.notes[0]
    assert repair(path, source, tiny_model).after.ok
    assert tree(path) == whole


def test_an_appended_store_is_mended_from_either_source(tiny_model, stats, cut_patches, tmp_path):
    old, new = cut_patches(IMAGES), cut_patches(2 * IMAGES)[IMAGES:]
    path, options = tmp_path / "out.zarr", EncodeOptions(batch_size=4, row_group_size=SHARD, evaluate=True, verify=True)
    encode_images(tiny_model, old, path, mask=LatentMask.from_keep(stats, 0.5), stats=stats, options=options)
    append(tiny_model, new, path, batch_size=4)
    report = verify_deep(path, tiny_model)
    assert (report.ok, report.notes, report.images) == (True, [], 2 * IMAGES)
    whole = tree(path)
    for row_group, images in ((1, old), (4, new)):
        shards(path, row_group)[0].unlink()
        report = repair(path, as_source(images), tiny_model, options=RepairOptions(batch_size=4))
        assert report.after.ok, report.notes
    assert tree(path) == whole


def test_what_its_digest_does_not_vouch_for_is_not_kept(store, run_repair):
    """A code that changed on its way to the disk, in a store of a machine that rounds another one otherwise."""
    opened, rows = open_store(store), slice(0, SHARD)
    codes, (first, *_, last) = opened.stored(rows), opened.resolutions
    expected = codes[first].copy()
    codes[last][0, 0, 0, 0] += 1
    zarr.open_array(store / f"z{last}", mode="r+").with_config(WRITE_ALL)[rows] = codes[last]
    digest = np.uint32(row_group_digest([codes[r] for r in opened.resolutions]))
    zarr.open_array(store / "committed", mode="r+")[0] = digest
    assert verify(store).ok
    codes[first][3, 0, 0, 0] += 9
    zarr.open_array(store / f"z{first}", mode="r+").with_config(WRITE_ALL)[rows] = codes[first]
    report = run_repair()
    assert report.after.ok
    (note,) = report.notes
    assert "row group 0 is rounded otherwise" in note
    np.testing.assert_array_equal(open_store(store).stored(rows)[first], expected)


@pytest.mark.parametrize("size", [4, 16])
def test_a_store_that_replaced_the_inspected_one_is_left_alone(store, source, tiny_model, stats, monkeypatch, size):
    """The read is not locked, and may take hours: what it found is not said of the store that is there afterwards."""
    mask, real = LatentMask.from_keep(stats, 0.5), repair_module.check_row_groups

    def replaced_afterwards(inspection, *row_groups, **options):
        found = real(inspection, *row_groups, **options)
        options = EncodeOptions(batch_size=4, row_group_size=size, overwrite=True)
        encode_images(tiny_model, source, store, mask=mask, stats=stats, options=options)
        return found

    monkeypatch.setattr(repair_module, "check_row_groups", replaced_afterwards)
    damage(store, "a flipped byte")
    with pytest.raises(StoreError, match="was replaced while it was read"):
        repair(store, source, tiny_model, stats=stats, options=RepairOptions(batch_size=4))
    assert verify(store).ok
