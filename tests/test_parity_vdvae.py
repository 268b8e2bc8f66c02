"""Two checkpoints of the published VDVAE give the published numbers: outputs, KL, generation, images, four updates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from hvae_codec.model.choices import SampledPosterior, posterior_mean, prior_sample
from hvae_codec.model.hvae import HVAE, Terms
from hvae_codec.model.likelihood import make_likelihood
from hvae_codec.model.top_down import Choose, LatentGroup
from hvae_codec.published.vdvae_weights import published_name
from hvae_codec.train.optimizer import FlatOptimizer
from hvae_codec.train.schedules import learning_rate
from hvae_codec.train.update import update
from vdvae_cases import CASES, Case

OUTPUT, DOUBLE, GRADIENT, CHANGE = 1e-5, 1e-12, 5e-4, 1e-2


def distance(a: Any, b: Any) -> float:
    """max|a - b| / max|b|."""
    a, b = torch.as_tensor(a).detach().double(), torch.as_tensor(b).double()
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.fixture(scope="module")
def model(case: Case) -> HVAE:
    return case.model().requires_grad_(False)


class Recorded:
    """Chooses as told, and records each group's KL, nats [B, variates], prior and posterior."""

    def __init__(self, choose: Choose) -> None:
        self.choose = choose
        self.kl: list[torch.Tensor] = []
        self.first: dict[str, torch.Tensor] = {}  # parameters for image 0

    def __call__(self, group: LatentGroup) -> torch.Tensor:
        posterior, prior = group.posterior(), group.prior
        self.kl.append(posterior.kl(prior).sum(dim=(2, 3)))
        for name, of in (("posterior", posterior), ("prior", prior)):
            self.first[f"{group.index}/{name}_mean"] = of.mean[:1]
            self.first[f"{group.index}/{name}_logstd"] = of.std[:1].log()
        return self.choose(group)


def noise_of(golden: Any, images: int = 4) -> Choose:
    return lambda group: torch.from_numpy(golden[f"noise/{group.index}"][:images]).to(group.prior.mean)


def last_state(model: HVAE, choose: Choose, images: int = 1) -> torch.Tensor:
    """What the output convolution reads, [images, width, S, S], of a pass without an image."""
    state = model.top_down.run_groups(None, choose, images, range(len(model.top_down.blocks)))
    return model.top_down.output_conv.scaled(state)


def test_structure(case: Case, model: HVAE):
    golden, groups = case.golden, model.config.groups
    assert sum(p.numel() for p in model.parameters()) == golden["parameters"]
    assert [group.resolution for group in groups] == golden["block/resolution"].tolist()
    assert [group.variates for group in groups] == golden["block/zdim"].tolist()
    blocks = model.top_down.blocks
    assert [block.z_conv.out_channels for block in blocks] == golden["block/width"].tolist()
    assert [block.prior_cell.convs[0].out_channels for block in blocks] == golden["block/bottleneck"].tolist()


def test_input_target_and_activations(case: Case, model: HVAE):
    golden, likelihood = case.golden, model.likelihood
    for name, scaled in (("input", likelihood.to_input(case.images)), ("target", likelihood.to_target(case.images))):
        assert distance(scaled.permute(0, 2, 3, 1), golden[name]) < 1e-7
    resolutions = sorted({group.resolution for group in model.config.groups}, reverse=True)
    for resolution, activation in zip(resolutions, model.activations(case.images), strict=True):
        assert distance(activation[:1], golden[f"act/{resolution}"]) < OUTPUT


@pytest.mark.parametrize("folder", ["mean", "sample"])
def test_posterior_pass(case: Case, model: HVAE, folder: str):
    golden, dims = case.golden, model.config.image_dims
    noise = noise_of(golden)
    choose = Recorded(posterior_mean() if folder == "mean" else lambda group: group.posterior().sample(noise(group)))
    state = model.top_down.run_groups(model.activations(case.images), choose, 4, range(len(model.top_down.blocks)))
    output = model.top_down.output_conv(state)
    kl, nll = torch.stack(choose.kl), model.likelihood.nll(output, case.images)
    rate = kl.sum(dim=(0, 2)) / dims
    scores = {
        "kl": kl.sum(dim=2),
        "nll": nll / dims,
        "nll_nats": nll,
        "nll_bits_per_dim": nll / model.nats_per_bit_dim,
        "rate": rate,
        "elbo_per_image": nll / dims + rate,
        "mean_elbo": (nll / dims + rate).mean(),
        "mean_distortion": nll.mean() / dims,
        "mean_rate": rate.mean(),
    }
    if folder == "mean":
        px_z = model.top_down.output_conv.scaled(state)[:1]
        scores |= choose.first | {"kl_per_variate": kl, "px_z": px_z, "out": output[:1, :, :16, :16]}
    for name, value in scores.items():
        assert distance(value, golden[f"{folder}/{name}"]) < OUTPUT, name


