"""Other strings than the fixtures': networks of random weights compute what a plain one computes from the strings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hvae_codec.model.choices import posterior_mean
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.top_down import LatentGroup
from hvae_codec.published.vdvae_config import config_of
from hvae_codec.published.vdvae_hparams import VdvaeHparams
from hvae_codec.published.vdvae_weights import convert

SMALL = {"width": 30, "zdim": 3, "num_mixtures": 2, "bottleneck_multiple": 0.3, "no_bias_above": 4}

STRINGS = {
    "no starts above 4, kernels of 1 at 2": {
        "enc_blocks": "16,16d2,8,8d2,4,4d2,2x2",
        "dec_blocks": "2,4m2,4,8m4,16m8,16",
        "custom_width_str": "4:46,2:46",
    },
    "over two octaves, both paths": {
        "enc_blocks": "16,16d4,4,4d4,1",
        "dec_blocks": "1,4m1,16m4,16",
        "custom_width_str": "4:33,1:46",
    },
    "pooling first and last, widths that grow each time": {
        "enc_blocks": "16d1,16d2,8,8d2,4d2,2d2",
        "dec_blocks": "1x2,4m1,16m4",
        "custom_width_str": "8:31,4:33,2:34,1:41",
    },
    "blocks that no latent group depends on": {"enc_blocks": "8,8d2,4x2,4d4,1x2", "dec_blocks": "4x2,8m4"},
}


def blocks_of(text: str) -> Iterator[tuple[int, int | None]]:
    """(resolution, operand) of each block."""
    for entry in text.split(","):
        if "x" in entry:
            yield from [(int(entry.split("x")[0]), None)] * int(entry.split("x")[1])
        else:
            resolution, _, operand = entry.replace("m", "d").partition("d")
            yield int(resolution), int(operand) if operand else None


class Plain:
    """The network straight from the strings, with a table of states by resolution."""

    def __init__(self, hparams: VdvaeHparams) -> None:
        self.hparams, self.random = hparams, torch.Generator().manual_seed(0)
        widths = dict(map(int, entry.split(":")) for entry in hparams.custom_width_str.split(",") if entry)
        self.bottom_up, self.top_down = list(blocks_of(hparams.enc_blocks)), list(blocks_of(hparams.dec_blocks))
        self.size = self.bottom_up[0][0]
        self.width = {r: widths.get(r, hparams.width) for r in (2**i for i in range(8))}
        self.weights: dict[str, Tensor] = {}

    def tensor(self, name: str, *shape: int) -> Tensor:
        """A weight, drawn when it is first asked for."""
        if name not in self.weights:
            scale = 0.7 / math.sqrt(shape[1] * shape[2] * shape[3]) if name.endswith("weight") else 0.3
            self.weights[name] = scale * torch.randn(shape, generator=self.random)
        return self.weights[name]

    def conv(self, name: str, x: Tensor, outputs: int, kernel: int = 1) -> Tensor:
        weight = self.tensor(f"{name}.weight", outputs, x.shape[1], kernel, kernel)
        return F.conv2d(x, weight, self.tensor(f"{name}.bias", outputs), padding=kernel // 2)

    def block(self, name: str, x: Tensor, resolution: int, outputs: int) -> Tensor:
        middle, kernel = int(self.width[resolution] * self.hparams.bottleneck_multiple), 3 if resolution > 2 else 1
        for number, (channels, size) in enumerate([(middle, 1), (middle, kernel), (middle, kernel), (outputs, 1)], 1):
            x = self.conv(f"{name}.c{number}", F.gelu(x), channels, size)
        return x

    def activations(self, image: Tensor) -> Mapping[int, Tensor]:
        x = self.conv("encoder.in_conv", image, self.hparams.width, 3)
        found = {self.size: x}
        for number, (resolution, pooled) in enumerate(self.bottom_up):
            x = x + self.block(f"encoder.enc_blocks.{number}", x, resolution, x.shape[1])
            x = F.avg_pool2d(x, pooled) if pooled else x
            added = self.width[x.shape[-1]] - x.shape[1]
            x = torch.cat([x, x.new_zeros(len(x), added, *x.shape[2:])], dim=1)
            found[x.shape[-1]] = x
        return found

    def run(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """KL of each block along the posterior's mean, [blocks, B], and the output's parameters."""
        activations, z, divergences = self.activations(image), self.hparams.zdim, []
        starts = [r for r in sorted({r for r, _ in self.top_down}) if r <= self.hparams.no_bias_above]
        states = {r: self.tensor(f"decoder.bias_xs.{i}", 1, self.width[r], r, r) for i, r in enumerate(starts)}
        for number, (resolution, enlarged) in enumerate(self.top_down):
            name, width = f"decoder.dec_blocks.{number}", self.width[resolution]
            x = states.get(resolution, torch.zeros(1, width, resolution, resolution)).expand(len(image), -1, -1, -1)
            if enlarged:
                x = x + torch.kron(states[enlarged][:, :width], torch.ones(1, 1, *[resolution // enlarged] * 2))
            joined = torch.cat([x, activations[resolution]], dim=1)
            mean, log_std = self.block(f"{name}.enc", joined, resolution, 2 * z).split(z, dim=1)
            prior = self.block(f"{name}.prior", x, resolution, 2 * z + width)
            prior_mean, prior_log_std, residual = prior.split([z, z, width], dim=1)
            squares = torch.exp(2 * log_std) + (mean - prior_mean) ** 2
            kl = prior_log_std - log_std - 0.5 + 0.5 * squares / torch.exp(2 * prior_log_std)
            divergences.append(kl.sum(dim=(1, 2, 3)))
            x = x + residual + self.conv(f"{name}.z_proj", mean, width)
            states[resolution] = x + self.block(f"{name}.resnet", x, resolution, width)
        gain, shift = (self.tensor(f"decoder.{name}", 1, self.hparams.width, 1, 1) for name in ("gain", "bias"))
        output = states[self.size] * gain + shift
        return torch.stack(divergences), self.conv("decoder.out_net.out_conv", output, 10 * self.hparams.num_mixtures)


@torch.no_grad()
@pytest.mark.parametrize("name", STRINGS)
def test_strings_are_computed_as_they_say(name: str):
    hparams = VdvaeHparams(dataset="imagenet64", **SMALL, **STRINGS[name])
    plain, config = Plain(hparams), config_of(hparams)
    images = torch.randint(0, 256, (2, 3, plain.size, plain.size), dtype=torch.uint8, generator=plain.random)
    model = HVAE(config.model)
    kl, output = plain.run(model.likelihood.to_input(images))
    model.load_state_dict(convert(plain.weights, config))
    mean, found = posterior_mean(), []

    def choose(group: LatentGroup) -> Tensor:
        found.append(group.posterior().kl(group.prior).sum(dim=(1, 2, 3)))
        return mean(group)

    own = model.top_down(model.activations(images), choose, 2)
    torch.testing.assert_close(torch.stack(found), kl, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(own, output, rtol=1e-5, atol=1e-5)
