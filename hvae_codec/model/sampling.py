"""Images drawn from the model, in batches: the same images whatever the batch size."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import UsageError
from .batch_size import batch_size_of
from .choices import prior_sample
from .hvae import HVAE
from .image_noise import ImageNoise
from .precision import full_float32
from .temperature import Temperature, group_temperatures


def sample_images(
    model: HVAE,
    count: int,
    temperature: Temperature = 1.0,
    *,
    output_temperature: float | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Draw `count` images from the prior, in batches of uint8 [B, C, H, W]; memory does not grow with `count`.

    `temperature` is that of the latent groups, in any form of `group_temperatures`. The images are the output
    distribution's expectation, or draws from it at `output_temperature`. Image i depends on the model, the
    temperatures, `seed` and i alone (up to rounding of convolutions, which work on other shapes in other batches).
    Raises `UsageError` on a temperature that is not possible, or a count or batch size below 1.
    """
    temperatures, batch_size = group_temperatures(temperature, model.config), batch_size_of(model, batch_size)
    for name, number in (("number of images", count), ("batch size", batch_size)):
        if number < 1:
            raise UsageError(f"the {name} is {number}; it must be at least 1")
    if output_temperature is not None and not (math.isfinite(output_temperature) and output_temperature > 0.0):
        remedy = "it must be above 0, or left out for expected images"
        raise UsageError(f"the output temperature is {output_temperature:g}; {remedy}")
    # Not a generator function: the checks above run at the call, not at the first batch.
    batches = (range(count)[first : first + batch_size] for first in range(0, count, batch_size))
    return (_draw(model, batch, temperatures, output_temperature, seed) for batch in batches)


@torch.no_grad()
@full_float32()
def _draw(
    model: HVAE, images: range, temperatures: tuple[float, ...], output_temperature: float | None, seed: int
) -> NDArray[np.uint8]:
    noise = ImageNoise(seed, images)
    output = model.top_down(None, prior_sample(noise, temperatures), len(images))
    likelihood = model.likelihood
    if output_temperature is None:
        return likelihood.to_pixels(likelihood.mean(output)).cpu().numpy()
    pairs = zip(output.cpu().split(1), noise.torch_generators(), strict=True)
    drawn = [likelihood.sample(image, generator, output_temperature) for image, generator in pairs]
    return likelihood.to_pixels(torch.cat(drawn)).numpy()
