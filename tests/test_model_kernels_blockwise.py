from __future__ import annotations

import pytest
import torch

from hvae_codec.config import ModelConfig, StageConfig
from hvae_codec.model.kernels import blockwise
from hvae_codec.model.likelihood import LogisticMixture


def test_blocks_cover_a_batch_once():
    cpu = torch.device("cpu")
    for images, elements in ((0, 10), (1, 1 << 20), (7, blockwise.BLOCK_ELEMENTS // 3), (64, 1)):
        covered = [i for part in blockwise.blocks(images, elements, cpu) for i in range(images)[part]]
        assert covered == list(range(images))
    assert len(list(blockwise.blocks(7, 1 << 20, torch.device("meta")))) == 1


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bins", ["exact", "published"])
def test_a_likelihood_in_blocks_is_that_in_one_piece(channels, bins, monkeypatch: pytest.MonkeyPatch):
    stages = (StageConfig(4, 4, 2),)
    likelihood = LogisticMixture(ModelConfig(4, stages, channels=channels, mixtures=3, bins=bins))
    images = torch.randint(0, 256, (5, channels, 4, 4), dtype=torch.uint8)
    images[0, :, 0] = torch.tensor([0, 255, 0, 255], dtype=torch.uint8)
    # Published bins subtract nearly equal numbers, so float32 depends on how they are vectorised.
    output = torch.randn(5, likelihood.out_channels, 4, 4, dtype=torch.float64)
    output = output.to(memory_format=torch.channels_last).requires_grad_()
    whole = likelihood.numbers(likelihood.split(output), images)
    (expected,) = torch.autograd.grad((whole * torch.arange(5.0)).sum(), output)
    monkeypatch.setattr(blockwise, "BLOCK_ELEMENTS", 2 * 3 * channels * 16)  # two images a block, and one left over
    nll = likelihood.nll(output, images)
    (gradient,) = torch.autograd.grad((nll * torch.arange(5.0)).sum(), output)
    torch.testing.assert_close(nll, whole)
    torch.testing.assert_close(gradient, expected)
    with torch.no_grad():
        torch.testing.assert_close(likelihood.nll(output, images), whole)


def test_split_and_join_are_inverse():
    likelihood = LogisticMixture(ModelConfig(4, (StageConfig(4, 4, 2),), channels=4, mixtures=3))
    output = torch.randn(2, likelihood.out_channels, 4, 4).to(memory_format=torch.channels_last)
    again = torch.full_like(output, torch.nan)
    likelihood.join(likelihood.split(output), again)
    assert torch.equal(again, output)


def test_an_empty_batch_has_no_numbers():
    likelihood = LogisticMixture(ModelConfig(4, (StageConfig(4, 4, 2),), mixtures=3))
    output = torch.randn(0, likelihood.out_channels, 4, 4, requires_grad=True)
    assert likelihood.nll(output, torch.zeros(0, 3, 4, 4, dtype=torch.uint8)).shape == (0,)


def test_a_bfloat16_output_does_not_round_the_weight_of_its_gradient():
    """1 / (batch · dims) rounded to bfloat16 made the likelihood's gradient 0.2% too large beside the KL's."""
    likelihood = LogisticMixture(ModelConfig(4, (StageConfig(4, 4, 2),), mixtures=3))
    images = torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8)
    output = torch.randn(3, likelihood.out_channels, 4, 4).bfloat16().requires_grad_()
    gradients = [torch.autograd.grad(likelihood.nll(output, images).sum() * w, output)[0] for w in (1.0, 1 / 3072)]
    ratio = gradients[1].float().norm() / gradients[0].float().norm()
    assert ratio.item() == pytest.approx(1 / 3072, rel=5e-4)
