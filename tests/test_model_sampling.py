"""Images drawn in batches: they depend on the seed and their number, not on the batch they are drawn in."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from hvae_codec.errors import UsageError
from hvae_codec.model.checkpoint import fill_model
from hvae_codec.model.choices import gaussian_noise, prior_sample
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.sampling import sample_images
from hvae_codec.model.temperature import group_temperatures
from hvae_codec.published.efficient_vdvae import import_published

GOLDEN = Path(__file__).parent / "golden"


def draw(model, count, *args, **options) -> np.ndarray:
    return np.concatenate(list(sample_images(model, count, *args, **options)))


@pytest.mark.parametrize("name", ["symmetric", "asymmetric"])
@torch.no_grad()
def test_temperature_0_is_that_of_published_models(name):
    folder = GOLDEN / name
    config, weights = import_published(folder / f"checkpoints-{name}", folder / f"hparams-{name}.cfg")
    model = HVAE(config.model).eval()
    fill_model(model, weights, Path("golden"))
    with np.load(folder / "golden.npz") as golden:
        logits = torch.from_numpy(golden["prior_t0/logits"])
    zeros = group_temperatures("0:0", config.model)
    output = model.top_down(None, prior_sample(gaussian_noise(), zeros), 2)
    assert (output - logits).abs().max() / logits.abs().max() < 1e-5
    expected = model.likelihood.to_pixels(model.likelihood.mean(logits)).int()
    for images in (model.sample(2, "0"), torch.from_numpy(draw(model, 2, [0.0] * len(config.model.groups)))):
        assert (images.int() - expected).abs().max() <= 1


@pytest.mark.parametrize("output_temperature", [None, 0.7])
def test_images_do_not_depend_on_the_batch_size(tiny_model, output_temperature):
    """Up to rounding of convolutions, which may move a pixel by a level."""
    options = {"output_temperature": output_temperature, "seed": 3}
    whole = draw(tiny_model, 11, "0.7:1", batch_size=64, **options)
    assert whole.dtype == np.uint8
    assert whole.shape == (11, 3, 16, 16)
    for batch_size in (1, 4):
        again = draw(tiny_model, 11, "0.7:1", batch_size=batch_size, **options)
        assert np.abs(again.astype(int) - whole).max() <= 1
    assert np.abs(draw(tiny_model, 5, "0.7:1", **options).astype(int) - whole[:5]).max() <= 1
    assert len({image.tobytes() for image in whole}) == 11


def test_the_seed_and_the_output_temperature_matter(tiny_model):
    expected = draw(tiny_model, 4)
    assert (draw(tiny_model, 4) == expected).all()
    assert (draw(tiny_model, 4, seed=1) != expected).any()
    noisy, quiet = (draw(tiny_model, 4, output_temperature=t).astype(int) for t in (1.0, 0.01))
    assert (draw(tiny_model, 4, output_temperature=1.0) == noisy).all()
    assert np.abs(noisy - expected).mean() > 2 * np.abs(quiet - expected).mean()


def test_temperature_0_leaves_nothing_to_the_seed(tiny_model):
    """Every image is that of the prior's mean."""
    images = np.concatenate([draw(tiny_model, 3, 0), draw(tiny_model, 3, "0:0", seed=1)])
    assert np.abs(images.astype(int) - images[0]).max() <= 1


def test_binarised_images(tiny_config):
    config = dataclasses.replace(tiny_config.model, channels=1, output="bernoulli")
    model = HVAE(config).eval().requires_grad_(False)
    assert draw(model, 3).shape == (3, 1, 12, 12)
    assert set(np.unique(draw(model, 3, output_temperature=1.0))) == {0, 255}


def test_batches_are_made_when_they_are_asked_for(tiny_model):
    batches = sample_images(tiny_model, 10**9, batch_size=2)
    assert next(batches).shape == next(batches).shape == (2, 3, 16, 16)
    assert [len(batch) for batch in sample_images(tiny_model, 5, batch_size=2)] == [2, 2, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "the number of images is 0;"),
        ({"batch_size": 0}, "the batch size is 0;"),
        ({"output_temperature": 0.0}, "the output temperature is 0;"),
        ({"output_temperature": float("nan")}, "the output temperature is nan"),
        ({"temperature": "hot"}, "the temperature is 'hot'"),
    ],
)
def test_wrong_input_is_refused_at_the_call(tiny_model, options, message):
    with pytest.raises(UsageError) as error:
        sample_images(tiny_model, **({"count": 1} | options))
    assert str(error.value).startswith(message)
