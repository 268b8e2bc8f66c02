"""A store made anew of images that have changed: what is found, what is encoded, and that it is a fresh encode's."""

from __future__ import annotations

import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
import zarr
from PIL import Image
from pyarrow import parquet

from hvae_codec import LatentMask, encode_images, kl_stats, load_model, open_images, open_store
from hvae_codec.encode import comparison, pipeline
from hvae_codec.encode.append import append
from hvae_codec.encode.comparison import compare
from hvae_codec.encode.pipeline import EncodeOptions, ImageEncoder
from hvae_codec.encode.sync import sync
from hvae_codec.errors import DataError, StoreError, UsageError
from hvae_codec.report.comparison import comparison_sentences
from hvae_codec.storage import swap
from hvae_codec.verification.verify import verify
from stores import tree

pytestmark = pytest.mark.slow

IMAGES, SHARD, BATCH, FILE = 45, 8, 4, 1200
"""Row groups of 8 images, in files of 1,200 bytes each."""


def save(file: Path, patch: np.ndarray) -> None:
    """Write a PNG; what is behind its end is not looked at."""
    content = io.BytesIO()
    Image.fromarray(patch.transpose(1, 2, 0)).save(content, "png")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.getvalue().ljust(FILE, b"\0"))
    assert file.stat().st_size == FILE


@pytest.fixture(scope="module")
def stats(tiny_model, photo_patches):
    return kl_stats(tiny_model, photo_patches)


@pytest.fixture(scope="module")
def origin(tiny_model, stats, cut_patches, tmp_path_factory) -> Path:
    """A folder with images in data/ and their store."""
    folder = tmp_path_factory.mktemp("origin")
    for i, patch in enumerate(cut_patches(IMAGES)):
        save(folder / "data" / "cats" / f"{i:02d}.png", patch)
    encode(tiny_model, stats, folder / "data", folder / "out.zarr")
    return folder


@pytest.fixture
def work(origin, tmp_path, monkeypatch) -> Path:
    folder = Path(shutil.copytree(origin, tmp_path / "work"))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def others(cut_patches):
    """Patches that are not in the folder."""
    return cut_patches(IMAGES + 20)[IMAGES:]


def encode(model, stats, data: Path, path: Path, **given):
    options = EncodeOptions(batch_size=BATCH, row_group_size=SHARD, chunk_bytes=500, **given)
    mask = LatentMask.from_keep(stats, 0.5)
    return encode_images(model, images(data), path, mask=mask, stats=stats, options=options)


def images(data: Path):
    return open_images(data, size=16, channels=3)


def found(data: Path, path: Path, **options) -> dict[str, list[str]]:
    """Names of the images that are new, changed, ..."""
    result = compare(images(data), path, **options)
    names, stored = result.source.names, result.store.names
    parts = {part: [names[i] for i in getattr(result, part)] for part in ("new", "changed", "renamed", "relabelled")}
    return {part: some for part, some in {**parts, "gone": [stored[row] for row in result.gone]}.items() if some}


def assert_fresh(model, stats, data: Path, path: Path, tmp_path: Path, **options) -> None:
    """The store has, byte for byte, the files of one that is encoded anew."""
    encode(model, stats, data, tmp_path / "fresh.zarr", overwrite=True, **options)
    ours, fresh = tree(path), tree(tmp_path / "fresh.zarr")
    assert ours.keys() == fresh.keys()
    assert [key for key in ours if ours[key] != fresh[key]] == []
    assert verify(path).ok


def test_nothing_has_changed(tiny_model, work):
    before, seen = tree(work / "out.zarr"), []
    assert found(work / "data", work / "out.zarr") == {}
    sync(tiny_model, images(work / "data"), "out.zarr", progress=lambda *counts: seen.append(counts))
    assert tree(work / "out.zarr") == before
    assert not seen
    comparison = compare(images(work / "data"), "out.zarr")
    assert not comparison.differs
    assert comparison.kept_row_groups == {r: r for r in range(6)}


