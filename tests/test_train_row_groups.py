"""Training on Parquet that is too large for memory reads row groups, not single rows, and continues exactly."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hvae_codec.data import row_groups
from hvae_codec.data.sources import ImageSource, open_images
from hvae_codec.train.batches import BatchStream

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

GROUPS, ROWS, SIDE = 24, 20, 8


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """480 images in row groups of 20 and about 5 KB."""
    files = []
    for i in range(GROUPS * ROWS):
        buffer = io.BytesIO()
        noise = np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(noise).save(buffer, "png")
        files.append(buffer.getvalue())
    path = tmp_path_factory.mktemp("parquet") / "x.parquet"
    pq.write_table(pa.table({"image": files}), path, row_group_size=ROWS, use_dictionary=False)
    return path


class Reads:
    """How often each row group was read, and the largest number that was in memory."""

    def __init__(self) -> None:
        self.groups, self.most = Counter(), 0


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reads]:
    reads, original = Reads(), row_groups.RowGroupCache._fill

    def counted(self, group: int, *args):
        reads.groups[group] += 1
        reads.most = max(reads.most, len(self._groups))
        return original(self, group, *args)

    monkeypatch.setattr(row_groups.RowGroupCache, "_fill", counted)
    return reads


def opened(path: Path) -> ImageSource:
    return open_images(path, size=SIDE, channels=3)


def stream(source: ImageSource, **options) -> BatchStream:
    return BatchStream(source, 16, 3, horizontal_flip=True, **{"cache_bytes": 80_000, "workers": 3} | options)


def pixels(images: torch.Tensor | np.ndarray) -> np.ndarray:
    """Sorted in each row, so that a mirrored image is the same."""
    return np.sort(np.asarray(images), axis=3)


def test_an_epoch_reads_each_row_group_about_once(path: Path, reads: Reads):
    source = opened(path)
    groups = source.groups
    assert groups is not None
    batches = stream(source)
    for step in range(1, 31):
        images = batches.batch(step)
    np.testing.assert_array_equal(pixels(images), pixels(source.read(batches.indices(30))))
    batches.close()
    assert source.size**2 * 3 * len(source) > 80_000  # more pixels than may be in memory
    assert len(reads.groups) == GROUPS
    assert sum(reads.groups.values()) <= 1.3 * GROUPS  # the threads read a few batches of the next epoch
    assert reads.most <= GROUPS // 2  # two windows of 20,000 bytes, and one that each thread reads


def test_an_epoch_has_every_image_and_few_row_groups_at_a_time(path: Path):
    batches = stream(opened(path))
    order = np.concatenate([batches.indices(step) for step in range(1, 61)])
    batches.close()
    first, second = order[:480], order[480:]
    assert sorted(first) == sorted(second) == list(range(480))
    assert not np.array_equal(first, second)
    apart = [len({*(first[i : i + 60] // ROWS)}) for i in range(0, 480, 60)]
    assert min(apart) >= 3
    assert max(apart) <= 12


@pytest.mark.parametrize("first", [2, 17, 45])
def test_a_resumed_run_sees_the_same_images(path: Path, first: int):
    unbroken, resumed = stream(opened(path)), stream(opened(path), workers=1)
    for step in range(1, first):
        unbroken.batch(step)
    for step in range(first, first + 3):
        assert torch.equal(unbroken.batch(step), resumed.batch(step))
    unbroken.close()
    resumed.close()


def test_processes_take_parts_of_the_same_batches(path: Path):
    whole = stream(opened(path))
    parts = [stream(opened(path), part=(k, 2)) for k in range(2)]
    for step in (1, 2, 35):
        assert torch.equal(torch.cat([part.batch(step) for part in parts]), whole.batch(step))
    for each in (whole, *parts):
        each.close()


def test_what_fits_into_memory_has_the_order_of_files(path: Path):
    in_memory = stream(opened(path), cache_bytes=1 << 20)
    expected = np.random.default_rng((3, 0, 0)).permutation(480)[:16]
    np.testing.assert_array_equal(in_memory.indices(1), expected)
    in_memory.close()


def test_training_images_among_others_are_read_in_windows_too(path: Path, reads: Reads):
    training = opened(path).split("train")
    batches = stream(training)
    steps = len(training) // 16
    for step in range(1, steps):
        batches.batch(step)
    batches.close()
    assert 400 < len(training) < 480
    assert sum(reads.groups.values()) <= 1.3 * GROUPS
