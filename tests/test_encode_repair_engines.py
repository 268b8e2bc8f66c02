"""Whoever encodes and decodes row groups, repair and deep verify give the files and reports of one process."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from engine_tasks import Backwards, die_once
from hvae_codec import LatentMask, encode_images, kl_stats, open_images, repair, verify_deep
from hvae_codec.data.sources import as_source
from hvae_codec.encode import repair_tasks
from hvae_codec.encode.pipeline import EncodeOptions
from hvae_codec.encode.repair import RepairOptions
from hvae_codec.encode.repair_images import RepairItem
from hvae_codec.engine.outcomes import Outcome
from hvae_codec.engine.tally import Tally
from hvae_codec.engine.where import engine_on
from hvae_codec.errors import EngineError, ModelError
from photos import save_png
from stores import tree

IMAGES, SHARD = 20, 4
OPTIONS = RepairOptions(batch_size=4, device="cpu")


@pytest.fixture(scope="module")
def folder(cut_patches, tmp_path_factory) -> Path:
    """Images, some of another size, which repair counts."""
    folder = tmp_path_factory.mktemp("photos")
    for i, pixels in enumerate(cut_patches(IMAGES)):
        save_png(folder / f"{i:03d}.png", pixels if i % 2 else np.pad(pixels, ((0, 0), (0, 4), (0, 4)), mode="edge"))
    return folder


@pytest.fixture(scope="module")
def stats(tiny_model, folder):
    return kl_stats(tiny_model, open_images(folder, size=16, channels=3))


@pytest.fixture(scope="module")
def whole(tiny_model, folder, stats, tmp_path_factory) -> Path:
    """A store of five row groups, with each image's rate, distortion and sketch."""
    source, mask = open_images(folder, size=16, channels=3), LatentMask.from_keep(stats, 0.5)
    options = EncodeOptions(batch_size=4, row_group_size=SHARD, evaluate=True, verify=True)
    path = tmp_path_factory.mktemp("stores") / "out.zarr"
    return encode_images(tiny_model, source, path, mask=mask, stats=stats, options=options).path


@pytest.fixture
def store(whole, tmp_path) -> Path:
    """The store with damage in four row groups, in a table and in figures of images."""
    path = Path(shutil.copytree(whole, tmp_path / "out.zarr"))
    (path / "z8/c/0/0/0/0").unlink()
    flip(path / "z8/c/1/0/0/0")
    shutil.copy(path / "z8/c/4/0/0/0", path / "z8/c/3/0/0/0")
    (path / "rate/c/2").unlink()
    (path / "sketch/c/2").unlink()
    shutil.rmtree(path / "name/c")
    return path


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)


@pytest.fixture
def run_repair(folder, tiny_model, stats) -> Callable:
    """Repair as a command does; returns the report without the store's path, the images resized, and the files."""

    def call(path: Path, images=None, **options):
        images = open_images(folder, size=16, channels=3) if images is None else images
        report = dataclasses.asdict(repair(path, images, tiny_model, stats=stats, options=OPTIONS, **options))
        report["before"].pop("path")
        report["after"].pop("path")
        return report, images.resized, tree(path)

    return call


@pytest.mark.slow
@pytest.mark.parametrize("where", ["backwards", "threads", "processes, of which one is killed"])
def test_repair_is_that_of_one_process(whole, store, run_repair, tmp_path, where):
    expected = run_repair(Path(shutil.copytree(store, tmp_path / "one.zarr")))
    assert expected[0]["after"]["damages"] == []
    assert expected[1] == 8  # of the 16 images that were encoded again
    assert expected[2] == tree(whole)
    if where == "backwards":
        assert run_repair(store, engine=Backwards()) == expected
    elif where == "threads":
        with ThreadPoolExecutor(1) as pool:
            assert run_repair(store, executor=pool) == expected
    else:
        tally = Tally()
        with engine_on("local:2", initializer=partial(die_once, tmp_path / "died")) as engine:
            assert run_repair(store, engine=engine, tally=tally) == expected
        assert tally.retries == 1


def test_images_in_memory_travel_with_their_pixels(tiny_model, folder, stats, tmp_path):
    source, mask = (
        as_source(open_images(folder, size=16, channels=3).read(range(IMAGES))),
        LatentMask.from_keep(stats, 1),
    )
    options = EncodeOptions(batch_size=4, row_group_size=SHARD)
    path = encode_images(tiny_model, source, tmp_path / "out.zarr", mask=mask, stats=stats, options=options).path
    before = tree(path)
    flip(path / "z8/c/1/0/0/0")
    (path / "z8/c/4/0/0/0").unlink()
    assert repair(path, source, tiny_model, options=OPTIONS, engine=Backwards()).after.ok
    assert tree(path) == before


def test_broken_images_and_lost_workers_are_named_and_the_rest_is_repaired(whole, store, run_repair, folder, tmp_path):
    images = Path(shutil.copytree(folder, tmp_path / "photos"))
    source = open_images(images, size=16, channels=3)
    broken = images / "006.png"
    broken.write_bytes(broken.read_bytes()[:60].ljust(broken.stat().st_size, b"\0"))

    class LosesOne(Backwards):
        def run(self, work, items, **options):
            items = [*items]
            lost = [item for item in items if isinstance(item, RepairItem) and item.number == 3]
            yield from super().run(work, [item for item in items if item not in lost], **options)
            error = EngineError("row group 3 ended its worker three times (signal 9); look at its data")
            yield from (Outcome(len(items), item, error=error) for item in lost)

    report, _, files = run_repair(store, source, engine=LosesOne())
    first, second = report["notes"]
    assert "006.png" in first
    assert "row group 3 ended its worker three times" in second
    left = {damage["row_group"] for damage in report["after"]["damages"]}
    assert left == {1, 3}
    assert files["z8/c/0/0/0/0"] == tree(whole)["z8/c/0/0/0/0"]
    assert files["rate/c/2"] == tree(whole)["rate/c/2"]


def test_deep_verify_is_that_of_one_process(whole, tmp_path, monkeypatch):
    path = Path(shutil.copytree(whole, tmp_path / "out.zarr"))
    flip(path / "z8/c/1/0/0/0")
    sketches: Any = zarr.open_array(path / "sketch", mode="r+")
    sketches[9] = sketches[9] + 50_000
    monkeypatch.chdir(tmp_path)
    expected = dataclasses.asdict(verify_deep("out.zarr"))
    assert [damage["file"] for damage in expected["damages"]] == ["z8/c/1/0/0/0", "sketch/c/2"]
    engine = Backwards()
    assert dataclasses.asdict(verify_deep("out.zarr", engine=engine)) == expected
    assert max(engine.sizes) < 4_000
    with ThreadPoolExecutor(1) as pool:
        assert dataclasses.asdict(verify_deep("out.zarr", executor=pool)) == expected


def test_a_worker_that_does_not_see_the_model_ends_all(whole, store, run_repair, monkeypatch):
    def lost(*_: object) -> None:
        raise ModelError("there is no run at /runs/tiny; give another one")

    monkeypatch.setattr(repair_tasks, "load_store_model", lost)
    with pytest.raises(ModelError, match=r"worker on .* cannot take part: there is no run at /runs/tiny"):
        run_repair(store, engine=Backwards())
    assert not [file for file in tree(store) if file.endswith(".partial")]