def test_new_changed_gone_and_renamed(tiny_model, stats, work, others, tmp_path):
    cats, encoded, copied = work / "data" / "cats", [], []
    save(cats / "03.png", others[0])
    save(cats / "17.png", others[1])
    save(cats / "205.png", others[2])
    (cats / "30.png").unlink()
    (cats / "41.png").rename(cats / "009.png")
    assert found(work / "data", work / "out.zarr") == {
        "new": ["cats/205.png"],
        "changed": ["cats/03.png", "cats/17.png"],
        "renamed": ["cats/009.png"],
        "gone": ["cats/30.png"],
    }
    source = images(work / "data")
    store = sync(
        tiny_model,
        source,
        "out.zarr",
        batch_size=BATCH,
        progress=lambda *counts: encoded.append(counts),
        copying=lambda *counts: copied.append(counts),
    )
    assert encoded[-1] == (3, 3)
    assert copied[-1] == (IMAGES - 3, IMAGES - 3)
    assert store.names == [*source.names]
    assert_fresh(tiny_model, stats, work / "data", work / "out.zarr", tmp_path)
    assert found(work / "data", work / "out.zarr") == {}
    assert sorted(path.name for path in work.iterdir()) == ["data", "out.zarr"]


@pytest.mark.parametrize("seed", range(2))
def test_any_change_gives_the_store_of_a_fresh_encode(tiny_model, stats, work, others, tmp_path, seed):
    moves, cats = random.Random(seed), work / "data" / "cats"
    names = sorted(file.name for file in cats.iterdir())
    for i, name in enumerate(moves.sample(names, 10)):
        if i < 4:
            (cats / name).unlink()
        elif i < 7:
            save(cats / name, others[i])
        else:
            (cats / name).rename(cats / f"{moves.randrange(100):02d}-{name}")
    for i in range(moves.randrange(9)):
        save(cats / f"{moves.randrange(100):02d}-new.png", others[10 + i])
    sync(tiny_model, images(work / "data"), "out.zarr", batch_size=BATCH)
    assert_fresh(tiny_model, stats, work / "data", work / "out.zarr", tmp_path)


def change(cats: Path, others) -> None:
    """Two new images, one of them before all others, one changed, one gone."""
    save(cats / "000.png", others[0])
    save(cats / "20.png", others[1])
    save(cats / "31a.png", others[2])
    (cats / "38.png").unlink()


def test_rows_that_move_are_taken_over_and_whole_row_groups_linked(tiny_model, work, others):
    cats, inodes = work / "data" / "cats", {r: inode(f"out.zarr/z8/c/{r}/0/0/0") for r in range(6)}
    for i in range(SHARD):  # one row group more, before all others
        save(work / f"data/birds/{i}.png", others[i])
    save(cats / "40.png", others[8])
    result = compare(images(work / "data"), "out.zarr")
    assert result.kept_row_groups == {r + 1: r for r in range(5)}
    assert (len(result.encoded), result.encoded_row_groups) == (SHARD + 1, 2)
    old = open_store("out.zarr").latents(slice(None))
    sync(tiny_model, images(work / "data"), "out.zarr")
    assert {r: inode(f"out.zarr/z8/c/{r + 1}/0/0/0") for r in range(5)} == {r: inodes[r] for r in range(5)}
    for name, z in open_store("out.zarr").latents(slice(None)).items():
        np.testing.assert_array_equal(z[SHARD : SHARD + 40], old[name][:40])
    assert verify("out.zarr").ok


def inode(file: str) -> int:
    return os.stat(file).st_ino


def test_rate_distortion_and_sketches_go_with_their_images(tiny_model, stats, work, others, tmp_path):
    encode(tiny_model, stats, work / "data", work / "out.zarr", evaluate=True, verify=True, overwrite=True)
    before = open_store("out.zarr").frame.set_index("name")
    save(work / "data/cats/05.png", others[0])
    (work / "data/cats/44.png").unlink()
    after = sync(tiny_model, images(work / "data"), "out.zarr", batch_size=BATCH).frame.set_index("name")
    assert [name for name in after.index if (after.loc[name] != before.loc[name]).any()] == ["cats/05.png"]
    assert_fresh(tiny_model, stats, work / "data", work / "out.zarr", tmp_path, evaluate=True, verify=True)


@pytest.mark.usefixtures("without_ctimes")
def test_an_edit_whose_time_is_set_back_takes_check(work, others):
    file = work / "data/cats/07.png"
    for image in (work / "data").rglob("*.png"):
        os.utime(image, ns=(10**18, 10**18))
    assert found(work / "data", work / "out.zarr") == {}
    save(file, others[0])
    os.utime(file, ns=(10**18, 10**18))
    assert found(work / "data", work / "out.zarr") == {}
    assert found(work / "data", work / "out.zarr", check=True) == {"changed": ["cats/07.png"]}


