from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvae_codec.data import sample as sample_data
from hvae_codec.data.sample import (
    PATCHES,
    PHOTOGRAPHS,
    Box,
    SampleData,
    choose_boxes,
    choose_patches,
    load_photographs,
    write_sample_data,
)
from hvae_codec.data.sources import open_images
from hvae_codec.errors import DataError, UsageError


@pytest.fixture(scope="module")
def photographs() -> dict[str, np.ndarray]:
    return load_photographs()


@pytest.fixture(scope="module")
def patches(photographs: dict[str, np.ndarray]) -> dict[str, Box]:
    """All patches of 32 × 32 pixels."""
    return choose_patches(photographs, 32)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_data, "PATCHES", {"train": 21, "val": 9})
    some = {name: PHOTOGRAPHS[name] for name in ("chelsea", "china", "coffee")}
    monkeypatch.setattr(sample_data, "PHOTOGRAPHS", some)


def covered(shape: tuple[int, int], boxes: list[Box]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for box in boxes:
        assert box.top + box.side <= shape[0]
        assert box.left + box.side <= shape[1]
        mask[box.top : box.top + box.side, box.left : box.left + box.side] = True
    return mask


@pytest.mark.parametrize("size", [16, 32])
def test_no_training_patch_has_a_held_out_pixel(photographs: dict[str, np.ndarray], patches: dict[str, Box], size: int):
    patches = patches if size == 32 else choose_patches(photographs, size)
    for name, photograph in photographs.items():
        boxes = {
            split: [box for file, box in patches.items() if file.startswith(f"{split}/{name}/")] for split in PATCHES
        }
        train, val = (covered(photograph.shape[:2], boxes[split]) for split in PATCHES)
        assert train.any()
        assert val.any()
        assert not (train & val).any()


@given(st.integers(8, 120), st.integers(8, 120), st.integers(4, 40))
def test_grids_of_the_two_regions_are_disjoint(height: int, width: int, size: int):
    train, val = (covered((height, width), choose_boxes(height, width, split, size)) for split in PATCHES)
    assert train.any() == val.any()
    assert not (train & val).any()


def test_7000_and_800_patches_from_ten_photographs(photographs: dict[str, np.ndarray], patches: dict[str, Box]):
    assert list(photographs) == list(PHOTOGRAPHS)
    for split, count in PATCHES.items():
        own = [file.split("/")[1] for file in patches if file.startswith(f"{split}/")]
        assert len(own) == count
        assert set(own) == set(PHOTOGRAPHS)


def test_no_patch_is_there_twice(photographs: dict[str, np.ndarray], patches: dict[str, Box]):
    """Nor a second one of its photograph that is nearly flat: the retina's surroundings are black."""
    seen, flat = set(), []
    for file, box in patches.items():
        name = file.split("/")[1]
        pixels = photographs[name][box.top : box.top + 32, box.left : box.left + 32]
        seen.add(pixels.tobytes())
        flat += [name] if pixels.reshape(-1, 3).std(axis=0).max() < 2 else []
    assert len(seen) == sum(PATCHES.values())
    assert "retina" in flat
    assert len(flat) == len(set(flat))


@pytest.mark.usefixtures("few")
def test_the_folder_is_what_the_loader_reads(tmp_path: Path):
    seen: list[tuple[int, int]] = []
    counts = write_sample_data(tmp_path / "data", size=32, progress=lambda *args: seen.append(args))
    assert counts == SampleData(train=21, val=9)
    assert seen == [(i, 30) for i in range(1, 31)]
    source = open_images(tmp_path / "data", size=32, channels=3)
    assert len(source.split("train")) == 21
    assert len(source.split("val")) == 9
    assert set(source.split("val").labels) == {"chelsea", "china", "coffee"}
    assert source.names[0] == "train/chelsea/00000.png"
    source.read(range(30))
    assert source.resized == 0
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.usefixtures("few")
def test_the_same_call_writes_the_same_bytes(tmp_path: Path):
    def contents(name: str, seed: int) -> dict[str, bytes]:
        write_sample_data(tmp_path / name, size=16, seed=seed)
        files = (path for path in (tmp_path / name).rglob("*") if path.is_file())
        return {path.relative_to(tmp_path / name).as_posix(): path.read_bytes() for path in files}

    first = contents("a", 0)
    assert contents("b", 0) == first
    other = contents("c", 1)
    assert other.keys() == first.keys()
    assert other != first


@pytest.mark.usefixtures("few")
def test_only_the_same_finished_data_is_accepted(tmp_path: Path):
    data = tmp_path / "data"
    data.mkdir()  # an empty folder is filled
    counts = write_sample_data(data, size=16)
    file = data / "val" / "china" / "00000.png"
    before = file.stat().st_mtime_ns
    assert write_sample_data(data, size=16) == counts
    assert file.stat().st_mtime_ns == before
    for options in ({"size": 32}, {"size": 16, "seed": 1}):
        with pytest.raises(DataError, match="give another"):
            write_sample_data(data, **options)
    file.unlink()
    with pytest.raises(DataError, match="not finished"):
        write_sample_data(data, size=16)


@pytest.mark.usefixtures("few")
def test_sample_data_of_an_earlier_version_stays(tmp_path: Path):
    counts = write_sample_data(tmp_path / "data", size=16)
    marker = {"size": 16, "seed": 0, **counts._asdict()}
    (tmp_path / "data" / "sample-data.json").write_text(json.dumps(marker, indent=2) + "\n")
    with pytest.raises(DataError, match=r"earlier version.* give another folder"):
        write_sample_data(tmp_path / "data", size=16)
    assert len(open_images(tmp_path / "data", size=16, channels=3)) == sum(counts)


@pytest.mark.usefixtures("few")
def test_other_folders_are_not_touched(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("precious")
    (tmp_path / "sample-data.json").write_text(json.dumps([1]))
    for path in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(DataError, match="give another"):
            write_sample_data(path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


@pytest.mark.usefixtures("few")
def test_a_stopped_run_leaves_nothing(tmp_path: Path):
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_sample_data(tmp_path / "data", size=16, progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{"size": 3}, {"size": 400}, {"seed": -1}])
def test_impossible_sizes_are_refused(tmp_path: Path, options: dict[str, int]):
    with pytest.raises(UsageError, match="size"):
        write_sample_data(tmp_path / "data", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_photograph_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sample_data.PHOTOGRAPHS, "moon", "far_side_of_the_moon")
    with pytest.raises(DataError, match=r"far_side_of_the_moon does not come"):
        write_sample_data(tmp_path / "data")
