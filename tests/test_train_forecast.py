"""What a forecast of training says, and when it takes no step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hvae_codec.data.sources import as_source
from hvae_codec.train import forecast as module
from hvae_codec.train.forecast import forecast_training


def test_steps_epochs_memory_and_time(tiny_config, photo_patches):
    state = torch.get_rng_state()
    found = forecast_training(tiny_config, as_source(photo_patches), "cpu", steps_taken=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert (found.images, found.batch_size, found.steps, found.steps_left) == (24, 8, 8, 5)
    assert found.epochs == 8 * 8 / 24
    assert found.image_bytes == found.cached_bytes == photo_patches.nbytes
    assert found.seconds_per_step is not None
    assert 0 < found.seconds_per_step < 5
    assert found.seconds == 5 * found.seconds_per_step
    assert replace(found, steps_taken=9).steps_left == 0
    assert replace(found, image_bytes=3 << 30).cached_bytes == 0


def test_the_steps_are_those_of_the_configuration(tiny_config, photo_patches, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[int, int]] = []
    time_of = module._time
    monkeypatch.setattr(
        module,
        "_time",
        lambda step, images, number: seen.append((len(images), number)) or time_of(step, images, number),
    )
    forecast_training(tiny_config, as_source(photo_patches), "cpu")
    assert seen == [(1, 1), (1, 2), (8, 1), (8, 2), (8, 3)]


def test_long_steps_are_not_tried(tiny_config, photo_patches, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_time", lambda step, images, number: 10.0 / number)
    found = forecast_training(tiny_config, as_source(photo_patches), "cpu")
    assert (found.seconds_per_step, found.seconds) == (None, None)
    assert found.not_tried == "one may take 40 s, as one image tells"
