"""The closed loop: the decoder has exactly the z that the encoder went on from, in every group of every model."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from types import SimpleNamespace

import hypothesis.extra.numpy
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvae_codec.config import ModelConfig, StageConfig
from hvae_codec.encode.closed_loop import encode_and_decode
from hvae_codec.encode.coder import (
    DecodeChooser,
    EncodeChooser,
    LatentCoder,
    quantiser_steps,
    stored_columns,
    to_tensors,
)
from hvae_codec.encode.pipeline import encode_images
from hvae_codec.errors import StoreError, UsageError
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.top_down import TopDownBlock
from hvae_codec.prune.kl_stats import KLStats, kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.store.columns import read_columns
from hvae_codec.store.quantiser import FloatCodec, IntCodec

RGB = ModelConfig(
    16,
    (
        StageConfig(16, width=8, variates=3, bottleneck=0.5),
        StageConfig(8, width=8, variates=4, bottleneck=0.5, extra_top_down=1),
        StageConfig(2, width=12, variates=5, bottleneck=0.5),
    ),
    mixtures=2,
    middle_layers=1,
)
BERNOULLI = ModelConfig(
    16,
    (StageConfig(16, width=8, variates=3), StageConfig(4, width=12, variates=4, linked_blocks=2)),
    channels=1,
    output="bernoulli",
)
SAME_RESOLUTION = (
    StageConfig(16, width=8, variates=2, bottleneck=0.5),
    StageConfig(8, width=8, variates=4, bottleneck=0.5),
    StageConfig(8, width=8, variates=3, kernel=5, bottleneck=0.5, linked_blocks=2),
    StageConfig(1, width=12, variates=5, kernel=1, bottleneck=0.5),
)
MODELS = {
    "rgb": RGB,
    "grey": dataclasses.replace(RGB, channels=1),
    "bernoulli": BERNOULLI,
    "5 bits": dataclasses.replace(RGB, bits=5),
    "residual": dataclasses.replace(RGB, residual_distribution=True),
    "logstd": dataclasses.replace(RGB, posterior_scale="logstd", output_scale="logstd", residual_distribution=True),
    "two stages of a resolution": dataclasses.replace(RGB, stages=SAME_RESOLUTION),
}
CODECS = [IntCodec(), FloatCodec("float16"), FloatCodec("float32")]


def lively(config: ModelConfig) -> HVAE:
    """A model whose z and images differ much from image to image: untrained weights, those around z enlarged."""
    model = HVAE(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if any(part in name for part in ("skip", "posterior", "z_conv", "output_conv")):
            # Scales that are exponentials of these weights would overflow sooner.
            least = 2.0 if config.posterior_scale == "std" else 1.0
            weight.mul_(least + 0.5 * torch.rand((), generator=generator))
        if name.endswith("bias"):
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
        if name.endswith("posterior_conv.bias"):
            weight[len(weight) // 2 :] -= 4.0  # small standard deviations, so that codes are not all 0
    return model.to(memory_format=torch.channels_last)


@pytest.fixture(scope="module", params=MODELS, ids=list(MODELS))
def model(request) -> HVAE:
    torch.manual_seed(0)
    return lively(MODELS[request.param])


@pytest.fixture(scope="module")
def rgb_model() -> HVAE:
    torch.manual_seed(0)
    return lively(RGB)


@pytest.fixture(scope="module")
def images(model, cut_patches) -> torch.Tensor:
    return torch.from_numpy(cut_patches(12, model.config.image_size, model.config.channels))


@pytest.fixture(scope="module")
def stats(model, images) -> KLStats:
    return kl_stats(model, images)


def masks(config: ModelConfig) -> dict[str, LatentMask]:
    groups = config.groups
    last = len(groups) - 1

    def keeping(kept) -> LatentMask:
        keep = tuple(np.array([kept(i, v) for v in range(g.variates)]) for i, g in enumerate(groups))
        return LatentMask(keep, tuple(g.resolution for g in groups))

    return {
        "all": keeping(lambda group, variate: True),
        "one variate": keeping(lambda group, variate: (group, variate) == (1, 2)),
        "late groups": keeping(lambda group, variate: group >= last - 1),
        "early groups": keeping(lambda group, variate: group < 2 and variate != 1),
        "every other": keeping(lambda group, variate: (group + variate) % 2 == 0),
    }


def position_masks(config: ModelConfig) -> dict[str, LatentMask]:
    """Masks that cut through the planes of variates; some variates and some groups are pruned whole."""
    groups = config.groups
    shapes = [(g.variates, g.resolution, g.resolution) for g in groups]
    generator = np.random.default_rng(0)
    scattered = [generator.random(shape) < 0.3 for shape in shapes]
    scattered[1][:] = False
    scattered[0][1] = True
    one = [np.zeros(shape, dtype=bool) for shape in shapes]
    one[-1][1, 3, 1] = True
    resolutions = tuple(g.resolution for g in groups)
    return {name: LatentMask(tuple(keep), resolutions) for name, keep in (("scattered", scattered), ("one", one))}


def make_coder(model: HVAE, stats: KLStats, mask: LatentMask, codec) -> LatentCoder:
    return LatentCoder(model, mask, codec, quantiser_steps(mask, codec, stats))


class Recording:
    """Remembers the z that another choice made, in order of groups."""

    def __init__(self, choose) -> None:
        self.choose, self.z = choose, []

    def __call__(self, group):
        assert group.index == len(self.z)
        self.z.append(self.choose(group))
        return self.z[-1]


@torch.no_grad()
def both_directions(coder: LatentCoder, images: torch.Tensor):
    """Stored numbers, and z of each group and the mean image, of the encoder and of the decoder."""
    model = coder.model
    choice = EncodeChooser(coder)
    encoder = Recording(choice)
    own = model.likelihood.mean(model.top_down(model.activations(images), encoder, len(images)))
    stored = choice.stored()
    decoder = Recording(DecodeChooser(coder, to_tensors(stored, model.device)))
    decoded = model.likelihood.mean(model.top_down(None, decoder, len(images)))
    return stored, encoder.z, own, decoder.z, decoded


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS[:2], ids=lambda codec: codec.name)
def test_the_decoder_has_the_encoders_z_in_every_group(model, images, stats, codec):
    for name, mask in (masks(model.config) | position_masks(model.config)).items():
        coder = make_coder(model, stats, mask, codec)
        stored, chosen, own, recomputed, decoded = both_directions(coder, images)
        assert len(chosen) == len(recomputed) == len(model.config.groups)
        for keep, ours, theirs in zip(mask.keep, chosen, recomputed, strict=True):
            assert torch.equal(ours[:, keep], theirs[:, keep]), name
            torch.testing.assert_close(theirs[:, ~keep], ours[:, ~keep], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(decoded, own, rtol=0, atol=1e-4)
        again, pixels, _ = encode_and_decode([coder], model.activations(images), images)[0]
        encoded = coder.encode(images)
        assert stored.keys() == again.keys() == encoded.keys() == set(coder.columns.resolutions)
        for resolution, numbers in encoded.items():
            assert numbers.dtype == codec.dtype
            assert numbers.shape == (len(images), *coder.columns.item(resolution))
            np.testing.assert_array_equal(numbers, stored[resolution])
            np.testing.assert_array_equal(numbers, again[resolution])
        assert torch.equal(pixels, coder.model.likelihood.to_pixels(own))


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_all_positions_are_all_variates(model, images, stats, codec):
    """The same latents in another order: decoded, the images are equal to the last bit."""
    variates = make_coder(model, stats, LatentMask.from_keep(stats, 1.0), codec)
    positions = make_coder(model, stats, LatentMask.from_keep(stats, 1.0, granularity="position"), codec)
    whole, single = variates.encode(images), positions.encode(images)
    for resolution, numbers in whole.items():
        np.testing.assert_array_equal(single[resolution], numbers.reshape(len(images), -1))
    assert torch.equal(positions.decode(single), variates.decode(whole))
    pixels = encode_and_decode([positions], model.activations(images), images)[0].pixels
    assert torch.equal(pixels, encode_and_decode([variates], model.activations(images), images)[0].pixels)


def test_the_models_of_these_tests_are_not_trivial(model, images, stats):
    coder = make_coder(model, stats, masks(model.config)["all"], IntCodec())
    stored, _, _, _, decoded = both_directions(coder, images)
    for numbers in stored.values():
        assert np.ptp(numbers.reshape(len(images), -1), axis=0).mean() > 0.3, "codes are the same in all images"
    assert (decoded - decoded[:1]).abs().flatten(1).amax(dim=1)[1:].min() > 0.05, "images are decoded to the same"


def test_decoding_does_not_depend_on_the_batch(model, images, stats):
    check_batches(make_coder(model, stats, masks(model.config)["every other"], IntCodec()), images)


@pytest.mark.slow
def test_decoding_does_not_depend_on_the_threads(rgb_model, cut_patches):
    images = torch.from_numpy(cut_patches(12))
    coder = make_coder(rgb_model, kl_stats(rgb_model, images), masks(RGB)["every other"], IntCodec())
    before = torch.get_num_threads()
    try:
        check_batches(coder, images, threads=2)
    finally:
        torch.set_num_threads(before)


def check_batches(coder: LatentCoder, images: torch.Tensor, threads: int | None = None) -> None:
    stored, _, own, _, _ = both_directions(coder, images)
    if threads is not None:
        torch.set_num_threads(threads)
    for size in (1, 3, 64):
        batches = [{r: s[i : i + size] for r, s in stored.items()} for i in range(0, len(images), size)]
        decoded = torch.cat([coder.decode(batch) for batch in batches])
        torch.testing.assert_close(decoded, own, rtol=0, atol=1e-4)
    order = [7, 2, 2, 11]
    some = coder.decode({r: s[order] for r, s in stored.items()})
    torch.testing.assert_close(some, own[order], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["all", "one variate", "late groups", "early groups", "every other"])
def test_the_encoder_computes_nothing_that_nobody_needs(model, images, stats, monkeypatch, name):
    mask = masks(model.config)[name]
    coder = make_coder(model, stats, mask, IntCodec())
    priors, posteriors = Counter(), Counter()
    prior, posterior = TopDownBlock.residual_and_prior, TopDownBlock.posterior_raw
    blocks = {id(block): index for index, block in enumerate(model.top_down.blocks)}

    def counted_prior(block, *arguments):
        priors[blocks[id(block)]] += 1
        return prior(block, *arguments)

    def counted_posterior(block, *arguments):
        posteriors[blocks[id(block)]] += 1
        return posterior(block, *arguments)

    monkeypatch.setattr(TopDownBlock, "residual_and_prior", counted_prior)
    monkeypatch.setattr(TopDownBlock, "posterior_raw", counted_posterior)
    stored = coder.encode(images)
    with_latents = [i for i, keep in enumerate(mask.keep) if keep.any()]
    assert posteriors == dict.fromkeys(with_latents, 1)
    # A group that is kept whole needs its prior only if its posterior is relative to it, and so does the last one.
    pruned = [i for i, keep in enumerate(mask.keep) if not keep.all()]
    relative = with_latents if model.config.residual_distribution else []
    assert priors == dict.fromkeys({*(i for i in pruned if i < with_latents[-1]), *relative}, 1)
    priors.clear()
    posteriors.clear()
    coder.decode(stored)
    assert not posteriors
    assert priors == dict.fromkeys(pruned, 1)


def test_errors_do_not_pile_up(rgb_model, cut_patches):
    """Open-loop coding, z rounded only after all groups were encoded, decodes to something else."""
    images = torch.from_numpy(cut_patches(12))
    stats = kl_stats(rgb_model, images)
    mask = masks(RGB)["all"]
    coder = make_coder(rgb_model, stats, mask, IntCodec(step=4.0))
    stored, _, own, _, decoded = both_directions(coder, images)
    unrounded = make_coder(rgb_model, stats, mask, FloatCodec("float32"))
    z, _, _, _, _ = both_directions(unrounded, images)
    open_loop = {r: coder.codec.encode(z[r], coder.steps[r][:, None, None]) for r in z}
    closed_error = (decoded - own).abs().max()
    open_error = (coder.decode(open_loop) - own).abs().max()
    assert closed_error < 1e-4
    assert open_error > 0.1
    assert any((open_loop[r] != stored[r]).any() for r in stored)


def test_columns_run_through_the_groups_of_a_resolution(rgb_model):
    columns = stored_columns(masks(RGB)["every other"])
    # Groups, top-down: 2 × 2 (5 variates), 8 × 8 (4), 8 × 8 (4), 16 × 16 (3).
    assert {r: columns.coordinates[r].tolist() for r in columns.resolutions} == {
        2: [[0, 0], [0, 2], [0, 4]],
        8: [[1, 1], [1, 3], [2, 0], [2, 2]],
        16: [[3, 1]],
    }
    assert [columns.item(r) for r in columns.resolutions] == [(3, 2, 2), (4, 8, 8), (1, 16, 16)]
    columns = stored_columns(position_masks(RGB)["one"])
    assert columns.resolutions == (16,)
    assert columns.coordinates[16].tolist() == [[3, 1, 3, 1]]


def test_steps_of_positions_are_those_of_their_variates(rgb_model, cut_patches):
    stats = kl_stats(rgb_model, cut_patches(12))
    codec, mask = IntCodec(2.0), position_masks(RGB)["scattered"]
    for resolution, steps in quantiser_steps(mask, codec, stats).items():
        places = stored_columns(mask).coordinates[resolution]
        std = [stats.posterior_std[group][variate] for group, variate, _, _ in places]
        np.testing.assert_array_equal(steps, (np.array(std) * 2.0).astype(np.float32))


@st.composite
def arbitrary_masks(draw) -> LatentMask:
    resolutions = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    planes = draw(st.booleans())
    shapes = [(draw(st.integers(1, 3)), *([r, r] if planes else [])) for r in resolutions]
    return LatentMask(tuple(draw(hypothesis.extra.numpy.arrays(bool, shape)) for shape in shapes), tuple(resolutions))


@given(arbitrary_masks())
def test_a_columns_place_is_where_the_mask_keeps(mask):
    columns = stored_columns(mask)
    kept = [np.zeros_like(keep) for keep in mask.keep]
    for resolution in columns.resolutions:
        places = columns.coordinates[resolution].tolist()
        assert places == sorted(places)
        for group, *place in places:
            assert mask.resolutions[group] == resolution
            kept[group][tuple(place)] = True
    assert all(np.array_equal(a, b) for a, b in zip(kept, mask.keep, strict=True))
    assert sum(math.prod(columns.item(r)) for r in columns.resolutions) == mask.kept_dims
    if columns.resolutions:
        parts = {"columns": columns.attributes(), "mask": mask.to_dict()}
        metadata = SimpleNamespace(**json.loads(json.dumps(parts)))
        assert read_columns(metadata, columns.tables().__getitem__).agree_with(columns)


@pytest.fixture(scope="module", params=["variate", "position"])
def written(request, rgb_model, cut_patches, tmp_path_factory):
    images = cut_patches(60)
    stats = kl_stats(rgb_model, images[:24])
    path = tmp_path_factory.mktemp("stores") / "out.zarr"
    mask = LatentMask.from_keep(stats, 0.3, granularity=request.param)
    return encode_images(rgb_model, images, path, mask=mask, stats=stats), torch.from_numpy(images)


def test_any_images_of_a_store_are_decoded(written, rgb_model):
    store, images = written
    coder = LatentCoder.of_store(store, rgb_model)
    own = encode_and_decode([coder], rgb_model.activations(images), images)[0].pixels
    everything = store.decode(range(60), rgb_model)
    assert everything.dtype == np.uint8
    assert np.abs(everything.astype(int) - own.numpy()).max() <= 1  # a value on the edge of rounding
    for chosen in ([17, 42], [42, 17], [5], [-1, 0], [3, 3, 3], range(59, 0, -7), np.array([8, 9, 10]), []):
        decoded = store.decode(chosen, rgb_model)
        assert decoded.shape == (len(chosen), 3, 16, 16)
        expected = everything[np.asarray(chosen, dtype=int)]
        assert np.abs(decoded.astype(int) - expected).max(initial=0) <= 1
    assert store.coder(rgb_model) is store.coder(rgb_model)
    with pytest.raises(UsageError, match="no image 60"):
        store.decode([60], rgb_model)


def test_dense_latents_are_the_decoders(written, rgb_model):
    store, _ = written
    coder = LatentCoder.of_store(store, rgb_model)
    expected = {}

    def choose(group):
        expected[group.index] = decoding(group)
        return expected[group.index]

    decoding = DecodeChooser(coder, to_tensors(store.stored(slice(3, 9)), rgb_model.device))
    rgb_model.top_down(None, choose, 6)
    dense = store.dense(slice(3, 9), rgb_model)
    assert len(dense) == len(expected)
    for index, z in enumerate(dense):
        assert z.dtype == np.float32
        np.testing.assert_allclose(z, expected[index], rtol=1e-5, atol=1e-5)
    for z, single in zip(dense, store.dense(5, rgb_model), strict=True):
        np.testing.assert_allclose(single, z[2], rtol=1e-5, atol=1e-5)
    latents = store.latents(slice(3, 9))
    for r, places in store.columns.coordinates.items():
        for column, (group, *place) in enumerate(places.tolist()):
            np.testing.assert_array_equal(dense[group][:, *place], latents[f"z{r}"][:, column])
    assert [z.shape[0] for z in store.dense(slice(5, 5), rgb_model)] == [0] * len(dense)


def test_another_model_does_not_decode(written, rgb_model):
    store, _ = written
    other = lively(RGB)
    with torch.no_grad():
        other.top_down.start.add_(1e-6)
    with pytest.raises(StoreError, match=r"was made with model .*--model"):
        store.decode([0], other)


def test_columns_that_are_not_the_masks_do_not_decode(written, rgb_model):
    store, _ = written
    resolution = store.resolutions[-1]
    moved = {**store.columns.coordinates, resolution: store.columns.coordinates[resolution].copy()}
    moved[resolution][0, 1] += 1
    damaged = dataclasses.replace(store, columns=type(store.columns)(moved))
    with pytest.raises(StoreError, match="not the latents of"):
        damaged.decode([0], rgb_model)


def test_masks_of_other_models_are_refused(rgb_model):
    other = dataclasses.replace(RGB, stages=SAME_RESOLUTION)
    mask = masks(RGB)["all"]
    for wrong in (masks(other)["all"], dataclasses.replace(mask, model_hash="0" * 64)):
        with pytest.raises(UsageError, match="made for another model"):
            LatentCoder(rgb_model, wrong, IntCodec(), {})
