"""Output distributions p(x | z): scaling of images, negative log-likelihood, mean and sampling.

Both classes have no parameters; they read the network's output, [B, out_channels, H, W].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import ModelConfig
from .gaussian import LARGEST_STD, SMALLEST_STD, std_from_raw
from .kernels.blockwise import per_image


class MixtureParameters(NamedTuple):
    """A logistic mixture per pixel, read off the network's output."""

    logits: Tensor  # [B, M, H, W], unnormalised log weights
    means: Tensor  # [B, C, M, H, W], before earlier colours shift them
    stds: Tensor  # [B, C, M, H, W], logistic scales
    coefficients: Tensor  # [B, C(C-1)/2, M, H, W] in (-1, 1): of colour c on j < c, ordered (1, 0), (2, 0), (2, 1), ...


class LogisticMixture:
    """Discretised mixture of logistics; colours depend on earlier colours (PixelCNN++; paper section 6).

    The network's channels are M mixture logits, then rows of M: for each colour its means, its raw scales and the
    coefficients k = c, c + C, c + 2C, ... of the C(C-1)/2 (one a colour at C = 3, as published).
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        colours = config.channels
        self.pairs = [(c, j) for c in range(colours) for j in range(c)]
        rows: list[tuple[str, int]] = []
        for c in range(colours):
            rows += [("mean", c), ("scale", c), *(("weight", k) for k in range(c, len(self.pairs), colours))]
        parts = ([row for row in sorted(rows) if row[0] == name] for name in ("mean", "scale", "weight"))
        self._rows = [_as_slices([rows.index(row) for row in part]) for part in parts]
        self.out_channels = config.mixtures * (1 + len(rows))
        level = 2.0 ** (8 - config.bits)
        self.spacing = level / 127.5
        self.highest = (256.0 - level - 127.5) / 127.5
        published = config.bins == "published"
        self.half_bin = 1.0 / (2.0**config.bits - 1.0) if published else self.spacing / 2
        is_open = config.open_highest_bin or not published
        self.highest_edge = self.highest - self.spacing / 2 if is_open else 0.999  # what 255 alone exceeds
        self._log_mass = self._published_log_mass if published else self._exact_log_mass

    def quantised(self, images: Tensor) -> Tensor:
        """Cut off the low bits of uint8 [B, C, H, W]: what is left is all of an image that the model knows."""
        return _cut(images, self.config.bits)

    def to_input(self, images: Tensor) -> Tensor:
        """Scale uint8 [B, C, H, W] to what the bottom-up path reads, float32; by default that is `to_target`."""
        config = self.config
        return (_cut(images, config.input_bits or config.bits).float() - config.input_mean) / config.input_std

    def to_target(self, images: Tensor) -> Tensor:
        """Scale uint8 [B, C, H, W] to float32 in [-1, 1], low bits cut off: (pixel - 127.5) / 127.5."""
        return (self.quantised(images).float() - 127.5) / 127.5

    def parameters(self, output: Tensor) -> MixtureParameters:
        """Split the network's output [B, out_channels, H, W]; computed in float32, or float64 if that is given."""
        return self._parameters(self.split(output))

    def split(self, output: Tensor) -> list[Tensor]:
        """Split into logits [B, M, H, W]; means, raw scales, raw coefficients [B, rows, M, H, W]; each contiguous."""
        return [_contiguous(output[:, : self.config.mixtures]), *(self._part(output, rows) for rows in self._rows)]

    def _part(self, output: Tensor, rows: Sequence[slice]) -> Tensor:
        """Select some of the rows of M, [B, rows, M, H, W], contiguous."""
        m = self.config.mixtures
        of_all = output[:, m:].unflatten(1, (-1, m))
        parts = [of_all[:, some] for some in rows]
        return _contiguous(parts[0]) if len(parts) == 1 else torch.cat(parts, dim=1).contiguous()

    def join(self, parts: Sequence[Tensor], out: Tensor) -> None:
        """Undo `split`: fill `out` [B, out_channels, H, W]."""
        m = self.config.mixtures
        out[:, :m] = parts[0]
        rows = out[:, m:].unflatten(1, (-1, m))
        for chosen, part in zip(self._rows, parts[1:], strict=True):
            views = [rows[:, some] for some in chosen]
            for view, some in zip(views, part.split([view.shape[1] for view in views], dim=1), strict=True):
                view.copy_(some)

    def _parameters(self, parts: Sequence[Tensor]) -> MixtureParameters:
        dtype = torch.promote_types(parts[0].dtype, torch.float32)
        logits, means, scales, coefficients = (part.to(dtype) for part in parts)
        floor, base = self.config.min_output_logscale, self.config.output_scale
        # The floor bounds the raw value of base logstd, and the scale itself of base std.
        raw = scales.clamp(min=floor) if base == "logstd" else scales
        stds = std_from_raw(raw, base, self.config.output_beta)
        if base == "std":
            stds = stds.clamp(max(math.exp(floor), SMALLEST_STD), LARGEST_STD)
        return MixtureParameters(logits, means, stds, _tanh(coefficients))

    def nll(self, output: Tensor, images: Tensor) -> Tensor:
        """Compute the negative log-likelihood of uint8 `images` [B, C, H, W] in nats per image, [B]."""
        return per_image(self, output, images, self.config.mixtures * images.shape[1:].numel())

    def numbers(self, parts: Sequence[Tensor], images: Tensor) -> Tensor:
        """Compute the negative log-likelihood, [B] nats, from the parts of an output."""
        p = self._parameters(parts)
        x = self.to_target(images)
        means = self._shifted_means(p, x)
        log_mass = self._log_mass(x.unsqueeze(2), means, p.stds).sum(dim=1)
        log_prob = torch.logsumexp(log_mass + p.logits.log_softmax(dim=1), dim=1)
        return -log_prob.flatten(1).sum(dim=1)

    def _shifted_means(self, p: MixtureParameters, x: Tensor) -> Tensor:
        """Shift the means [B, C, M, H, W] by the earlier true colours of `x` [B, C, H, W]."""
        columns = list(p.means.unbind(dim=1))
        for k, (c, j) in enumerate(self.pairs):
            columns[c] = columns[c] + p.coefficients[:, k] * x[:, j : j + 1]
        return torch.stack(columns, dim=1)

    def _edges(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Find the positions of the lowest level (pixel 0) and of the highest (pixel 256 - 2^(8 - bits)) in `x`.

        Without an open highest bin no level below 255 is the highest.
        """
        return x < -1.0 + self.spacing / 2, x > self.highest_edge

    def _exact_log_mass(self, x: Tensor, means: Tensor, stds: Tensor) -> Tensor:
        """Compute log of the logistic's mass in the bin around `x`; bins tile the line, so masses sum to 1.

        With a, b the bin's upper and lower edge in units of the scale, sigmoid(a) - sigmoid(b) =
        sigmoid(a) sigmoid(-b) (1 - exp(b - a)): every factor has a stable logarithm, however small the mass.
        """
        centre, half = (x - means) / stds, self.half_bin / stds
        # Factors 0 and 1: a CPU multiplies far faster than it picks by a mask, and no term here is infinite.
        above, below = ((~edge).to(x.dtype) for edge in reversed(self._edges(x)))
        upper_edge = F.softplus(-(centre + half)) * above
        lower_edge = F.softplus(centre - half) * below
        width = torch.log(-torch.expm1(-2.0 * half)) * (above * below)
        return width - upper_edge - lower_edge

    def _published_log_mass(self, x: Tensor, means: Tensor, stds: Tensor) -> Tensor:
        """Compute it for the published models: 1/(2^bits - 1) to each side, density × width below a mass of 1e-5.

        Below 8 bits their bins overlap; if `open_highest_bin` is not set, what lies above the highest one is lost.
        """
        centre, half = (x - means) / stds, self.half_bin / stds
        lowest, highest = self._edges(x)
        mass = torch.sigmoid(centre + half) - torch.sigmoid(centre - half)
        density = centre - stds.log() - 2.0 * F.softplus(centre) + math.log(2.0 * self.half_bin)
        inner = torch.where(mass > 1e-5, mass.clamp(min=1e-10).log(), density)
        inner = torch.where(highest, -F.softplus(centre - half), inner)
        return torch.where(lowest, -F.softplus(-(centre + half)), inner)

    def mean(self, output: Tensor) -> Tensor:
        """Compute the expected image in [-1, 1], [B, C, H, W]; earlier colours feed later ones by their expectation."""
        # Not from `parameters`: the scales play no part, and take a third of the time.
        dtype = torch.promote_types(output.dtype, torch.float32)
        of_means, _, of_coefficients = self._rows
        logits = _contiguous(output[:, : self.config.mixtures]).to(dtype)
        means, coefficients = (
            self._part(output, of_means).to(dtype),
            _tanh(self._part(output, of_coefficients).to(dtype)),
        )
        columns: list[Tensor] = []
        for c, column in enumerate(means.unbind(dim=1)):
            for k, (to, j) in enumerate(self.pairs):
                if to == c:
                    column = torch.addcmul(column, coefficients[:, k], columns[j])
            columns.append(column.clamp(-1.0, 1.0))
        weights = logits.softmax(dim=1)
        return torch.stack([(column * weights).sum(dim=1) for column in columns], dim=1)

    def sample(self, output: Tensor, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Draw an image in [-1, 1]: a component of the mixture by Gumbel-max, then colour by colour."""
        p = self.parameters(output)
        gumbel = -torch.log(-torch.log(_uniform(p.logits, generator)))
        chosen = (p.logits / temperature + gumbel).argmax(dim=1, keepdim=True).unsqueeze(1)
        means, stds, coefficients = (part.take_along_dim(chosen, dim=2).squeeze(2) for part in p[1:])
        u = _uniform(means, generator)
        noise = temperature * stds * (torch.log(u) - torch.log1p(-u))
        x = torch.empty_like(means)
        for c in range(self.config.channels):
            shift = sum(coefficients[:, k] * x[:, j] for k, (to, j) in enumerate(self.pairs) if to == c)
            x[:, c] = (means[:, c] + shift + noise[:, c]).clamp(-1.0, 1.0)
        return x

    def to_pixels(self, x: Tensor) -> Tensor:
        """Convert [-1, 1] to uint8 [0, 255], rounded."""
        return (x * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def _cut(images: Tensor, bits: int) -> Tensor:
    """Set all but the highest `bits` of uint8 `images` to 0."""
    return (images >> (8 - bits)) << (8 - bits) if bits < 8 else images


def _contiguous(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _tanh(x: Tensor) -> Tensor:
    """tanh, to float rounding of 1; several times faster than torch.tanh on a CPU."""
    return 2.0 * torch.sigmoid(2.0 * x) - 1.0


def _as_slices(rows: list[int]) -> list[slice]:
    """Write `rows`, in their order, as slices: views, but a list would have to be brought to a GPU each time."""
    slices = []
    while rows:
        step = max(rows[1] - rows[0], 1) if len(rows) > 1 else 1
        count = next((i for i, row in enumerate(rows) if row != rows[0] + i * step), len(rows))
        slices.append(slice(rows[0], rows[count - 1] + 1, step))
        rows = rows[count:]
    return slices or [slice(0, 0)]


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw uniform numbers in [1e-5, 1 - 1e-5], so that neither logarithm is infinite."""
    u = torch.rand(like.shape, generator=generator, device=like.device, dtype=like.dtype)
    return u.clamp(1e-5, 1.0 - 1e-5)


class Bernoulli:
    """Independent pixels of binarised images; the network sees them padded with zeros, the loss does not."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.out_channels = config.channels

    def quantised(self, images: Tensor) -> Tensor:
        """Convert uint8 [B, C, H, W] to 0 or 255 (from 128 on): all of an image that the model knows."""
        return (images >= 128).to(torch.uint8) * 255

    def to_input(self, images: Tensor) -> Tensor:
        """Convert uint8 [B, C, H, W] to {0, 1} (1 from 128 on), padded by `config.padding` zeros on each side."""
        return F.pad((images >= 128).float(), (self.config.padding,) * 4)

    def _central(self, output: Tensor) -> Tensor:
        p = self.config.padding
        return output[:, :, p:-p, p:-p].to(torch.promote_types(output.dtype, torch.float32))

    def nll(self, output: Tensor, images: Tensor) -> Tensor:
        """Compute the negative log-likelihood of uint8 `images` [B, C, H, W] in nats per image, [B]."""
        logits = self._central(output)
        loss = F.binary_cross_entropy_with_logits(logits, (images >= 128).to(logits.dtype), reduction="none")
        return loss.flatten(1).sum(dim=1)

    def mean(self, output: Tensor) -> Tensor:
        """Compute the probability of a 1 per pixel, [B, C, H, W] in [0, 1]."""
        return self._central(output).sigmoid()

    def sample(self, output: Tensor, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Draw a binary image, [B, C, H, W] in {0, 1}."""
        p = (self._central(output) / temperature).sigmoid()
        return (torch.rand(p.shape, generator=generator, device=p.device) < p).float()

    def to_pixels(self, x: Tensor) -> Tensor:
        """Convert [0, 1] to uint8 [0, 255], rounded."""
        return (x * 255.0).round().clamp(0, 255).to(torch.uint8)


Likelihood = LogisticMixture | Bernoulli


def make_likelihood(config: ModelConfig) -> Likelihood:
    """Make the output distribution that `config.output` names."""
    return Bernoulli(config) if config.output == "bernoulli" else LogisticMixture(config)
