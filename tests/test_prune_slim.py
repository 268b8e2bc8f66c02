"""A slim model computes what the pruned one does, is smaller, and is a model like others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hvae_codec.analysis.evaluation import evaluate
from hvae_codec.config import ModelConfig, StageConfig
from hvae_codec.encode.coder import LatentCoder, quantiser_steps
from hvae_codec.encode.pipeline import EncodeOptions, encode_images
from hvae_codec.errors import ConfigError, ModelError, UsageError
from hvae_codec.model.checkpoint import load_model, model_hash, save_model
from hvae_codec.model.hvae import HVAE, gaussian_noise
from hvae_codec.model.keyed_noise import keyed_noise
from hvae_codec.model.sampling import sample_images
from hvae_codec.prune import slim as slimming
from hvae_codec.prune.kl_stats import KLStats, kl_stats, load_kl_stats, save_kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.prune.slim import slim, slim_config
from hvae_codec.prune.sweep import sweep
from hvae_codec.report.about import describe
from hvae_codec.report.groups import group_rich_table, group_table, kl_histogram
from hvae_codec.store.quantiser import FloatCodec, IntCodec
from hvae_codec.train.optimizer import FlatOptimizer
from hvae_codec.train.update import make_network, update

Keep = list[NDArray[np.bool_]]

RGB = ModelConfig(
    16,
    (
        StageConfig(16, width=8, variates=3, bottleneck=0.5),
        StageConfig(8, width=8, variates=4, bottleneck=0.5, linked_blocks=2, extra_bottom_up=1, extra_top_down=1),
        StageConfig(2, width=8, variates=5, bottleneck=0.5, extra_bottom_up=1),
    ),
    mixtures=2,
    middle_layers=1,
)
VDVAE_STAGES = (
    StageConfig(16, width=8, variates=3, bottleneck=0.5, extra_top_down=1),
    StageConfig(8, width=8, variates=4, bottleneck=0.5, linked_blocks=0, extra_bottom_up=1),
    StageConfig(4, width=12, variates=4, bottleneck=0.5, extra_bottom_up=1, extra_top_down=1),
    StageConfig(1, width=12, variates=5, kernel=1, bottleneck=0.5),
)
"""8 is a resolution that only the bottom-up path passes."""
SAME_RESOLUTION = (
    StageConfig(16, width=8, variates=2, bottleneck=0.5),
    StageConfig(8, width=8, variates=4, bottleneck=0.5),
    StageConfig(8, width=8, variates=3, kernel=5, bottleneck=0.5, linked_blocks=2),
    StageConfig(1, width=12, variates=5, kernel=1, bottleneck=0.5),
)
MODELS = {
    "rgb": RGB,
    "plain": dataclasses.replace(RGB, resample="plain", zero_prior_weights=True, stable_init=False),
    "residual": dataclasses.replace(RGB, residual_distribution=True),
    "k x k ends": dataclasses.replace(RGB, pointwise_ends=False),
    "bernoulli": dataclasses.replace(RGB, channels=1, output="bernoulli"),
    "vdvae": dataclasses.replace(
        RGB,
        stages=VDVAE_STAGES,
        resample="plain",
        activation="gelu",
        skips="raw",
        heads="direct",
        largest_start=4,
        output_gain=True,
        init="uniform",
    ),
    "two stages of a resolution": dataclasses.replace(RGB, stages=SAME_RESOLUTION),
}


def lively(config: ModelConfig) -> HVAE:
    """A model whose z differs much from image to image: untrained weights, those around z enlarged."""
    torch.manual_seed(0)
    model = HVAE(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if any(part in name for part in ("skip", "posterior", "prior_conv", "z_conv", "output_conv")):
            weight.mul_(2.0)
        if name.endswith(("bias", "start")):
            weight.add_(0.1 * torch.randn(weight.shape))
    return model.to(memory_format=torch.channels_last)


def keeping(config: ModelConfig, kept: Callable[[int, int], bool]) -> Keep:
    return [np.array([kept(g, v) for v in range(group.variates)], bool) for g, group in enumerate(config.groups)]


def masks(config: ModelConfig) -> dict[str, Keep]:
    last = len(config.groups) - 1
    return {
        "some of every group": keeping(config, lambda group, variate: variate < 2),
        "one group": keeping(config, lambda group, variate: group == 2),
        "one variate": keeping(config, lambda group, variate: (group, variate) == (1, 1)),
        "first and last group": keeping(config, lambda group, variate: group in (0, last) and variate != 1),
    }


def latent_mask(config: ModelConfig, keep: Keep) -> LatentMask:
    return LatentMask(tuple(keep), tuple(group.resolution for group in config.groups))


def everything(config: ModelConfig) -> LatentMask:
    return latent_mask(config, keeping(config, lambda group, variate: True))


def parameters(model: HVAE) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(scope="module", params=MODELS, ids=list(MODELS))
def model(request) -> HVAE:
    return lively(MODELS[request.param])


@pytest.fixture(scope="module")
def images(model, cut_patches) -> torch.Tensor:
    return torch.from_numpy(cut_patches(6, model.config.image_size, model.config.channels))


@pytest.fixture(scope="module")
def stats(model, images) -> KLStats:
    return kl_stats(model, images)


@pytest.fixture(scope="module")
def slim_model(tiny_model) -> HVAE:
    """Of `tiny_model`'s 4 groups the first and the third have nothing left."""
    return slim(tiny_model, keeping(tiny_model.config, lambda group, variate: group % 2 == 1 and variate != 1))


