from __future__ import annotations

from types import SimpleNamespace

import torch

from hvae_codec.model.gaussian import DiagonalGaussian
from hvae_codec.model.keyed_noise import keyed_noise


def drawn(config, keys) -> list[torch.Tensor]:
    noise = keyed_noise(config, keys, "cpu")
    groups = []
    for index, shape in enumerate(config.groups):
        mean = torch.zeros(len(keys), shape.variates, shape.resolution, shape.resolution)
        groups.append(noise(SimpleNamespace(index=index, prior=DiagonalGaussian(mean, mean + 1))))
        assert groups[-1].shape == mean.shape
    return groups


def test_an_images_numbers_do_not_depend_on_its_batch(tiny_config):
    keys = [(0, 7, position) for position in range(6)]
    whole = drawn(tiny_config.model, keys)
    halves = [drawn(tiny_config.model, part) for part in (keys[:3], keys[3:])]
    for group, first, second in zip(whole, *halves, strict=True):
        assert torch.equal(group, torch.cat([first, second]))


def test_nor_on_the_number_of_threads(tiny_config):
    keys = [(3, 1, position) for position in range(5)]
    alone = drawn(tiny_config.model, keys)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        together = drawn(tiny_config.model, keys)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_numbers_are_standard_normal_and_their_own(tiny_config):
    groups = drawn(tiny_config.model, [(0, step, position) for step in range(20) for position in range(20)])
    flat = torch.cat([group.flatten(1) for group in groups], dim=1)
    assert abs(flat.mean()) < 4 / flat.numel() ** 0.5
    assert abs(flat.square().mean() - 1) < 6 / flat.numel() ** 0.5
    assert len(flat[:, 0].unique()) == len(flat)
