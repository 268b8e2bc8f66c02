from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hvae_codec.data.sources import ImageSource, as_source, open_images
from hvae_codec.errors import DataError
from hvae_codec.train.batches import AHEAD, BatchStream, default_workers


def stream(count: int, batch_size: int, seed: int, *, flip: bool = False) -> BatchStream:
    numbers = np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(4, axis=2).repeat(4, axis=3)
    numbers[:, :, :, 0] = 255  # so that mirrored images are told apart
    return BatchStream(as_source(np.ascontiguousarray(numbers)), batch_size, seed, horizontal_flip=flip)


@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 3))
def test_every_image_once_an_epoch(count: int, batch_size: int, seed: int):
    batches = stream(count, batch_size, seed)
    steps = -(-3 * count // batch_size)
    order = np.concatenate([batches.indices(step) for step in range(1, steps + 1)])
    batches.close()
    for epoch in range(3):
        assert sorted(order[epoch * count : (epoch + 1) * count]) == list(range(count))


@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 3), st.integers(1, 40))
def test_a_batch_depends_on_seed_and_step_alone(count: int, batch_size: int, seed: int, step: int):
    first, again = (stream(count, batch_size, seed, flip=True) for _ in range(2))
    for earlier in range(max(1, step - 2), step):
        first.batch(earlier)
    assert torch.equal(first.batch(step), again.batch(step))
    first.close()
    again.close()


def test_epochs_and_seeds_have_their_own_order():
    orders = set()
    for seed in (0, 1):
        batches = stream(50, 50, seed)
        orders |= {tuple(batches.indices(step)) for step in (1, 2)}
        batches.close()
    assert len(orders) == 4


def test_about_half_of_the_images_are_mirrored():
    batches = stream(200, 200, 0, flip=True)
    images = batches.batch(1)
    batches.close()
    mirrored = images[:, 0, 0, 3] == 255
    assert images.shape == (200, 1, 4, 4)
    assert 70 < mirrored.sum() < 130
    assert sorted(images[:, 0, 0, 1].tolist()) == list(range(200))
    assert ((images[:, 0, 0, 0] == 255) != mirrored).all()


def test_images_are_not_mirrored_in_the_source():
    batches = stream(20, 20, 0, flip=True)
    for step in range(1, 6):
        batches.batch(step)
    source = batches.source.read(range(20))
    batches.close()
    assert (source[:, 0, :, 0] == 255).all()


def pictures(count: int) -> ImageSource:
    return as_source(np.random.default_rng(0).integers(0, 256, (count, 3, 4, 4), np.uint8))


@pytest.mark.parametrize("workers", [1, 3])
def test_images_read_as_they_are_needed_are_those_kept_in_memory(workers: int):
    kept = BatchStream(pictures(11), 4, 2, horizontal_flip=True)
    read = BatchStream(pictures(11), 4, 2, horizontal_flip=True, workers=workers, cache_bytes=0)
    for step in [*range(1, 12), 5, 6, 30]:
        assert torch.equal(read.batch(step), kept.batch(step))
    kept.close()
    read.close()


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_parts_make_up_the_batch(cache_bytes: int):
    whole = BatchStream(pictures(11), 6, 2, horizontal_flip=True)
    parts = [
        BatchStream(pictures(11), 6, 2, horizontal_flip=True, part=(k, 3), cache_bytes=cache_bytes) for k in range(3)
    ]
    for step in range(1, 8):
        assert torch.equal(torch.cat([part.batch(step) for part in parts]), whole.batch(step))
    for stream in (whole, *parts):
        stream.close()


class Counting:
    """A source that counts the images that were read from it, and by which threads."""

    groups = None

    def __init__(self, source: ImageSource) -> None:
        self.source, self.read_positions, self.threads = source, [], set()
        self.size, self.channels = source.size, source.channels

    def __len__(self) -> int:
        return len(self.source)

    def read(self, positions):
        self.read_positions.extend(positions)
        self.threads.add(threading.current_thread().name)
        return self.source.read(positions)


def test_a_few_batches_are_read_ahead_and_only_the_own_part():
    counting = Counting(pictures(1000))
    stream = BatchStream(counting, 10, 0, horizontal_flip=False, part=(1, 2), workers=3, cache_bytes=0)
    for step in range(1, 31):
        stream.batch(step)
    stream.close()
    steps = range(1, 31 + AHEAD + 2)
    assert len(counting.read_positions) in range(30 * 5, len(steps) * 5 + 1)
    own = np.concatenate([stream.indices(step)[5:] for step in steps])
    assert set(counting.read_positions) <= set(own)
    assert all(name.startswith("read batches") for name in counting.threads)


def test_a_broken_image_is_named_at_the_step_that_needs_it(tmp_path: Path, cut_patches):
    for i, patch in enumerate(cut_patches(8)):
        Image.fromarray(patch.transpose(1, 2, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "5.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    stream = BatchStream(open_images(tmp_path, size=16, channels=3), 1, 0, horizontal_flip=False, cache_bytes=0)
    step = 1
    while stream.name(step, 0) != "5.png":
        assert stream.batch(step).shape == (1, 3, 16, 16)
        step += 1
    with pytest.raises(DataError, match=r"5\.png is broken"):
        stream.batch(step)
    stream.close()


def test_threads_are_shared_by_the_processes_of_a_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    assert [default_workers(n) for n in (1, 2, 4, 50)] == [8, 6, 3, 1]