# --- the same function


@pytest.mark.parametrize("name", ["some of every group", "one group", "one variate", "first and last group"])
@pytest.mark.parametrize("codec", [IntCodec(0.3), FloatCodec("float32")], ids=["int", "float32"])
def test_codes_and_images_are_those_of_the_pruned_model(model, images, stats, name, codec):
    keep = masks(model.config)[name]
    mask, smaller = latent_mask(model.config, keep), slim(model, keep)
    assert smaller.config.latent_dims == mask.kept_dims
    assert smaller.config.unpruned_dims == mask.dims
    assert parameters(smaller) < parameters(model)
    whole = LatentCoder(model, mask, codec, quantiser_steps(mask, codec, stats))
    own = LatentCoder(smaller, everything(smaller.config), codec, whole.steps)
    expected, found = whole.encode(images), own.encode(images)
    assert expected.keys() == found.keys()
    for resolution, numbers in expected.items():
        assert np.ptp(numbers, axis=0).max() > 0, "codes are the same in all images"
        np.testing.assert_allclose(found[resolution], numbers, rtol=1e-3, atol=1e-3)
    difference = own.decode_pixels(found).int() - whole.decode_pixels(expected).int()
    assert difference.abs().max() <= 1


def test_kl_of_what_is_kept_is_the_same(model, images):
    keep = masks(model.config)["some of every group"]
    found = kl_stats(slim(model, keep), images, sample=False)
    kl = []

    def pruned_at_the_priors_mean(group) -> torch.Tensor:
        q, p, kept = group.posterior(), group.prior, torch.from_numpy(keep[group.index])
        kl.append(q.kl(p)[:, kept].double().mean(dim=0).numpy() / np.log(2.0))
        return torch.where(kept[:, None, None], q.mean, p.mean)

    with torch.no_grad():
        model.top_down(model.activations(images), pruned_at_the_priors_mean, len(images))
    for own, expected in zip(found.kl_bits, kl, strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-3, atol=1e-4)


def test_without_pruning_it_is_the_same_model(tiny_model):
    same = slim(tiny_model, list(everything(tiny_model.config).keep))
    assert model_hash(same) == model_hash(tiny_model)
    assert not same.config.is_slim