def test_no_bytes_are_read_twice(work):
    for image in (work / "data").rglob("*.png"):
        os.utime(image, ns=(10**18, 10**18))
    for expected in (IMAGES, 0):
        seen: list[tuple[int, int]] = []
        compare(images(work / "data"), "out.zarr", progress=lambda *counts: seen.append(counts))  # noqa: B023
        assert seen[-1:] == ([(expected, expected)] if expected else [])


def test_renamed_only_if_it_cannot_be_another_one(work, monkeypatch):
    cats, dogs = work / "data/cats", work / "data/dogs"
    shutil.copy(cats / "10.png", cats / "10-copy.png")  # its twin is there: it is new
    shutil.copy(cats / "11.png", cats / "11b.png")
    (cats / "11.png").rename(cats / "11a.png")  # two with the bytes of the one that is gone
    dogs.mkdir()
    (cats / "20.png").rename(dogs / "20.png")
    (cats / "21.png").rename(dogs / "other.png")
    new = {"new": ["cats/10-copy.png", "cats/11a.png", "cats/11b.png"], "gone": ["cats/11.png"]}
    both = ["dogs/20.png", "dogs/other.png"]
    assert found(work / "data", work / "out.zarr") == {**new, "renamed": both}
    monkeypatch.setattr(comparison, "CHANCE_PAIRS", 3)  # of many files of one size, CRC-32s are equal by chance
    new = {"new": [*new["new"], "dogs/other.png"], "renamed": ["dogs/20.png"], "gone": ["cats/11.png", "cats/21.png"]}
    assert found(work / "data", work / "out.zarr") == new


def test_other_classes_and_splits_alone(tiny_model, stats, work, tmp_path):
    names = ", ".join(f'["cats/{i:02d}.png", {int(i == 9)}]' for i in range(IMAGES))
    (work / "data/dataset.json").write_text(f'{{"labels": [{names}]}}')
    assert list(found(work / "data", work / "out.zarr")) == ["relabelled"]
    seen: list[object] = []
    store = sync(tiny_model, images(work / "data"), "out.zarr", progress=lambda *counts: seen.append(counts))
    assert (store.labels[9], seen) == ("1", [])
    assert_fresh(tiny_model, stats, work / "data", work / "out.zarr", tmp_path)


def test_arrays_are_compared_by_number(tiny_model, stats, cut_patches, others, tmp_path):
    patches = cut_patches(20)
    np.save(tmp_path / "a.npy", patches.transpose(0, 2, 3, 1))
    encode(tiny_model, stats, tmp_path / "a.npy", tmp_path / "out.zarr")
    changed = np.concatenate([patches[:17], others[:5]])
    changed[3] = others[6]
    np.save(tmp_path / "a.npy", changed.transpose(0, 2, 3, 1))
    expected = ["00000003", "00000017", "00000018", "00000019"]
    assert found(tmp_path / "a.npy", tmp_path / "out.zarr") == {"new": ["00000020", "00000021"], "changed": expected}
    sync(tiny_model, images(tmp_path / "a.npy"), tmp_path / "out.zarr", batch_size=BATCH)
    assert_fresh(tiny_model, stats, tmp_path / "a.npy", tmp_path / "out.zarr", tmp_path)
    np.save(tmp_path / "b.npy", 255 - patches.transpose(0, 2, 3, 1))  # another one, with the same numbers for names
    before = tree(tmp_path / "out.zarr")
    with pytest.raises(DataError, match=r"none of the .* images in .*out\.zarr is in .*b\.npy"):
        sync(tiny_model, images(tmp_path / "b.npy"), tmp_path / "out.zarr", batch_size=BATCH)
    assert tree(tmp_path / "out.zarr") == before
    pixels = compare(changed, tmp_path / "out.zarr")  # the same images in memory
    assert not pixels.differs


