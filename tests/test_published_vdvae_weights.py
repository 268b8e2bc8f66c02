"""Published tensors come in under this project's names; each that does not fit is named."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hvae_codec.errors import ModelError
from hvae_codec.model.choices import posterior_mean
from hvae_codec.model.hvae import HVAE
from hvae_codec.presets import load_preset
from hvae_codec.published.vdvae_config import config_of
from hvae_codec.published.vdvae_hparams import VdvaeHparams
from hvae_codec.published.vdvae_weights import convert
from vdvae_cases import Case

CASE = Case("lowbit_small")


def test_every_published_tensor_has_its_place():
    weights, published = convert(CASE.published(), CASE.config()), CASE.published()
    assert len(weights) == len(published)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    last = "prior_cell.convs.3"
    own, theirs = weights[f"top_down.blocks.2.{last}.bias"], published["decoder.dec_blocks.2.prior.c4.bias"]
    assert torch.equal(own[:36], theirs[10:])  # the residual term
    assert torch.equal(own[36:], theirs[:10])  # mean, log standard deviation
    assert torch.equal(weights["top_down.blocks.1.unpool.bias"], published["decoder.bias_xs.1"])  # of resolution 2
    assert sum(name.endswith("unpool.bias") for name in weights) == 1  # higher ones have none


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("decoder.gain", None, r"no tensor decoder\.gain"),
        ("encoder.enc_blocks.3.c2.bias", lambda t: t[:-1], r"encoder\.enc_blocks\.3\.c2\.bias is \[9\].* \[10\]"),
        ("decoder.out_net.extra", lambda t: torch.zeros(1), r"a tensor decoder\.out_net\.extra .* no place"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(name, change, message):
    state = CASE.published()
    if change is None:
        del state[name]
    else:
        state[name] = change(state.get(name))
    with pytest.raises(ModelError, match=message):
        convert(state, CASE.config())


def test_a_configuration_of_another_family_is_refused():
    with pytest.raises(ModelError, match="not that of a published VDVAE"):
        convert(CASE.published(), load_preset("tiny32"))


def test_blocks_that_nothing_reads_are_checked_and_left_out():
    """`2d2` leads to resolution 1, and without a top-down block there nothing reads what it computes."""
    config = CASE.config(dec_blocks="2,2,8m2,8x1,16m8")
    whole = CASE.published()
    state = {name: tensor for name, tensor in whole.items() if not name.startswith("decoder.dec_blocks.0.")}
    state = {_one_block_fewer(name): tensor for name, tensor in state.items() if name != "decoder.bias_xs.0"}
    weights = convert(state, config)
    assert set(weights) == set(HVAE(config.model).state_dict())
    assert len(state) - len(weights) == 8  # two weights and two biases more than a cell's four convolutions have
    state["encoder.enc_blocks.6.c1.weight"] = torch.zeros(3)
    with pytest.raises(ModelError, match=r"enc_blocks\.6\.c1\.weight is \[3\]"):
        convert(state, config)


def _one_block_fewer(name: str) -> str:
    for number in range(1, 6):
        name = name.replace(f"dec_blocks.{number}.", f"dec_blocks.{number - 1}.")
    return name.replace("bias_xs.1", "bias_xs.0")


# --- networks that no fixture has, against the published program's rules written down plainly


def block(state: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    for layer in ("c1", "c2", "c3", "c4"):
        weight = state[f"{name}.{layer}.weight"]
        x = F.conv2d(F.gelu(x), weight, state[f"{name}.{layer}.bias"], padding=weight.shape[-1] // 2)
    return x


def published_output(state, enc, dec, widths, variates: int, x: torch.Tensor) -> torch.Tensor:
    """The output's parameters with z at the posterior's mean; blocks are (resolution, operand or None)."""
    x = F.conv2d(x, state["encoder.in_conv.weight"], state["encoder.in_conv.bias"], padding=1)
    activations = {x.shape[-1]: x}
    for i, (_, stride) in enumerate(enc):
        x = x + block(state, f"encoder.enc_blocks.{i}", x)
        x = F.avg_pool2d(x, stride) if stride else x
        x = F.pad(x, (0, 0, 0, 0, 0, widths[x.shape[-1]] - x.shape[1]))
        activations[x.shape[-1]] = x
    starts = (state[name] for name in sorted(state) if "bias_xs" in name)
    states = {start.shape[-1]: start.expand(len(x), -1, -1, -1) for start in starts}
    for i, (resolution, lower) in enumerate(dec):
        x = states.get(resolution, torch.zeros(len(x), widths[resolution], resolution, resolution))
        if lower:
            repeated = states[lower].repeat_interleave(resolution // lower, 2).repeat_interleave(resolution // lower, 3)
            x = x + repeated[:, : widths[resolution]]
        name = f"decoder.dec_blocks.{i}"
        z = block(state, f"{name}.enc", torch.cat([x, activations[resolution]], dim=1))[:, :variates]
        x = x + block(state, f"{name}.prior", x)[:, 2 * variates :]
        x = x + F.conv2d(z, state[f"{name}.z_proj.weight"], state[f"{name}.z_proj.bias"])
        states[resolution] = x + block(state, f"{name}.resnet", x)
    x = states[max(states)] * state["decoder.gain"] + state["decoder.bias"]
    return F.conv2d(x, state["decoder.out_net.out_conv.weight"], state["decoder.out_net.out_conv.bias"])


@torch.no_grad()
@pytest.mark.parametrize(
    ("enc", "dec", "largest_start"),
    [
        ([(8, 2), (4, None), (4, 2), (2, None)], [(2, None), (8, 2), (8, None)], 2),  # 4 only on the way down
        ([(8, None), (8, 2), (4, None), (4, 2)], [(4, None), (4, None), (8, 4)], 8),  # 2 leads nowhere
        ([(8, 2), (4, 4)], [(1, None), (8, 1)], 1),  # every block pools
        ([(8, None), (8, 1), (8, 8), (1, None)], [(8, None)], 8),  # pooling by 1; one resolution has latents
    ],
)
def test_networks_that_pass_a_resolution_by_compute_what_the_strings_say(enc, dec, largest_start):
    widths = {8: 6, 4: 8, 2: 10, 1: 10}
    hparams = VdvaeHparams(
        width=6,
        custom_width_str="4:8,2:10,1:10",
        zdim=3,
        bottleneck_multiple=0.5,
        num_mixtures=1,
        no_bias_above=largest_start,
        enc_blocks=",".join(f"{r}d{k}" if k else f"{r}" for r, k in enc),
        dec_blocks=",".join(f"{r}m{k}" if k else f"{r}" for r, k in dec),
    )
    config = config_of(hparams)
    state = random_state(enc, dec, widths, hparams)
    model = HVAE(config.model)
    model.load_state_dict(convert(state, config))
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    found = model.top_down(model.activations(images), posterior_mean(), 2)
    expected = published_output(state, enc, dec, widths, 3, model.likelihood.to_input(images))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def random_state(enc, dec, widths, hparams: VdvaeHparams) -> dict[str, torch.Tensor]:
    state = {"encoder.in_conv": (6, 3, 3), "decoder.out_net.out_conv": (10, 6, 1)}
    for i, (resolution, _) in enumerate(enc):
        state |= block_shapes(f"encoder.enc_blocks.{i}", resolution, widths[resolution], 0)
    for i, (resolution, _) in enumerate(dec):
        name, width = f"decoder.dec_blocks.{i}", widths[resolution]
        state |= block_shapes(f"{name}.enc", resolution, width, 0, 2 * width, 6)
        state |= block_shapes(f"{name}.prior", resolution, width, 6)
        state |= block_shapes(f"{name}.resnet", resolution, width, 0)
        state[f"{name}.z_proj"] = (width, 3, 1)
    tensors = {f"{name}.weight": torch.randn(o, i, k, k) / (k * i**0.5) for name, (o, i, k) in state.items()}
    tensors |= {f"{name}.bias": 0.1 * torch.randn(shape[0]) for name, shape in state.items()}
    starts = sorted({resolution for resolution, _ in dec if resolution <= hparams.no_bias_above})
    tensors |= {f"decoder.bias_xs.{j}": torch.randn(1, widths[r], r, r) for j, r in enumerate(starts)}
    return tensors | {"decoder.gain": torch.randn(1, 6, 1, 1), "decoder.bias": torch.randn(1, 6, 1, 1)}


def block_shapes(name: str, resolution: int, width: int, more: int, inputs: int = 0, outputs: int = 0):
    """Outputs, inputs and kernel of a block's convolutions."""
    middle, kernel = width // 2, 3 if resolution > 2 else 1
    inner = (middle, middle, kernel)
    return {
        f"{name}.c1": (middle, inputs or width, 1),
        f"{name}.c2": inner,
        f"{name}.c3": inner,
        f"{name}.c4": (outputs or width + more, middle, 1),
    }
