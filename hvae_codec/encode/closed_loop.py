"""Images encoded and decoded in memory, with several coders of one model: what a store gives back, and what that costs.

    bottom-up path, once a batch ──> coder 1: codes ──> output ──> pixels, -log2 p(image | codes)
                                └──> coder 2: ...

The decoder sees the z that the encoder has, so the encoder's own top-down pass ends with the decoder's output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.bottom_up import Activations
from ..model.precision import full_float32
from ..prune.shared_prefix import masked_outputs
from ..store.quantiser import check_clipped
from ..store.reader import Stored
from .coder import EncodeChooser, LatentCoder


class RoundTrip(NamedTuple):
    """A batch encoded and decoded with one coder."""

    stored: Stored
    pixels: Tensor  # the reconstruction, uint8 [B, C, H, W]
    distortion: NDArray[np.float64]  # -log2 p(image | decoded z) of each image, bits/dim, [B]


@torch.no_grad()
@full_float32()
def encode_and_decode(coders: Sequence[LatentCoder], activations: Activations, images: Tensor) -> list[RoundTrip]:
    """Encode and decode uint8 `images` [B, C, H, W] with each of `coders`, from their bottom-up activations.

    The coders have one model. Latent groups that they code alike are run once, from coder to coder: give them by rising
    size. Raises `ClippedError` if latents are too large for the codec.
    """
    likelihood, trips = coders[0].model.likelihood, []
    for coder, choice, output in _outputs(coders, activations):
        stored = choice.stored()
        check_clipped(coder.codec, stored, "the images measured")
        pixels = likelihood.to_pixels(likelihood.mean(output))
        trips.append(RoundTrip(stored, pixels, _bits(coder, output, images).cpu().numpy()))
    return trips


@torch.no_grad()
@full_float32()
def closed_loop_distortion(coders: Sequence[LatentCoder], activations: Activations, images: Tensor) -> Tensor:
    """Measure -log2 p(image | decoded z) alone, of uint8 `images` [B, C, H, W]: float64 [coders, B], bits/dim.

    Coders as for `encode_and_decode`; codes that are clipped decode to what they would decode to.
    """
    return torch.stack([_bits(coder, output, images) for coder, _, output in _outputs(coders, activations)])


def _outputs(
    coders: Sequence[LatentCoder], activations: Activations
) -> Iterator[tuple[LatentCoder, EncodeChooser, Tensor]]:
    """Yield each coder, what it chose, and the output's parameters; each output is computed when it is taken."""
    choices = [EncodeChooser(coder) for coder in coders]
    outputs = masked_outputs(coders[0].model, activations, coders, choices)
    return zip(coders, choices, outputs, strict=True)


def _bits(coder: LatentCoder, output: Tensor, images: Tensor) -> Tensor:
    model = coder.model
    return model.likelihood.nll(output, images.to(output.device)).double() / model.nats_per_bit_dim
