"""Two published checkpoints give the published numbers: outputs, KL, pruning, generation, three updates."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hvae_codec.config import Config
from hvae_codec.model.checkpoint import fill_model
from hvae_codec.model.choices import SampledPosterior, gaussian_noise, kept_of, prior_sample
from hvae_codec.model.hvae import HVAE
from hvae_codec.prune.kl_stats import kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.published.efficient_vdvae import import_published, published_names
from hvae_codec.train.optimizer import FlatOptimizer
from hvae_codec.train.update import StepResult, update

GOLDEN = Path(__file__).parent / "golden"
OUTPUT, GRADIENT, CHANGE = 1e-5, 5e-5, 1e-3


def distance(a: Any, b: Any) -> float:
    """max|a - b| / max|b|."""
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


def to_images(golden: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(golden).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Case:
    config: Config
    weights: dict[str, torch.Tensor]
    golden: Mapping[str, np.ndarray]

    def model(self) -> HVAE:
        model = HVAE(self.config.model)
        fill_model(model, self.weights, Path("golden"))
        return model

    @property
    def images(self) -> torch.Tensor:
        return to_images(self.golden["images"])


@pytest.fixture(scope="module", params=["symmetric", "asymmetric"])
def case(request: pytest.FixtureRequest) -> Case:
    folder = GOLDEN / request.param
    config, weights = import_published(folder / f"checkpoints-{request.param}", folder / f"hparams-{request.param}.cfg")
    with np.load(folder / "golden.npz") as golden:
        return Case(config, weights, dict(golden))


class Deterministic:
    """Chooses the posterior mean where kept, the prior mean elsewhere, and checks each group against `golden`."""

    def __init__(self, golden: Mapping[str, np.ndarray], folder: str, mask: np.ndarray | None = None) -> None:
        self.golden, self.folder, self.mask = golden, folder, mask
        self.kl: list[torch.Tensor] = []

    def __call__(self, group) -> torch.Tensor:
        posterior, prior = group.posterior(), group.prior
        for name, gaussian in (("posterior", posterior), ("prior", prior)):
            assert distance(gaussian.mean, self.golden[f"{self.folder}/{group.index}/{name}_mean"]) < OUTPUT
            assert distance(gaussian.std, self.golden[f"{self.folder}/{group.index}/{name}_scale"]) < OUTPUT
        self.kl.append(posterior.kl(prior))
        if self.mask is None:
            return posterior.mean
        keep = torch.from_numpy(self.mask[group.index])[:, None, None]
        return torch.where(keep, posterior.mean, prior.mean)

    def per_variate(self) -> torch.Tensor:
        """Bits per latent dimension, [groups, variates]."""
        return torch.stack([kl.double().mean(dim=(0, 2, 3)) for kl in self.kl]) / np.log(2.0)

    def kl_bits(self, keep: np.ndarray) -> float:
        """Bits an image of the variates `keep` [groups, variates]."""
        sums = torch.stack([kl.double().sum(dim=(2, 3)).mean(dim=0) for kl in self.kl]) / np.log(2.0)
        return float(sums[torch.from_numpy(keep)].sum())


@torch.no_grad()
def test_posterior_mean_pass(case: Case):
    model, golden = case.model(), case.golden
    choose = Deterministic(golden, "mean")
    logits = model.top_down(model.activations(case.images), choose, 4)
    assert distance(logits, golden["mean/logits"]) < OUTPUT
    nll = model.likelihood.nll(logits, case.images).mean() / model.nats_per_bit_dim
    assert distance(nll, golden["mean/reconstruction"]) < OUTPUT
    everything = np.ones_like(golden["pruned/mask"])
    kl = choose.kl_bits(everything) / model.config.image_dims
    assert distance(kl, golden["mean/kl"]) < OUTPUT
    assert distance(choose.per_variate(), golden["kl_stats"]) < OUTPUT
    assert distance(choose.per_variate().mean(dim=1), golden["mean/kl_per_layer_avg"]) < OUTPUT


def test_kl_stats(case: Case):
    stats = kl_stats(case.model(), case.images, batch_size=3, sample=False)
    assert distance(np.stack(stats.per_variate), case.golden["kl_stats"]) < OUTPUT
    dims = np.array([group.dims for group in case.config.model.groups])
    assert distance(stats.per_group / dims, case.golden["mean/kl_per_layer_avg"]) < OUTPUT
    bits_dim = stats.per_group.sum() / case.config.model.image_dims
    assert distance(bits_dim, case.golden["mean/kl"]) < OUTPUT


@torch.no_grad()
def test_sampled_pass(case: Case):
    model, golden = case.model(), case.golden
    terms = model(case.images, lambda group: torch.from_numpy(golden[f"noise/{group.index}"]))
    assert distance(terms.nll.mean() / model.nats_per_bit_dim, golden["sample/reconstruction"]) < OUTPUT
    assert distance(terms.kl.sum(dim=0).mean() / model.nats_per_bit_dim, golden["sample/kl"]) < OUTPUT

    def choose(group) -> torch.Tensor:
        return group.posterior().sample(torch.from_numpy(golden[f"noise/{group.index}"]))

    assert distance(model.top_down(model.activations(case.images), choose, 4), golden["sample/logits"]) < OUTPUT


@torch.no_grad()
def test_pruned_pass(case: Case):
    model, golden = case.model(), case.golden
    mask = golden["kl_stats"] > np.quantile(golden["kl_stats"], 0.75)
    np.testing.assert_array_equal(mask, golden["pruned/mask"])
    choose = Deterministic(golden, "pruned", mask)
    logits = model.top_down(model.activations(case.images), choose, 4)
    assert distance(logits, golden["pruned/logits"]) < OUTPUT
    nll = model.likelihood.nll(logits, case.images).mean() / model.nats_per_bit_dim
    assert distance(nll, golden["pruned/reconstruction"]) < OUTPUT
    published = choose.kl_bits(np.ones_like(mask)) / model.config.image_dims
    assert distance(published, golden["pruned/kl_all_variates"]) < OUTPUT
    assert distance(choose.per_variate(), golden["pruned/kl_stats"]) < OUTPUT


def test_the_published_mask_and_rates(case: Case):
    """`count="variates"` gives the published mask; our rate is that of its kept variates, theirs that of all."""
    model, golden = case.model(), case.golden
    mask = LatentMask.from_keep(kl_stats(model, case.images, sample=False), 0.25, count="variates")
    np.testing.assert_array_equal(np.stack(mask.keep), golden["pruned/mask"])
    positions = np.array([[group.resolution**2] for group in case.config.model.groups])
    bits = golden["pruned/kl_stats"] * positions / model.config.image_dims
    assert distance(bits.sum(), golden["pruned/kl_all_variates"]) < OUTPUT
    mean_noise = SampledPosterior(lambda group: torch.zeros_like(group.prior.mean), kept_of(mask.tensors("cpu")))
    with torch.no_grad():
        model.top_down(model.activations(case.images), mean_noise, 4)
    rate = mean_noise.kl.sum(dim=0).mean() / model.nats_per_bit_dim
    assert distance(rate, (bits * golden["pruned/mask"]).sum()) < OUTPUT


@torch.no_grad()
def test_only_kept_variates_count(case: Case):
    """The published sum also counts what was pruned; a pruned posterior is the prior, and its KL is 0."""
    model, golden = case.model(), case.golden
    mask = golden["pruned/mask"]
    keep = [torch.from_numpy(row)[:, None, None] for row in mask]
    kl: list[torch.Tensor] = []

    def choose(group) -> torch.Tensor:
        posterior = group.posterior().where(keep[group.index], group.prior)
        kl.append(posterior.kl(group.prior).double().sum(dim=(1, 2, 3)).mean())
        return posterior.mean

    model.top_down(model.activations(case.images), choose, 4)
    positions = np.array([[group.resolution**2] for group in case.config.model.groups])
    expected = (golden["pruned/kl_stats"] * positions * mask).sum() * np.log(2.0)
    assert distance(sum(kl), expected) < OUTPUT


@torch.no_grad()
def test_prior_at_temperature_0(case: Case):
    logits = case.model().top_down(None, prior_sample(gaussian_noise(), temperature=0.0), 2)
    assert distance(logits, case.golden["prior_t0/logits"]) < OUTPUT


def test_three_updates(case: Case):
    golden = case.golden
    optimizer_config = dataclasses.replace(case.config.optimizer, schedule="constant")
    config = dataclasses.replace(case.config, optimizer=optimizer_config)
    model = case.model()
    optimizer = FlatOptimizer(model, config.optimizer, config.train.ema_decay)
    for number, expected in enumerate(golden["train/step_loss_reconstruction_kl_gradnorm"]):

        def noise(group, number: int = number) -> torch.Tensor:
            return torch.from_numpy(golden[f"train/{number}/noise/{group.index}"])

        images = to_images(golden[f"train/{number}/images"])
        result = update(model, optimizer, config, images, noise, 100 + number)
        assert expected[0] == 100 + number
        assert_result(result, expected[1:])
        if number == 0:
            for part in ("bottom_up.input_conv", "top_down.output_conv"):
                gradient = optimizer.named(optimizer.gradients)[f"{part}.weight"]
                assert distance(gradient, golden[f"train/0/grad/{part.split('.')[1]}"]) < GRADIENT
    own = {published: name for name, published in published_names(config.model).items()}
    after = [key.split("/")[1:] for key in golden if key.startswith("train/after")]
    assert len(after) == 6
    for folder, published in after:
        name = own[published]
        now, before = (
            (optimizer.named(optimizer.ema) if folder == "after_ema" else model.state_dict())[name],
            case.weights[name],
        )
        expected = torch.from_numpy(golden[f"train/{folder}/{published}"]) - before
        assert distance(now.detach() - before, expected) < CHANGE


def assert_result(result: StepResult, expected: np.ndarray) -> None:
    loss, reconstruction, kl, grad_norm = expected
    assert not result.skipped
    assert result.bad_image == -1
    assert distance(result.loss, loss) < OUTPUT
    assert distance(result.distortion, reconstruction) < OUTPUT
    assert distance(result.rate.sum(), kl) < OUTPUT
    assert distance(result.grad_norm, grad_norm) < GRADIENT
