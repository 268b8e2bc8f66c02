"""How many kernels a GPU would launch for a training step, so that nobody adds them back unseen."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from hvae_codec.config import Config
from hvae_codec.presets import load_preset

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # its files import each other as scripts do

from kernel_count import KernelCount, count_step


def test_operations_are_counted_as_a_gpu_does_them():
    with torch.device("meta"):
        x, weight, bias = torch.empty(2, 3, 4, 4), torch.empty(5, 3, 1, 1), torch.empty(5)
    weight.requires_grad_()
    with KernelCount() as count:
        y = F.conv2d(x, weight, bias)  # and its bias
        count.begin("views")
        y.view(2, -1).t()
        count.begin("pointwise")
        z = y * 2 + 1
        count.begin("backward")
        z.sum().backward()
        count.begin("many at once")
        torch._foreach_copy_([torch.empty(3, device="meta") for _ in range(65)], [x.flatten()[:3]] * 65)
        count.begin("on a CPU")
        torch.ones(3) + 1
    assert {phase: counts.total() for phase, counts in count.phases.items()} == {
        "forward": 2,
        "views": 0,
        "pointwise": 2,
        "backward": 4,  # of the sum a tensor of ones, the sum, the product, the weight: neither input nor bias
        "many at once": 2,
        "on a CPU": 0,
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_of_a_published_model_takes_few_kernels(precision: str):
    """12,245 in float32 and 17,299 in bfloat16 before gradients, heads and weights went in one piece."""
    config = load_preset("cifar10_C1")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision=precision))
    assert 5_000 < count_step(config, batch=2).total <= 7_500


@pytest.mark.parametrize("codes", [False, True])
def test_a_group_adds_few_kernels_besides_its_convolutions(tiny_config: Config, codes: bool):
    """In a model whose z are samples or codes; a hundred, or three hundred, if nothing were compiled."""
    counts = []
    for groups in (1, 3):
        stage = dataclasses.replace(tiny_config.model.stages[-1], linked_blocks=groups)
        stages = (*tiny_config.model.stages[:-1], stage)
        model = dataclasses.replace(tiny_config.model, stages=stages, learned_steps=codes)
        count = count_step(dataclasses.replace(tiny_config, model=model), batch=2)
        of_layers = ("convolution", "convolution_backward", "silu", "silu_", "silu_backward")
        counts.append(sum(k for names in count.phases.values() for name, k in names.items() if name not in of_layers))
    assert (counts[1] - counts[0]) / 2 < 40