@torch.no_grad()
def test_the_bound_of_a_noisy_pass(case: Case, model: HVAE):
    """What training and evaluation compute, by the kernels of theirs."""
    terms = model(case.images, noise_of(case.golden))
    assert distance(terms.kl, case.golden["sample/kl"]) < OUTPUT
    assert distance(terms.nll, case.golden["sample/nll_nats"]) < OUTPUT


def test_generation(case: Case, model: HVAE):
    golden = case.golden
    assert distance(last_state(model, lambda group: group.prior_mean), golden["prior_t0/px_z"]) < OUTPUT
    drawn = prior_sample(noise_of(golden, 1), golden["prior_list/t"].tolist())
    assert distance(last_state(model, drawn), golden["prior_list/px_z"]) < OUTPUT

    def manual(group: LatentGroup) -> torch.Tensor:
        given = group.index < golden["manual/blocks"]
        return torch.from_numpy(golden[f"mean/{group.index}/posterior_mean"]) if given else group.prior_mean

    assert distance(last_state(model, manual), golden["manual/px_z"]) < OUTPUT


def test_drawn_images(case: Case, model: HVAE, monkeypatch: pytest.MonkeyPatch):
    """Values from -1 to 1 are the published ones. They are cut to levels there, and rounded to the nearest one here."""
    golden = case.golden
    output = model.top_down(model.activations(case.images), posterior_mean(), 4)

    def draw(output: torch.Tensor, mixture: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
        uniform = iter([mixture, colour])
        monkeypatch.setattr("hvae_codec.model.likelihood._uniform", lambda like, _: next(uniform).expand_as(like))
        return model.likelihood.sample(output).permute(0, 2, 3, 1)

    half = torch.tensor(0.5)
    given = (torch.from_numpy(golden[f"uniform/{name}"]).permute(0, 3, 1, 2) for name in ("mixture", "colour"))
    for name, image in (("image", draw(output, half, half)), ("drawn_image", draw(output[:1], *given))):
        assert distance(image, golden[f"mean/{name}"]) < OUTPUT
        levels = ((image + 1.0) * 127.5).int() - torch.from_numpy(golden[f"mean/{name}_uint8"]).int()
        assert levels.abs().max() <= 1
        assert (levels != 0).float().mean() < 1e-3


def test_weights_of_the_last_step(case: Case):
    model = case.model("").requires_grad_(False)
    choose = Recorded(posterior_mean())
    output = model.top_down(model.activations(case.images), choose, 4)
    assert distance(torch.stack(choose.kl).sum(dim=2), case.golden["raw/mean/kl"]) < OUTPUT
    nll = model.likelihood.nll(output, case.images) / model.config.image_dims
    assert distance(nll, case.golden["raw/mean/nll"]) < OUTPUT


@pytest.mark.parametrize("dataset", ["cifar10", "imagenet32", "imagenet64", "ffhq_256", "ffhq_1024"])
def test_the_scaling_of_each_data_set(case: Case, dataset: str):
    model, golden = case.model(config=case.config(dataset=dataset)).requires_grad_(False), case.golden
    scaled = model.likelihood.to_input(case.images[1:2]), model.likelihood.to_target(case.images[1:2])
    for name, values in zip(("input", "target"), scaled, strict=True):
        assert distance(values.permute(0, 2, 3, 1), golden[f"dataset/{dataset}/{name}"]) < 1e-6
    choose = Recorded(posterior_mean())
    output = model.top_down(model.activations(case.images), choose, 4)
    assert distance(torch.stack(choose.kl).sum(dim=2), golden[f"dataset/{dataset}/kl"]) < OUTPUT
    nll = model.likelihood.nll(output, case.images) / model.config.image_dims
    assert distance(nll, golden[f"dataset/{dataset}/nll"]) < OUTPUT


# --- double precision, from the published inputs and targets, which are float32


def terms_in_double(case: Case, model: HVAE, choose: Any, monkeypatch: pytest.MonkeyPatch) -> Terms:
    inputs, targets = (torch.from_numpy(case.golden[name]).permute(0, 3, 1, 2) for name in ("input", "target"))
    monkeypatch.setattr(model.likelihood, "to_target", lambda _: targets)
    output = model.top_down(model.bottom_up(inputs.double()), choose, 4)
    likelihood = model.likelihood
    nll = likelihood.numbers(likelihood.split(output), case.images)
    return Terms(nll, choose.kl)


@torch.no_grad()
@pytest.mark.parametrize("folder", ["mean", "sample"])
def test_double_precision(case: Case, folder: str, monkeypatch: pytest.MonkeyPatch):
    noise = noise_of(case.golden)
    choose = SampledPosterior(noise if folder == "sample" else lambda group: torch.zeros_like(group.prior.mean))
    terms = terms_in_double(case, case.model().double(), choose, monkeypatch)
    assert distance(terms.kl, case.golden[f"f64/{folder}/kl"]) < DOUBLE
    assert distance(terms.nll / case.config().model.image_dims, case.golden[f"f64/{folder}/nll"]) < DOUBLE


def published_parts(tensors: dict[str, torch.Tensor], variates: int) -> dict[str, torch.Tensor]:
    """Bring tensors under published names and into the published order."""
    own = {name: tensor.shape for name, tensor in tensors.items()}
    found = {published_name(name, own): tensor for name, tensor in tensors.items()}
    return {name: t.roll(2 * variates, dims=0) if ".prior.c4" in name else t for name, t in found.items()}


def names_of(golden: Any, folder: str) -> Sequence[str]:
    names = [name.removeprefix(f"{folder}/") for name in golden if name.startswith(f"{folder}/")]
    assert len(names) == 7
    return names


def test_gradients_in_double_precision(case: Case, monkeypatch: pytest.MonkeyPatch):
    model, golden = case.model("").double(), case.golden
    terms = terms_in_double(case, model, SampledPosterior(noise_of(golden)), monkeypatch)
    loss = (terms.nll + terms.kl.sum(dim=0)).mean() / model.config.image_dims
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    gradients = published_parts(gradients, case.hparams.zdim)
    norms = [float(torch.linalg.vector_norm(gradients[name])) for name in golden["train/names"]]
    whole = np.linalg.norm(norms)
    assert distance([float(loss.detach()), whole], golden["f64/train/elbo_gradnorm"]) < 1e-6
    assert distance(norms, golden["f64/train/grad_norms"]) < 1e-6
    for name in names_of(golden, "f64/train/grad"):
        assert distance(gradients[name], golden[f"f64/train/grad/{name}"]) < 1e-6, name


# --- training


def test_four_updates(case: Case):
    """The first has rate 0; one fixture clips every gradient, the other skips every update."""
    golden, config = case.golden, case.config()
    raw, averaged = case.model(""), case.model()
    optimizer = FlatOptimizer(raw, config.optimizer, config.train.ema_decay)
    for name, tensor in optimizer.named(optimizer.ema).items():
        tensor.copy_(averaged.state_dict()[name])
    before = {"after": dict(raw.state_dict()), "after_ema": averaged.state_dict()}
    before = {folder: {n: t.clone() for n, t in tensors.items()} for folder, tensors in before.items()}
    rates = golden["train/lr_elbo_distortion_rate_gradnorm_skipped"]
    for step, (rate, elbo, distortion, kl, norm, skipped) in enumerate(rates, 1):
        result = update(raw, optimizer, config, case.images, noise_of(golden), step)
        assert learning_rate(config.optimizer, step) == pytest.approx(rate, rel=1e-6)
        for value, expected in ((result.loss, elbo), (result.distortion, distortion), (result.rate.sum(), kl)):
            nats = value * (np.log(2.0) if value is not result.loss else 1.0)
            assert distance(nats, expected) < 2e-5
        assert distance(result.grad_norm, norm) < GRADIENT
        assert bool(result.skipped) == bool(skipped)
    now = {"after": raw.state_dict(), "after_ema": optimizer.named(optimizer.ema)}
    for folder, tensors in now.items():
        found, old = (published_parts(dict(t), case.hparams.zdim) for t in (tensors, before[folder]))
        for name in names_of(golden, f"train/{folder}"):
            change = torch.from_numpy(golden[f"train/{folder}/{name}"]) - old[name]
            if not change.any():
                assert torch.equal(found[name], old[name])
            else:
                assert distance(found[name] - old[name], change) < CHANGE, name


# --- exact bins, which the published program has not


@pytest.mark.parametrize(("bins", "total"), [("exact", 1.0), ("published", 0.70)])
def test_probabilities_of_five_bits_sum_to_one_only_with_exact_bins(bins: str, total: float):
    """Of a logistic with mean 0.9 and scale 0.1, what lies above the highest published bin is lost."""
    config = dataclasses.replace(Case("lowbit_small").config().model, channels=1, mixtures=1, bins=bins)
    output = torch.tensor([0.0, 0.9, np.log(0.1)]).float().view(1, 3, 1, 1).expand(32, -1, -1, -1)
    levels = torch.arange(0, 256, 8, dtype=torch.uint8).view(32, 1, 1, 1)
    mass = torch.exp(-make_likelihood(config).nll(output, levels)).sum()
    assert float(mass) == pytest.approx(total, abs=0.005 if bins == "published" else 1e-5)
