from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvae_codec.images import as_source
from hvae_codec.train.batches import BatchStream


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
