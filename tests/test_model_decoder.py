"""A decoder computes what its model does with pruned variates at the prior's mean, and has no weight beyond that."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from hvae_codec.config import ModelConfig, StageConfig
from hvae_codec.errors import ModelError
from hvae_codec.model.checkpoint import model_hash
from hvae_codec.model.decoder import decoder_hash, decoder_of, load_decoder
from hvae_codec.model.folding import folded_residual
from hvae_codec.model.hvae import HVAE

STAGES = (
    StageConfig(8, width=8, variates=3, bottleneck=0.5),
    StageConfig(4, width=8, variates=4, bottleneck=0.5, linked_blocks=2, extra_top_down=1, extra_top_down_after=1),
    StageConfig(4, width=8, variates=2, bottleneck=0.5),
    StageConfig(1, width=8, variates=5, bottleneck=0.5),
)
"""6 latent groups; two stages of one resolution."""
KEEP = [np.array(group, bool) for group in ([1, 0, 1, 1, 0], [0, 0], [0, 0, 1, 0], [1] * 4, [0] * 4, [0, 1, 0])]


def make_model(**changes) -> HVAE:
    model = HVAE(ModelConfig(8, STAGES, mixtures=2, middle_layers=1, **changes)).eval().requires_grad_(False)
    for parameter in model.parameters():  # biases start at zero, which would hide that one is lost
        parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def outputs(model: HVAE, keep, batch=3):
    """Of the model and of its decoder, from the same z of the kept variates."""
    shapes = zip(keep, model.config.groups, strict=True)
    z = {
        i: torch.randn(batch, int(kept.sum()), group.resolution, group.resolution)
        for i, (kept, group) in enumerate(shapes)
        if kept.any()
    }

    def choose(group):
        mean = group.prior_mean
        if group.index in z:
            mean[:, torch.from_numpy(keep[group.index])] = z[group.index]
        return mean

    return model.top_down(None, choose, batch), decoder_of(model, keep)(z, batch)


def check_equal(model: HVAE, keep) -> None:
    whole, decoded = outputs(model, keep)
    assert (decoded - whole).abs().max() < 1e-5 * whole.abs().max()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resample": "plain"},
        {"pointwise_ends": False, "output_kernel": 3},
        {"residual_distribution": True, "posterior_scale": "logstd"},
        {"output": "bernoulli", "channels": 1, "cells_per_block": 2},
        {"resample": "plain", "activation": "gelu", "heads": "direct", "largest_start": 1, "output_gain": True},
    ],
)
def test_it_computes_what_the_model_does(changes):
    check_equal(make_model(**changes), KEEP)


def test_everything_or_one_variate_kept():
    model = make_model()
    check_equal(model, [np.ones_like(kept) for kept in KEEP])
    check_equal(model, [np.zeros_like(kept) for kept in KEEP[:-1]] + [KEEP[-1]])


def test_it_has_no_weight_that_decoding_does_not_need():
    model = make_model()
    names = decoder_of(model, KEEP).state_dict()
    assert {name.split(".")[2] for name in names if name.startswith("blocks.")} == {
        "unpool",
        "residual_cell",
        "z_conv",
        "cells",
    }
    kept = {int(name.split(".")[1]): names[name].shape[1] for name in names if name.endswith("z_conv.weight")}
    assert kept == {0: 3, 2: 1, 3: 4, 5: 1}
    top_down = sum(parameter.numel() for parameter in model.top_down.parameters())
    assert sum(parameter.numel() for parameter in names.values()) < 0.7 * top_down


def test_a_group_that_is_kept_has_the_residual_half_as_it_is():
    block = make_model().top_down.blocks[3]
    weight, bias = folded_residual(block, torch.ones(4, dtype=torch.bool))
    last = block.prior_cell.convs[-1]
    torch.testing.assert_close(weight, last.weight[:8], rtol=0, atol=0)
    torch.testing.assert_close(bias, last.bias[:8], rtol=0, atol=0)


def test_its_hash_is_of_its_weights_and_of_what_is_kept():
    model = make_model()
    decoder = decoder_of(model, KEEP)
    first = decoder_hash(decoder)
    assert first == decoder_hash(decoder_of(model, KEEP)) != model_hash(model)
    fewer = [*KEEP[:-1], np.array([0, 0, 0], bool)]
    assert decoder_hash(decoder_of(model, fewer)) != first
    before = model_hash(model)
    decoder.output_conv.bias.data = decoder.output_conv.bias + 1
    assert decoder_hash(decoder) != first
    assert model_hash(model) == before


def test_weights_of_another_configuration_are_named():
    decoder = decoder_of(make_model(), KEEP)
    config = dataclasses.replace(decoder.config, mixtures=3)
    with pytest.raises(ModelError, match=r"here: the tensor output_conv\.\w+ is .*, its configuration says"):
        load_decoder(config, [int(kept.sum()) for kept in KEEP], decoder.state_dict(), "here")
    with pytest.raises(ModelError, match=r"tensor blocks\.\d\.z_conv"):
        load_decoder(decoder.config, [1] * 6, decoder.state_dict(), "here")