def test_a_slim_model_can_be_cut_further(model):
    first = keeping(model.config, lambda group, variate: group != 1)
    second = keeping(model.config, lambda group, variate: group != 1 and (group + variate) % 2 == 0)
    further = [kept[before] for kept, before in zip(second, first, strict=True)]
    twice, once = slim(slim(model, first), further), slim(model, second)
    assert twice.config == once.config
    for name, tensor in once.state_dict().items():
        torch.testing.assert_close(twice.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_model_that_differs_is_not_given_out(tiny_model, monkeypatch):
    keep = keeping(tiny_model.config, lambda group, variate: variate == 0)

    def unfolded(block, kept):
        last = block.prior_cell.convs[-1]
        return last.weight.chunk(2)[0], last.bias.chunk(2)[0]

    monkeypatch.setattr(slimming, "folded_residual", unfolded)
    with pytest.raises(ModelError, match=r"differ .* more than 1e-05; use the whole model"):
        slim(tiny_model, keep)


def test_random_numbers_are_not_used_up(tiny_model):
    before = torch.get_rng_state()
    slim(tiny_model, keeping(tiny_model.config, lambda group, variate: variate == 0))
    assert torch.equal(before, torch.get_rng_state())


# --- what is gone


def test_groups_without_variates_have_no_prior_and_no_posterior():
    smaller = HVAE(slim_config(RGB, [0, 0, 2, 0, 0]))
    of_latents = ("prior_conv", "posterior", "z_conv")
    with_latents = {name.split(".")[2] for name, _ in smaller.named_parameters() if any(p in name for p in of_latents)}
    assert with_latents == {"2"}
    assert smaller.top_down.blocks[0].prior_cell.convs[-1].weight.shape[0] == 8
    assert smaller.top_down.blocks[2].prior_cell.convs[-1].weight.shape[0] == 16


def test_the_bottom_up_path_ends_at_the_last_skip_that_is_read(cut_patches):
    """Skips in bottom-up order: 16 x 16, 8 x 8, 8 x 8, 2 x 2; the top-down order's groups 2 and 1 share one."""
    images = torch.from_numpy(cut_patches(3))
    read = {(0, 0, 0, 0, 1): [0], (0, 0, 0, 1, 1): [0, 1], (0, 0, 1, 0, 0): [2], (1, 0, 0, 0, 0): [3]}
    blocks = {0: 1, 1: 3, 2: 4, 3: 6}
    for counts, skips in read.items():
        smaller = HVAE(slim_config(RGB, counts))
        activations = smaller.activations(images)
        assert [number for number, skip in enumerate(activations) if skip is not None] == skips
        assert len(activations) == 4
        assert len(smaller.bottom_up.blocks) == blocks[skips[-1]]
        assert smaller.bottom_up.blocks[-1].pool is None
        skipped = {name.split(".")[2] for name, _ in smaller.named_parameters() if ".skip." in name}
        assert len(skipped) == len(skips)


def test_groups_without_variates_have_an_empty_z(slim_model, photo_patches):
    images, seen = torch.from_numpy(photo_patches[:2]), []

    def choose(group) -> torch.Tensor:
        z, kl = group.sample_posterior(torch.randn_like(group.prior.mean))
        observed = group.observed_z(None, lambda kl, posterior: seen.append(kl.shape[1]))
        assert z.shape == observed.shape == group.prior_mean.shape == group.posterior().mean.shape
        assert bool((kl > 0).all()) == bool(z.shape[1])
        return z

    with torch.no_grad():
        slim_model.top_down(slim_model.activations(images), choose, 2)
    assert seen == [0, 3, 0, 2]


# --- a model like others


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", ["rgb", "residual", "two stages of a resolution"])
def test_every_weight_of_a_slim_model_is_trained(tiny_config, cut_patches, name, checkpointed):
    counts = [0, 2, 0, 1, 1]
    config = dataclasses.replace(
        tiny_config,
        model=slim_config(MODELS[name], counts[: len(MODELS[name].groups)]),
        train=dataclasses.replace(tiny_config.train, checkpoint_activations=checkpointed, precision="fp32"),
    )
    model = HVAE(config.model)
    optimizer = FlatOptimizer(model, config.optimizer, config.train.ema_decay)
    images = torch.from_numpy(cut_patches(4))
    noise = keyed_noise(config.model, [(0, i) for i in range(4)], "cpu")
    result = update(make_network(model, config.train), optimizer, config, images, noise, 1)
    assert bool(result.loss.isfinite())
    assert not bool(result.skipped)
    assert [rate > 0 for rate in result.rate] == [group.variates > 0 for group in config.model.groups]
    terms = model(images, gaussian_noise())
    (terms.nll.sum() + terms.kl.sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_slim_run_comes_back(tiny_config, slim_model, tmp_path):
    save_model(tmp_path / "run", dataclasses.replace(tiny_config, model=slim_model.config), slim_model.state_dict())
    loaded = load_model(tmp_path / "run")
    assert loaded.config == slim_model.config
    assert model_hash(loaded) == model_hash(slim_model)
    facts = describe(tmp_path / "run")
    dims, unpruned = slim_model.config.latent_dims, tiny_config.model.latent_dims
    assert facts.pairs["latent dimensions"] == f"{dims:,} of {unpruned:,}; the rest was pruned away"
    assert (facts.data["latent_dims"], facts.data["unpruned_dims"]) == (dims, unpruned)
    assert facts.data["parameters"] == parameters(slim_model)


def test_a_slim_model_is_ranked_measured_and_sampled(slim_model, photo_patches, tmp_path):
    images = photo_patches[:5]
    stats = kl_stats(slim_model, images, batch_size=3)
    assert [len(kl) for kl in stats.kl_bits] == [0, 3, 0, 2]
    assert stats.per_group[0] == 0 < stats.per_group[1]
    save_kl_stats(tmp_path / "stats.npz", stats)
    assert [kl.shape for kl in load_kl_stats(tmp_path / "stats.npz").kl_bits] == [kl.shape for kl in stats.kl_bits]
    table = group_table(stats, slim_model.config.image_dims)
    assert table["variates"].tolist() == [0, 3, 0, 2]
    assert kl_histogram(stats).to_numpy().sum() == slim_model.config.latent_dims
    group_rich_table(table)
    kept = [LatentMask.from_keep(stats, 0.3), LatentMask.from_keep(stats, 0.3, granularity="position")]
    rows = sweep(slim_model, images, [*kept, LatentMask.everything(stats)])
    assert rows[0].rate.mean() < rows[-1].rate.mean()
    for mask in kept:
        assert mask.kept_variates > 0
        assert LatentMask.from_dict(mask.to_dict()).keeps_the_same(mask)
    assert evaluate(slim_model, images, samples=2).figures["nelbo"].mean > 0
    assert slim_model.sample(2, 0.7).shape == (2, 3, 16, 16)
    assert sum(len(batch) for batch in sample_images(slim_model, 3, "0.7:0.9", batch_size=2)) == 3


@pytest.mark.parametrize("granularity", ["variate", "position"])
def test_a_slim_model_encodes_to_a_store_and_decodes(slim_model, photo_patches, tmp_path, granularity):
    images = photo_patches[:5]
    stats = kl_stats(slim_model, images)
    mask = LatentMask.from_keep(stats, 0.5, granularity=granularity)
    options = EncodeOptions(evaluate=True, embed="whole", verify=True)
    store = encode_images(slim_model, images, tmp_path / "out.zarr", mask=mask, stats=stats, options=options)
    assert store.decode([0, 3]).shape == (2, 3, 16, 16)
    assert [z.shape[0] for z in store.dense(0)] == [0, 3, 0, 2]
    assert model_hash(store.load_model()) == model_hash(slim_model)


def test_stored_z_is_in_the_memory_format_of_the_state(tiny_model, photo_patches):
    """A single variate's strides may mean either format; convolutions take the other one and are slow."""
    model = slim(tiny_model, keeping(tiny_model.config, lambda group, variate: variate == 0))
    mask, stats = everything(model.config), kl_stats(model, photo_patches[:2])
    coder = LatentCoder(model, mask, IntCodec(), quantiser_steps(mask, IntCodec(), stats))
    stored = coder.encode(torch.from_numpy(photo_patches[:2]))
    for z, group in zip(coder.dense(stored), model.config.groups, strict=True):
        assert z.shape == (2, 1, group.resolution, group.resolution)
        assert z.stride(1) == 1


# --- what is refused


def test_other_masks_are_refused(tiny_model):
    whole = keeping(tiny_model.config, lambda group, variate: True)
    positions = [np.ones((group.variates, *2 * [group.resolution]), bool) for group in tiny_model.config.groups]
    wrong = [
        (positions, UsageError, "single positions; .* --granularity variate"),
        (whole[:-1], UsageError, "another model"),
        ([kept[:2] for kept in whole], UsageError, "another model"),
        ([kept & False for kept in whole], ConfigError, "no variate; keep at least one"),
    ]
    for keep, error, message in wrong:
        with pytest.raises(error, match=message):
            slim(tiny_model, keep)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([1, 1, 1], "3 latent groups .* has 5"),
        ([0, 0, 0, 5, 0], "group 3 .* 5 variates; it has 4"),
        ([-1, 1, 1, 1, 1], "kept"),
    ],
)
def test_counts_that_do_not_fit_are_refused(counts, message):
    with pytest.raises(UsageError, match=message):
        slim_config(RGB, counts)