def test_images_in_parquet_are_compared_by_bytes_alone(tiny_model, stats, work, others, tmp_path):
    def write(changed: dict[int, np.ndarray]) -> None:
        """Files in row groups of 4: the bytes of one decide what the others of its row group seem to have."""
        files = [file.read_bytes().rstrip(b"\0") for file in sorted((work / "data/cats").iterdir())[:12]]
        for number, patch in changed.items():
            save(tmp_path / "changed.png", patch)
            files[number] = (tmp_path / "changed.png").read_bytes()
        parquet.write_table(pyarrow.table({"image": files}), tmp_path / "a.parquet", row_group_size=4)

    write({})
    encode(tiny_model, stats, tmp_path / "a.parquet", tmp_path / "out.zarr")
    write({5: others[0]})
    assert found(tmp_path / "a.parquet", tmp_path / "out.zarr") == {"changed": ["a/00000005"]}
    sync(tiny_model, images(tmp_path / "a.parquet"), tmp_path / "out.zarr", batch_size=BATCH)
    assert_fresh(tiny_model, stats, tmp_path / "a.parquet", tmp_path / "out.zarr", tmp_path)


def test_appended_stores_become_stores_of_all(tiny_model, stats, work, others, tmp_path):
    for i in range(4):
        save(work / "more/cats" / f"{i}0a.png", others[i])
    append(tiny_model, images(work / "more"), "out.zarr", batch_size=BATCH)
    assert found(work / "data", work / "out.zarr") == {"gone": [f"cats/{i}0a.png" for i in range(4)]}
    shutil.copytree(work / "more", work / "data", dirs_exist_ok=True)
    assert found(work / "data", work / "out.zarr") == {}  # in another order, which is nothing to change a store for
    save(work / "data/cats/02.png", others[5])
    store = sync(tiny_model, images(work / "data"), "out.zarr", batch_size=BATCH)
    assert store.metadata.source.parts == ()
    assert_fresh(tiny_model, stats, work / "data", work / "out.zarr", tmp_path)


def test_a_source_that_was_appended_is_not_lost(tiny_model, work, others):
    """Such as one that has other names in the store than by itself."""
    for i in range(4):
        save(work / "more/cats" / f"{i:02d}.png", others[i])
    append(tiny_model, images(work / "more"), "out.zarr", prefix="more/", batch_size=BATCH)
    said = r"all 4 images of one, such as more/cats/00\.png, are gone; .* in one folder"
    for data in ("data", "more"):  # in the latter, cats/00.png is another image than in the store
        assert any(re.search(said, line) for line in comparison_sentences(compare(images(work / data), "out.zarr")))
        with pytest.raises(DataError, match=f"out.zarr was made of 2 sources, and {said}.*--out"):
            sync(tiny_model, images(work / data), "out.zarr")
    (work / "data/more").symlink_to(work / "more")
    assert found(work / "data", "out.zarr") == {"relabelled": [f"more/cats/{i:02d}.png" for i in range(4)]}
    save(work / "more/cats/02.png", others[5])
    assert len(sync(tiny_model, images(work / "data"), "out.zarr", batch_size=BATCH)) == IMAGES + 4
    assert len(sync(tiny_model, images(work / "more"), "out.zarr", out="new.zarr", batch_size=BATCH)) == 4


def test_stores_without_checksums_are_compared_by_name(tiny_model, stats, work, others, monkeypatch, tmp_path):
    spec_of, encoder_of = pipeline._spec, ImageEncoder.of
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_spec", lambda *given: replace(spec_of(*given), splits=None, file_bytes=None))
        patch.setattr(ImageEncoder, "of", lambda *given, **more: encoder_of(*given, **more, checksums=False))
        old = encode(tiny_model, stats, work / "data", work / "old.zarr", packing="blosc")
    assert old.format_version == 1
    change(work / "data/cats", others)
    expected = {"new": ["cats/000.png", "cats/31a.png"], "gone": ["cats/38.png"]}
    sentences = [*comparison_sentences(compare(images(work / "data"), "old.zarr"))]
    assert "format version 1, which has no checksums" in sentences[0]
    assert "To encode: 2 images" in sentences[-1]
    assert found(work / "data", work / "old.zarr") == expected
    codes = {name: z[20] for name, z in old.latents(slice(None)).items()}
    store = sync(tiny_model, images(work / "data"), "old.zarr", batch_size=BATCH)
    assert store.format_version == 1
    assert store.names == [*images(work / "data").names]
    for name, z in store.latents(store.names.index("cats/20.png")).items():
        np.testing.assert_array_equal(z, codes[name])  # as it was: nobody knows that it was changed
    assert verify("old.zarr").ok


