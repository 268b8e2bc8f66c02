"""The strings of published VDVAEs make stages, and those that make none are refused by the entry that is wrong."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hvae_codec.config import StageConfig
from hvae_codec.errors import ConfigError
from hvae_codec.model.hvae import HVAE
from hvae_codec.published.vdvae_config import config_of
from hvae_codec.published.vdvae_hparams import VdvaeHparams

SMALL = VdvaeHparams(width=8, zdim=2, enc_blocks="16x2,16d2,8,8d4,2x3", dec_blocks="2,8m2,8x2,16m8", no_bias_above=8)


def stages_of(enc_blocks: str, dec_blocks: str, **changes: object) -> tuple[StageConfig, ...]:
    return config_of(dataclasses.replace(SMALL, enc_blocks=enc_blocks, dec_blocks=dec_blocks, **changes)).model.stages


def test_stages_have_the_blocks_of_both_strings():
    common = {"width": 8, "variates": 2}
    assert config_of(SMALL).model.stages == (
        StageConfig(16, **common, extra_bottom_up=2),  # its pooling block is the linked one
        StageConfig(8, **common, extra_bottom_up=1, extra_top_down=2),
        StageConfig(
            2, **common, kernel=1, extra_bottom_up=3
        ),  # nothing pools, so nothing of the linked one is computed
    )


def test_a_pooling_block_may_be_the_first_and_the_last():
    top, low, lowest = stages_of("16d2,8d8", "1,8m1,16m8", no_bias_above=1)
    assert (top.extra_bottom_up, low.extra_bottom_up, lowest.extra_bottom_up) == (0, 0, 0)
    assert (top.kernel, lowest.kernel) == (3, 1)


def test_a_resolution_may_have_no_top_down_block():
    top, passed, low = stages_of("16,16d2,8,8d2,4x2", "4x2,16m4")
    assert (passed.linked_blocks, passed.extra_bottom_up, passed.latent_groups) == (0, 2, 0)
    assert (top.latent_groups, low.latent_groups) == (1, 2)
    *_, unread = stages_of("16,16d2,8x3", "16", no_bias_above=16)
    assert (unread.linked_blocks, unread.extra_bottom_up) == (0, 3)


def test_widths_and_middles():
    stages = stages_of("16,16d2,8,8d2,4", "4,8m4,16m8", width=30, custom_width_str="4:46,2:7", bottleneck_multiple=0.3)
    assert [stage.width for stage in stages] == [30, 30, 46]
    with torch.device("meta"):
        model = HVAE(config_of(dataclasses.replace(SMALL, width=46, bottleneck_multiple=0.3)).model)
    assert {block.prior_cell.convs[0].out_channels for block in model.top_down.blocks} == {13}  # 13.8 is cut off


def test_training_is_as_published():
    given = {"lr": 0.0003, "wd": 0.02, "warmup_iters": 50.0, "grad_clip": 7.0, "skip_threshold": -1.0, "n_batch": 4}
    config = config_of(dataclasses.replace(SMALL, ema_rate=0.99, **given), gpus=3)
    optimizer, train = config.optimizer, config.train
    assert (optimizer.name, optimizer.learning_rate, optimizer.weight_decay) == ("adamw", 0.0003, 0.02)
    assert (optimizer.warmup_steps, optimizer.clip_norm, optimizer.skip_threshold) == (50.0, 7.0, None)
    assert (train.batch_size, train.ema_decay, train.horizontal_flip) == (12, 0.99, False)
    assert config_of(dataclasses.replace(SMALL, skip_threshold=300.0)).optimizer.skip_threshold == 300.0


def test_bins_of_five_bits_are_exact_if_wanted():
    low = dataclasses.replace(SMALL, dataset="ffhq_256")
    exact, published = (config_of(low, exact_bins=wanted).model for wanted in (True, False))
    assert (exact.bins, exact.bits, exact.input_bits) == ("exact", 5, 8)
    assert (published.bins, published.open_highest_bin) == ("published", False)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"enc_blocks": ""}, ["enc_blocks", "''", "8x2"]),
        ({"enc_blocks": "16x2, 16d2"}, ["enc_blocks", "' 16d2'"]),
        ({"enc_blocks": "16m2"}, ["enc_blocks", "'16m2'", "8d4"]),
        ({"dec_blocks": "2,8d2"}, ["dec_blocks", "'8d2'", "8m4"]),
        ({"enc_blocks": "16x0"}, ["'16x0'", "1 to"]),
        ({"enc_blocks": "0x1"}, ["'0x1'", "1 to"]),
        ({"enc_blocks": "16x999999999"}, ["'16x999999999'", "1,000 blocks"]),
        ({"enc_blocks": ",".join(["16d1"] * 1001)}, ["'16d1'", "1,000 blocks"]),
        ({"enc_blocks": "16x2,8x2"}, ["'8x2'", "resolution 16"]),
        ({"enc_blocks": "16d3"}, ["'16d3'", "divide"]),
        ({"dec_blocks": "2,4m2,16m4"}, ["'4m2'", "enc_blocks does not reach", "16, 8, 2"]),
        ({"dec_blocks": "2,8m2"}, ["ends at resolution 8", "16"]),
        ({"dec_blocks": "2m1,8m2,16m8"}, ["'2m1'", "first", "give 2"]),
        ({"dec_blocks": "2,8,16m8"}, ["'8'", "8m2"]),
        ({"dec_blocks": "2,8m2,16m2"}, ["'16m2'", "16m8"]),
        ({"dec_blocks": "2,8m2,8m2,16m8"}, ["'8m2'", "not the first"]),
        ({"dec_blocks": "8,2m8,16m2"}, ["'2m8'", "back to a lower resolution"]),
        ({"no_bias_above": 1}, ["no_bias_above is 1", "lowest resolution, 2"]),
        ({"custom_width_str": "8:x"}, ["custom_width_str", "'8:x'", "64:512"]),
        ({"custom_width_str": "16:4"}, ["4 at the image's resolution", "8"]),
        ({"custom_width_str": "8:4"}, ["at resolution 16 is 8, at 8 4"]),
        ({"dataset": "celeba"}, ["'celeba'", "imagenet64"]),
        ({"num_mixtures": 0}, ["mixtures is 0"]),
        ({"zdim": 0}, ["variates is 0"]),
        ({"bottleneck_multiple": 0.01}, ["bottleneck"]),
        ({"lr": float("nan")}, ["learning_rate is nan"]),
        ({"skip_threshold": 0.0}, ["skip_threshold is 0"]),
    ],
)
def test_what_makes_no_network_is_named(changes, parts):
    with pytest.raises(ConfigError) as caught:
        config_of(dataclasses.replace(SMALL, **changes))
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message
