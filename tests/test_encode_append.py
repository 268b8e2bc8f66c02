"""More images into a store: readers see the old store or the longer one, whatever happens on the way."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from hvae_codec import LatentMask, encode_images, kl_stats, load_model, make_codec, open_images, open_store
from hvae_codec.data.sources import as_source
from hvae_codec.encode.append import append, append_worker, open_to_append
from hvae_codec.encode.pipeline import EncodeOptions
from hvae_codec.encode.repair import RepairOptions, repair
from hvae_codec.errors import DataError, StoreError, UsageError
from hvae_codec.model.checkpoint import load_weights, save_model
from hvae_codec.storage import folder, swap
from hvae_codec.storage.folder import FolderLocation
from hvae_codec.store.arrays import marker_object
from hvae_codec.store.folder_writer import _remove_unfinished
from hvae_codec.store.locks import write_lock
from hvae_codec.store.schema import table_schema
from hvae_codec.store.workers import Worker
from hvae_codec.verification.row_group import checked_row_group
from hvae_codec.verification.verify import verify
from photos import save_png
from stores import tree

pytestmark = pytest.mark.slow

OLD, NEW, KILLS = 21, 30, 3
"""Row groups of 8: two whole ones, 5 images of a third, which 3 new ones fill, and 27 more."""


@pytest.fixture(scope="module")
def images(cut_patches) -> np.ndarray:
    return cut_patches(OLD + NEW)


@pytest.fixture(scope="module")
def folders(images, tmp_path_factory):
    """The old images, and the new ones, as files."""
    folder = tmp_path_factory.mktemp("photos")
    for i, image in enumerate(images):
        save_png(folder / ("old" if i < OLD else "new") / "cats" / f"{i:03d}.png", image)
    return folder


def source(folders: Path, which: str):
    return open_images(folders / which, size=16, channels=3)


@pytest.fixture(scope="module")
def stats(tiny_model, images):
    return kl_stats(tiny_model, images[:OLD])


def first_store(model, stats, images, path: Path, *, evaluate=True, granularity="variate", codec="int", embed=""):
    options = EncodeOptions(batch_size=4, row_group_size=8, chunk_bytes=500, evaluate=evaluate, embed=embed)
    mask = LatentMask.from_keep(stats, 0.5, granularity=granularity)
    return encode_images(model, images, path, mask=mask, stats=stats, codec=make_codec(codec), options=options)


@pytest.fixture(scope="module")
def origin(tiny_model, stats, folders, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "out.zarr"
    first_store(tiny_model, stats, source(folders, "old"), path)
    return path


@pytest.fixture
def path(origin, tmp_path) -> Path:
    """A copy of the first store to work on."""
    return Path(shutil.copytree(origin, tmp_path / "out.zarr"))


@pytest.mark.parametrize(
    ("granularity", "codec", "evaluate"),
    [("variate", "int", True), ("position", "int", False), ("variate", "float16", 0)],
)
def test_all_images_are_there_as_if_encoded_at_once(
    tiny_model, stats, images, folders, tmp_path, granularity, codec, evaluate
):
    path, options = tmp_path / "out.zarr", {"granularity": granularity, "codec": codec, "evaluate": bool(evaluate)}
    before = first_store(tiny_model, stats, source(folders, "old"), path, **options)
    old, names = before.stored(slice(None)), before.names
    rate = before.per_image("rate") if evaluate else None
    seen: list[tuple[int, int]] = []
    new = source(folders, "new")
    store = append(tiny_model, new, path, batch_size=4, progress=lambda *counts: seen.append(counts))
    assert seen[-1] == (NEW, NEW)
    assert store.names == [*names, *new.names]
    assert store.labels == (OLD + NEW) * ["cats"]
    whole = first_store(tiny_model, stats, images, tmp_path / "whole.zarr", **options)
    for resolution, numbers in store.stored(slice(None)).items():
        assert store.group[f"z{resolution}"].chunks == before.group[f"z{resolution}"].chunks
        np.testing.assert_array_equal(numbers[:OLD], old[resolution])
        # Batches differ, so a number at the edge of rounding may fall to the other side.
        np.testing.assert_allclose(numbers, whole.stored(slice(None))[resolution], atol=1)
    for row_group in range(len(store.row_groups)):
        checked_row_group(store, row_group)
    if evaluate:
        np.testing.assert_array_equal(store.per_image("rate")[:OLD], rate)
        np.testing.assert_allclose(store.per_image("distortion")[:OLD], whole.per_image("distortion")[:OLD], rtol=1e-4)
    parts = store.metadata.source.parts
    assert [part.images for part in parts] == [OLD, NEW]
    assert parts[1].fingerprint == new.fingerprint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.zarr", "whole.zarr"]


def test_again_and_again(tiny_model, stats, images, tmp_path):
    path = tmp_path / "out.zarr"
    first_store(tiny_model, stats, images[:5], path, evaluate=False, embed="whole")
    for first, last in ((5, 7), (7, 8), (8, 16), (16, 17), (17, 40)):
        append(tiny_model, images[first:last], path)
    store = open_store(path)
    assert store.names == [f"{i:08d}" for i in range(40)]
    assert [part.images for part in store.metadata.source.parts] == [5, 2, 1, 8, 1, 23]
    np.testing.assert_array_equal(store.decode([39]), store.decode([39], tiny_model))
    whole = first_store(tiny_model, stats, images[:40], tmp_path / "whole.zarr", evaluate=False, embed="whole")
    assert tree(path / "model") == tree(whole.path / "model")
    for resolution, numbers in store.stored(slice(None)).items():
        np.testing.assert_allclose(numbers, whole.stored(slice(None))[resolution], atol=1)
    with pytest.raises(DataError, match=r"in .*out\.zarr already"):
        append(tiny_model, images[8:16], path)


def test_numbers_go_on_after_the_highest_if_some_are_missing(tiny_model, stats, images, tmp_path):
    path = tmp_path / "out.zarr"
    first_store(tiny_model, stats, as_source(images[:20]).subset(range(6, 9)), path, evaluate=False)
    append(tiny_model, images[20:22], path, prefix="new/")
    append(tiny_model, images[22:24], path)  # 00000005 and 00000006, the second of which is there
    append(tiny_model, images[24:26], path)
    numbers = [int(name) for name in open_store(path).names if not name.startswith("new/")]
    assert numbers == [6, 7, 8, 9, 10, 11, 12]
    with pytest.raises(DataError, match=r"2 of these names already, such as new/00000000; .*--prefix array/"):
        append(tiny_model, images[26:28], path, prefix="new/")


def test_the_same_names_twice(tiny_model, images, path, tmp_path):
    """Two sets of published files have the same names; repair still knows which images are which."""
    others = tmp_path / "others"
    for i, image in enumerate(255 - images[:OLD]):
        save_png(others / "old" / "cats" / f"{i:03d}.png", image)
    alike = source(others, "old")
    with pytest.raises(
        DataError, match=r"21 of these names.*cats/000\.png and 20 others with other bytes.*--prefix old/"
    ):
        append(tiny_model, alike, path)
    for prefix in ("/x", "../x", "a/../", "C:/x"):
        with pytest.raises(UsageError, match=r"--prefix is .* leads out"):
            append(tiny_model, alike, path, prefix=prefix)
    store = append(tiny_model, alike, path, prefix="negative/", batch_size=4)
    assert list(store.names[: OLD + 1]) == [f"cats/{i:03d}.png" for i in range(OLD)] + ["negative/cats/000.png"]
    assert list(store.labels) == ["cats"] * 2 * OLD
    with pytest.raises(DataError, match="already; give others"):  # compared with themselves, not with their names
        append(tiny_model, alike, path, prefix="again/")
    before = tree(path)
    damaged = path / min(name for name in before if "/c/4/" in name and name.startswith("z"))
    damaged.write_bytes(b"damaged")
    assert repair(path, alike, tiny_model, options=RepairOptions(batch_size=4)).after.ok
    assert tree(path) == before
    numbered = append(tiny_model, images[:4], path, prefix="array/", batch_size=4)
    assert list(numbered.names[-4:]) == [f"array/{i:08d}" for i in range(4)]
    file = others / "old/cats/003.png"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"already \(cats/003\.png with other bytes\); give others"):
        append(tiny_model, source(others, "old"), path)


def test_what_is_not_appended(tiny_model, tiny_config, tiny_run, stats, images, folders, path, tmp_path):
    before = tree(path)
    old = source(folders, "old")
    for bad, message in (
        (old, "in .* already"),
        (old.subset([3, 4]), r"2 of these names.*cats/003\.png; .*--prefix old/"),
        (images[:0], "no image in it"),
        (images[:5, :, :8, :8], r"\[3, 8, 8\]; this model"),
    ):
        with pytest.raises(DataError, match=message):
            append(tiny_model, bad, path)
    weights = load_weights(tiny_run / "model.safetensors")
    next(iter(weights.values())).add_(1)
    save_model(tmp_path / "other", tiny_config, weights)
    with pytest.raises(StoreError, match="was made with model"):
        append(load_model(tmp_path / "other"), images[OLD:], path)
    with pytest.raises(StoreError, match="there is no store"):
        append(tiny_model, images, tmp_path / "nowhere.zarr")
    with pytest.raises(UsageError, match=r"is in a bucket.*; name"):
        append(tiny_model, images, "s3://bucket/out.zarr")
    with pytest.raises(UsageError, match=r"several workers .*; give"):
        append_worker(tiny_model, images[OLD:], path, Worker(0, 2))
    for ending in (".partial", ".replaced", ".locks"):
        with pytest.raises(StoreError, match="has a name that encode needs"):
            first_store(tiny_model, stats, images[:5], tmp_path / f"new.zarr{ending}")
    with write_lock(path), pytest.raises(StoreError, match="written by another process"):
        append(tiny_model, images[OLD:], path)
    assert tree(path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "out.zarr"]


def test_damaged_stores_are_not_appended_to(tiny_model, stats, images, tmp_path):
    path = tmp_path / "out.zarr"
    store = first_store(tiny_model, stats, images[:10], path)
    shard = next(p for p in (path / "z8" / "c" / "0").rglob("*") if p.is_file())
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(StoreError, match=r"is missing .*; repair"):
        append(tiny_model, images[OLD:], path)
    shard.write_bytes(content)
    marker = path / "committed/c/0"
    content = marker.read_bytes()
    marker.write_bytes(content[:-1])
    with pytest.raises(StoreError, match="committed/c/0 is damaged; repair"):
        append(tiny_model, images[OLD:], path)
    marker.write_bytes(content)
    assert len(append(tiny_model, images[OLD:], path)) == 10 + NEW
    assert len(store) == 10


def test_tables_that_changed_places_get_no_new_fingerprint(tiny_model, images, path, tmp_path):
    name, label = path / "name/c/0", path / "label/c/0"
    names = name.read_bytes()
    name.write_bytes(label.read_bytes())
    label.write_bytes(names)
    before = tree(path)
    for out in (None, tmp_path / "longer.zarr"):
        with pytest.raises(StoreError, match=r"out\.zarr has the fingerprint of other"):
            append(tiny_model, images[OLD:], path, out=out)
    assert tree(path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["out.zarr"]


def test_damage_in_the_last_row_group_gets_no_new_digest(tiny_model, stats, images, tmp_path):
    path, other = tmp_path / "out.zarr", tmp_path / "other.zarr"
    first_store(tiny_model, stats, images[:10], path)
    first_store(tiny_model, stats, images[10:20], other)
    shutil.copy(other / "z8/c/1/0/0/0", path / "z8/c/1/0/0/0")  # whole, with checksums, but of other images
    before = tree(path)
    with pytest.raises(StoreError, match="images 8 to 9: committed/c/1"):
        append(tiny_model, images[OLD:], path)
    assert tree(path) == before


@pytest.mark.parametrize(
    ("add", "named"),
    [
        (lambda group: group.update_attributes({"note": "mine"}), "the attribute note"),
        (lambda group: group.create_array("classes", data=np.arange(3)), "has the array classes"),
        (lambda group: group.create_group("more"), "has more"),
        (lambda group: (Path(group.store.root) / "notes.txt").write_text("mine"), r"has notes\.txt"),
        (lambda group: group["rate"].update_attributes({"unit": "bits/dim"}), "attributes of the array rate"),
        (lambda group: zarr.consolidate_metadata(group.store, zarr_format=3), "consolidated metadata"),
    ],
)
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_what_a_user_added_is_not_lost(tiny_model, images, path, add, named):
    add(zarr.open_group(path, mode="r+"))
    before = tree(path)
    with pytest.raises(StoreError, match=f"{named}.* append would lose; remove"):
        append(tiny_model, images[OLD:], path)
    assert tree(path) == before
    longer = append(tiny_model, images[OLD : OLD + 3], path, out=path.with_name("longer.zarr"))
    report = verify(longer.path)
    assert (report.ok, report.notes, report.images) == (True, [], OLD + 3)
    assert {*longer.group.attrs} == {"hvae_codec"}
    assert tree(path) == before


def test_under_another_name(tiny_model, images, folders, path, tmp_path, monkeypatch):
    before, longer, new = tree(path), tmp_path / "longer.zarr", source(folders, "new")
    copied: list[tuple[int, int]] = []
    store = append(tiny_model, new, path, out=longer, batch_size=4, copying=lambda *counts: copied.append(counts))
    assert (store.path, copied) == (longer, [(16, 16)])
    assert tree(path) == before
    assert (longer / "z8/c/1/0/0/0").samefile(path / "z8/c/1/0/0/0")
    for taken in (longer, path):
        with pytest.raises(StoreError, match=r"\.zarr exists; give another name$"):
            append(tiny_model, images[OLD:], path, out=taken)
    link = tmp_path / "link.zarr"
    link.symlink_to(path)
    for inside in (path, link, longer / ".." / "out.zarr"):
        for given in (path, link):
            with pytest.raises(UsageError, match=r"new\.zarr is inside.*; give"):
                append(tiny_model, images[OLD:], given, out=inside / "new.zarr")
    append(tiny_model, new, link, out=(tmp_path / "again.zarr").as_uri(), batch_size=4)
    link_files = os.link

    def within_a_folder(source: str | Path, target: str | Path) -> None:
        if path in Path(source).parents:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link_files(source, target)

    monkeypatch.setattr(os, "link", within_a_folder)
    append(tiny_model, new, path, out=tmp_path / "copied.zarr", batch_size=4)
    append(tiny_model, new, path, batch_size=4)
    assert tree(path) == tree(longer) == tree(tmp_path / "again.zarr") == tree(tmp_path / "copied.zarr")
    assert len(list(tmp_path.iterdir())) == 5


def test_another_append_to_the_same_name(tiny_model, images, folders, path, tmp_path):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    longer = tmp_path / "longer.zarr"
    with pytest.raises(KeyboardInterrupt):
        append(tiny_model, source(folders, "new"), path, out=longer, progress=stop)
    with pytest.raises(StoreError, match=r"longer\.zarr\.partial is left of .*; finish that"):
        append(tiny_model, images[OLD:], path, out=longer)
    with pytest.raises(StoreError, match="give all workers"):
        append_worker(tiny_model, images[OLD:], path, Worker(0, 2), out=longer)
    assert len(append(tiny_model, source(folders, "new"), path, out=longer)) == OLD + NEW
    assert sorted(p.name for p in tmp_path.iterdir()) == ["longer.zarr", "out.zarr"]


def test_workers_write_the_longer_store(tiny_model, folders, path, tmp_path):
    longer, new, counts = tmp_path / "longer.zarr", source(folders, "new"), []
    for number in (2, 0, 1):
        store = append_worker(
            tiny_model, new, path, Worker(number, 3), out=longer, batch_size=4, progress=lambda *n: counts.append(n)
        )
        assert (store is None) == (number != 1)
    # Worker 2 has row groups 2, where 3 images are new, and 5; worker 0 has 3 and 6, of 8 and 3; worker 1 has 4.
    assert counts == [(11, 11), (8, 11), (11, 11), (8, 8)]
    assert len(append_worker(tiny_model, new, path, Worker(0, 3), out=longer)) == OLD + NEW  # nothing is left to do
    append(tiny_model, new, path, batch_size=4)
    assert tree(path) == tree(longer)


def test_a_store_that_is_replaced_meanwhile_is_not_mixed(tiny_model, stats, images, folders, path, tmp_path):
    def replace(done: int, total: int) -> None:
        if len(open_store(path)) == OLD:
            shutil.rmtree(path)
            first_store(tiny_model, stats, images[:10], path)

    new, longer = source(folders, "new"), tmp_path / "longer.zarr"
    with pytest.raises(StoreError, match=r"out\.zarr .*replaced.*; run the command again"):
        append(tiny_model, new, path, out=longer, progress=replace)
    assert not longer.exists()
    with pytest.raises(StoreError, match=r"longer\.zarr\.partial is left"):
        append(tiny_model, new, path, out=longer)


def test_rows_of_a_store_that_is_replaced_for_a_while_are_not_kept(tiny_model, stats, images, folders, path, tmp_path):
    new, longer, kept = source(folders, "new"), tmp_path / "longer.zarr", tmp_path / "kept.zarr"

    def replace(done: int, total: int) -> None:
        path.rename(kept)
        first_store(tiny_model, stats, images[NEW:], path)  # of the same shapes

    with pytest.raises(StoreError, match=r"out\.zarr .*replaced.*; run the command again"):
        append(tiny_model, new, path, out=longer, batch_size=4, copying=replace)
    shutil.rmtree(path)
    kept.rename(path)
    append(tiny_model, new, path, out=longer, batch_size=4)
    append(tiny_model, new, path, batch_size=4)
    assert tree(path) == tree(longer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: shutil.rmtree(path), "replaced.*; run the command again"),
        (
            lambda path: (path / "z8/c/1/0/0/0").unlink(),
            "z8/c/1/0/0/0 is missing .*; repair",
        ),
        # As a repair does to which the digest was lost, on a machine that rounds differently.
        (lambda path: FolderLocation(path).write("committed/c/1", marker_object(7)), "was repaired .*; run"),
    ],
)
def test_a_store_that_changes_while_its_objects_are_taken_over(
    tiny_model, folders, path, tmp_path, monkeypatch, change, message
):
    link_or_copy, new, longer = folder.link_or_copy, source(folders, "new"), tmp_path / "longer.zarr"

    def changed(source: Path, target: Path) -> None:
        monkeypatch.setattr(folder, "link_or_copy", link_or_copy)
        link_or_copy(source, target)
        change(path)

    shutil.copytree(path, tmp_path / "kept.zarr")
    monkeypatch.setattr(folder, "link_or_copy", changed)
    with pytest.raises(StoreError, match=message):
        append(tiny_model, new, path, out=longer, batch_size=4)
    assert not list(tmp_path.glob("longer.zarr.partial/committed/c/*"))
    shutil.rmtree(path, ignore_errors=True)
    (tmp_path / "kept.zarr").rename(path)
    append(tiny_model, new, path, out=longer, batch_size=4)
    assert verify(longer).ok


def test_a_link_to_a_store(tiny_model, images, path, tmp_path):
    link = tmp_path / "link.zarr"
    link.symlink_to(path)
    with pytest.raises(UsageError, match=r"link\.zarr is a link; give .*out\.zarr"):
        append(tiny_model, images[OLD:], link)
    before = open_store(path).metadata.chunk_bytes
    assert append(tiny_model, images[OLD:], link.resolve()).metadata.chunk_bytes == before


def test_no_space_left(tiny_model, folders, path):
    before, limits = tree(path), resource.getrlimit(resource.RLIMIT_FSIZE)
    for largest_file in (100, 300, 600):
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                append(tiny_model, source(folders, "new"), path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert tree(path) == before
    assert len(append(tiny_model, source(folders, "new"), path)) == OLD + NEW
    assert [p.name for p in path.parent.iterdir()] == ["out.zarr"]


def test_an_array_nobody_can_extend(tiny_model, stats, images, tmp_path):
    path = tmp_path / "out.zarr"
    first_store(tiny_model, stats, images[:10], path, evaluate=False)
    table_schema((10,), "float32", ("image",)).create(zarr.open_group(path, mode="r+"), "age")[:] = np.arange(10.0)
    with pytest.raises(StoreError, match=r"has the array age, .*append would lose"):
        append(tiny_model, images[OLD:], path)
    assert "age" not in append(tiny_model, images[OLD : OLD + 3], path, out=tmp_path / "longer.zarr").group
    shutil.move(path / "age", path / "rate")
    with pytest.raises(StoreError, match=r"array rate, .*append would lose"):
        append(tiny_model, images[OLD:], path)
    assert "rate" not in append(tiny_model, images[OLD : OLD + 3], path, out=tmp_path / "without.zarr").group


@pytest.mark.parametrize("swaps", [True, False])
def test_a_store_open_meanwhile_reads_on(tiny_model, images, folders, path, monkeypatch, swaps):
    if not swaps:  # as on other systems than Linux
        monkeypatch.setattr(swap, "exchange", lambda one, other: False)
    store, lengths = open_store(path), set()
    expected = store.stored(slice(None))

    def look(done: int, total: int) -> None:
        lengths.add(len(open_store(path)))

    append(tiny_model, source(folders, "new"), path, progress=look)
    assert lengths == {OLD}
    for resolution, numbers in store.stored(slice(None)).items():
        np.testing.assert_array_equal(numbers, expected[resolution])
    assert len(open_store(path)) == OLD + NEW


def test_a_kill_between_two_renames(tiny_model, folders, path, monkeypatch):
    """Where folders cannot be swapped, there is a moment without a store; the same command mends that too."""

    def killed_after_renaming(partial: Path, path: Path) -> bool:
        path.rename(path.with_name("out.zarr.replaced"))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(swap, "exchange", killed_after_renaming)
        with pytest.raises(KeyboardInterrupt):
            append(tiny_model, source(folders, "new"), path)
    assert not path.exists()
    assert len(open_to_append(path)) == OLD
    assert len(append(tiny_model, source(folders, "new"), path)) == OLD + NEW
    assert [p.name for p in path.parent.iterdir()] == ["out.zarr"]


def test_a_kill_after_the_swap(tiny_model, images, folders, path, monkeypatch):
    """The longer store has the name already, the shorter one is left, under either of two names."""
    new, rename = source(folders, "new"), Path.rename
    for moment in ("before the rename", "while it is removed"):

        def killed(self, target, moment=moment):
            if str(target).endswith(".replaced"):
                if moment == "while it is removed":
                    rename(self, target)
                    (Path(target) / "zarr.json").unlink()
                raise KeyboardInterrupt
            return rename(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", killed)
            with pytest.raises(KeyboardInterrupt):
                append(tiny_model, new, path)
        assert len(list(path.parent.iterdir())) == 3
        expected = tree(path)
        assert len(append(tiny_model, new, path)) == len(open_store(path))  # the same call has nothing left to do
        assert tree(path) == expected
        assert [p.name for p in path.parent.iterdir()] == ["out.zarr"]
        with pytest.raises(DataError, match=r"in .* already"):
            append(tiny_model, new, path)
        new = images[:9]


def test_a_half_removed_store_does_not_come_back(tiny_model, folders, path, monkeypatch):
    def killed(folder: Path, **_: object) -> None:
        next(Path(folder).glob("z8/c/0/0/0/0")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            _remove_unfinished(path)
    path.rename(path.with_name("out.zarr.replaced"))
    with pytest.raises(StoreError, match="there is no store"):
        append(tiny_model, source(folders, "new"), path)


def work(run: Path, new, path: Path) -> None:
    torch.set_num_threads(1)
    append(load_model(run), new, path, batch_size=2)


def test_killed_at_random_moments(processes, tiny_run, tiny_model, folders, path, tmp_path):
    new, moments = source(folders, "new"), random.Random(0)
    shutil.copytree(path, tmp_path / "unbroken.zarr")
    append(tiny_model, new, tmp_path / "unbroken.zarr", batch_size=2)
    expected, before = tree(tmp_path / "unbroken.zarr"), tree(path)
    shutil.copytree(path, tmp_path / "kept.zarr")
    killed = 0
    while killed < KILLS:
        process = processes.Process(target=work, args=(tiny_run, new, path))
        process.start()
        unfinished, end = tmp_path / "out.zarr.partial", time.monotonic() + 30
        wanted = 0 if killed % 2 else min(6, len(list(unfinished.glob("committed/c/*"))) + 1)
        while len(list(unfinished.glob("committed/c/*"))) < wanted and process.is_alive() and time.monotonic() < end:
            time.sleep(0.0005)
        time.sleep(moments.uniform(0.0, 0.02))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        found = tree(path)
        assert found in (before, expected)
        if found == expected:
            shutil.rmtree(path)
            shutil.copytree(tmp_path / "kept.zarr", path)
    append(tiny_model, new, path, batch_size=2)
    assert tree(path) == expected
