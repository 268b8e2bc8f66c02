"""Heads that are joined for all groups at once, as on GPUs, against those that each group joins."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hvae_codec.config import Config, ModelConfig
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.kernels.joined_kernels import joined_kernels
from hvae_codec.model.keyed_noise import keyed_noise
from hvae_codec.model.top_down import TopDown, TopDownBlock, joined_heads


def kernel(outputs: int, inputs: int, size: int) -> tuple[Tensor, Tensor]:
    weight = torch.randn(outputs, inputs, size, size, dtype=torch.float64)
    return weight.to(memory_format=torch.channels_last), torch.randn(outputs, dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("beside", [0, 2])
def test_a_joined_kernel_does_what_two_convolutions_do(size: int, beside: int):
    firsts, seconds = [kernel(beside + 4, 3, size) for _ in range(3)], [kernel(5, 4, 1) for _ in range(3)]
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    for found, first, second in zip(joined_kernels(firsts, seconds, beside), firsts, seconds, strict=True):
        middle = F.conv2d(x, *first, padding=size // 2)
        expected = torch.cat([middle[:, :beside], F.conv2d(middle[:, beside:], *second)], dim=1)
        torch.testing.assert_close(F.conv2d(x, *found, padding=size // 2), expected)


def model_of(config: ModelConfig) -> HVAE:
    torch.manual_seed(1)
    return HVAE(config).to(memory_format=torch.channels_last)


def trained_by(model: HVAE, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss, and the gradient of each parameter that has one."""
    terms = model(images, keyed_noise(model.config, [(0, 1, i) for i in range(len(images))], "cpu"))
    loss = (terms.nll + terms.kl.sum(dim=0)).mean()
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return loss.detach(), {name: g for name, g in zip(names, gradients, strict=True) if g is not None}


def slim(config: ModelConfig) -> ModelConfig:
    kept = ((2,), (0, 3), (1,))
    return dataclasses.replace(
        config, stages=tuple(dataclasses.replace(s, kept=k) for s, k in zip(config.stages, kept, strict=True))
    )


def masked(model: HVAE) -> None:
    model.prune_to([torch.arange(group.variates)[:, None, None] < 2 for group in model.config.groups])


@pytest.mark.parametrize(
    ("config_of", "prepare"),
    [
        (lambda c: c, lambda _: None),
        (lambda c: c, masked),
        (lambda c: c, HVAE.checkpoint_activations),
        (slim, lambda _: None),
        (lambda c: dataclasses.replace(c, learned_steps=True), masked),
        (lambda c: dataclasses.replace(c, pointwise_ends=False), lambda _: None),
    ],
    ids=["plain", "masked", "checkpointed", "slim", "codes", "3 × 3"],
)
def test_losses_and_gradients_are_the_same(
    tiny_config: Config,
    photo_patches,
    monkeypatch: pytest.MonkeyPatch,
    config_of: Callable[[ModelConfig], ModelConfig],
    prepare: Callable[[HVAE], None],
):
    model, images = model_of(config_of(tiny_config.model)), torch.from_numpy(photo_patches[:4])
    prepare(model)
    loss, gradients = trained_by(model, images)
    monkeypatch.setattr(TopDown, "_heads", lambda self, groups: joined_heads([self.blocks[i] for i in groups]))
    # A residual term is then a part of a tensor that must stay.
    monkeypatch.setattr(TopDownBlock, "after_z", lambda self, state, r, z: self.cells(state + r + _of_z(self, z)))
    found, others = trained_by(model, images)
    torch.testing.assert_close(found, loss, rtol=1e-6, atol=0)
    assert others.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (others[name] - gradient).abs().max() <= 1e-4 * gradient.abs().max(), name


def _of_z(block: TopDownBlock, z: Tensor) -> Tensor | float:
    return block.z_conv(z) if block.variates else 0.0
