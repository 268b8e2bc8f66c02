"""Many masks through one loop: what is shared is computed once, and what comes out is each mask's own."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvae_codec.model.choices import SampledPosterior, kept_of
from hvae_codec.model.keyed_noise import keyed_noise
from hvae_codec.model.top_down import TopDownBlock
from hvae_codec.prune.mask import LatentMask
from hvae_codec.prune.shared_prefix import masked_outputs


def choices(model, masks, images: int) -> list[SampledPosterior]:
    noise = keyed_noise(model.config, [(0, image) for image in range(images)], "cpu")
    return [SampledPosterior(noise, kept_of(mask.tensors("cpu"), "cpu")) for mask in masks]


def random_mask(model, prefix: list[int], seed: int) -> LatentMask:
    """Groups pruned in one of few ways each, so that masks often begin alike."""
    generator = np.random.default_rng(seed)
    groups = model.config.groups
    keep = [np.arange(g.variates) % 2 == p for g, p in zip(groups, prefix, strict=False)]
    keep += [generator.random(g.variates) < 0.5 for g in groups[len(prefix) :]]
    return LatentMask(tuple(keep), tuple(g.resolution for g in groups))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 1), max_size=3), st.integers(0, 3)), min_size=1, max_size=6))
@torch.no_grad()
def test_each_mask_has_its_own_output_and_kl(tiny_model, photo_patches, masks_of):
    masks = [random_mask(tiny_model, prefix, seed) for prefix, seed in masks_of]
    activations = tiny_model.activations(torch.from_numpy(photo_patches[:2]))
    together, alone = choices(tiny_model, masks, 2), choices(tiny_model, masks, 2)
    for number, output in enumerate(masked_outputs(tiny_model, activations, masks, together)):
        expected = tiny_model.top_down(activations, alone[number], 2)
        assert torch.equal(output, expected)
        assert torch.equal(together[number].kl, alone[number].kl)


@torch.no_grad()
def test_groups_pruned_alike_run_once(tiny_model, photo_patches, monkeypatch):
    groups = len(tiny_model.config.groups)
    everything = [np.ones(g.variates, bool) for g in tiny_model.config.groups]
    resolutions = tuple(g.resolution for g in tiny_model.config.groups)
    last = [*everything[:-1], np.zeros_like(everything[-1])]
    masks = [LatentMask(tuple(keep), resolutions) for keep in (last, everything, everything)]
    ran: list[int] = []
    forward = TopDownBlock.forward

    def watched(self, state, skip, index, *others):
        ran.append(index)
        return forward(self, state, skip, index, *others)

    monkeypatch.setattr(TopDownBlock, "forward", watched)
    activations = tiny_model.activations(torch.from_numpy(photo_patches[:2]))
    list(masked_outputs(tiny_model, activations, masks, choices(tiny_model, masks, 2)))
    assert ran == [*range(groups), groups - 1]