def test_out_leaves_the_store_as_it_is(tiny_model, stats, work, others, tmp_path):
    before = tree(work / "out.zarr")
    change(work / "data/cats", others)
    store = sync(tiny_model, images(work / "data"), "out.zarr", out="new.zarr", batch_size=BATCH)
    assert store.path.name == "new.zarr"
    assert tree(work / "out.zarr") == before
    assert_fresh(tiny_model, stats, work / "data", work / "new.zarr", tmp_path)
    with pytest.raises(StoreError, match=r"new\.zarr exists"):
        sync(tiny_model, images(work / "data"), "out.zarr", out="new.zarr")
    sync(tiny_model, images(work / "data"), "new.zarr", out="copy.zarr")  # nothing differs
    assert tree(work / "copy.zarr") == tree(work / "new.zarr")


def test_what_is_refused(tiny_model, work, others):
    for i in range(3):
        save(work / "else/dogs" / f"{i}.png", others[i])
    with pytest.raises(DataError, match=r"none of the 45 images in out\.zarr is in .*else; give"):
        sync(tiny_model, images(work / "else"), "out.zarr")
    with pytest.raises(DataError, match=r"crop='none'"):
        sync(tiny_model, open_images(work / "data", size=16, channels=3, crop="none"), "out.zarr")
    with pytest.raises(DataError, match=r"size=8, channels=3, and those in .* size=16"):
        compare(open_images(work / "data", size=8, channels=3), "out.zarr")
    with pytest.raises(UsageError, match=r"is in a bucket.*--out"):
        sync(tiny_model, images(work / "data"), "s3://bucket/out.zarr")
    with pytest.raises(StoreError, match="there is no store"):
        compare(images(work / "data"), "nowhere.zarr")
    change(work / "data/cats", others)
    zarr.open_group("out.zarr", mode="r+").create_array("mine", shape=(45,), dtype="f4")
    with pytest.raises(StoreError, match=r"mine.*would lose"):
        sync(tiny_model, images(work / "data"), "out.zarr")
    assert sorted(path.name for path in work.iterdir()) == ["data", "else", "out.zarr"]


def test_damaged_rows_are_not_put_together_with_others(tiny_model, work, others):
    change(work / "data/cats", others)
    shard = work / "out.zarr/z8/c/2/0/0/0"
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    with pytest.raises(StoreError, match="images 16 to 23"):
        sync(tiny_model, images(work / "data"), "out.zarr")


@pytest.mark.parametrize("moment", ["before the swap", "after it"])
def test_a_kill_while_stores_of_the_same_names_and_sizes_swap(tiny_model, work, others, monkeypatch, moment):
    save(work / "data/cats/07.png", others[0])
    exchange = swap.exchange

    def killed(one: Path, other: Path) -> bool:
        if moment == "after it":
            exchange(one, other)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(swap, "exchange", killed)
        with pytest.raises(KeyboardInterrupt):
            sync(tiny_model, images(work / "data"), "out.zarr", batch_size=BATCH)
    assert (work / "out.zarr.partial").exists()
    assert bool(found(work / "data", work / "out.zarr")) == (moment == "before the swap")
    sync(tiny_model, images(work / "data"), "out.zarr", batch_size=BATCH)
    assert found(work / "data", work / "out.zarr", check=True) == {}
    assert sorted(path.name for path in work.iterdir()) == ["data", "out.zarr"]


def apply_in_a_process(run: Path, work: Path) -> None:
    torch.set_num_threads(1)
    sync(load_model(run), images(work / "data"), work / "out.zarr", batch_size=BATCH)


def test_killed_at_random_moments_it_continues(processes, tiny_run, tiny_model, stats, work, others, tmp_path):
    change(work / "data/cats", others)
    before, moments, killed = open_store("out.zarr").names, random.Random(0), 0
    for kill in range(3):
        process = processes.Process(target=apply_in_a_process, args=(tiny_run, work))
        process.start()
        end = time.monotonic() + 30
        while kill and not (work / "out.zarr.partial").exists() and process.is_alive() and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        assert open_store("out.zarr").names in (before, [*images(work / "data").names])
    assert killed
    sync(tiny_model, images(work / "data"), "out.zarr", batch_size=BATCH)
    assert_fresh(tiny_model, stats, work / "data", work / "out.zarr", tmp_path)
    assert sorted(path.name for path in work.iterdir()) == ["data", "out.zarr"]


def test_comparing_takes_no_torch(work):
    code = (
        "import sys; from hvae_codec import compare, open_images; "
        "assert not compare(open_images('data', size=16, channels=3), 'out.zarr').differs; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
