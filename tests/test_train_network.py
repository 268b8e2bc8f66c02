"""What training may be told of how to compute gives the same numbers, as far as they can be the same."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hvae_codec.config import ModelConfig, StageConfig, TrainConfig
from hvae_codec.cpu import tuned_for_training
from hvae_codec.model.activations import checkpointing
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.kernels import activated_conv
from hvae_codec.model.keyed_noise import keyed_noise
from hvae_codec.model.precision import resolve_precision
from hvae_codec.train.update import make_network


def gradients(tiny_config, photo_patches, prepare=None, **options) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss, and the gradient of each parameter."""
    torch.manual_seed(1)
    model = HVAE(tiny_config.model).to(memory_format=torch.channels_last)
    if prepare is not None:
        prepare(model)
    network = make_network(model, dataclasses.replace(TrainConfig(precision="fp32"), **options))
    images = torch.from_numpy(photo_patches[:6])
    terms = network(images, keyed_noise(tiny_config.model, [(0, 1, i) for i in range(6)], "cpu"))
    loss = (terms.nll + terms.kl.sum(dim=0)).mean()
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


@pytest.fixture(scope="module")
def expected(tiny_config, photo_patches):
    return gradients(tiny_config, photo_patches)


@pytest.mark.slow
def test_checkpointed_activations_change_nothing(tiny_config, photo_patches, expected):
    loss, found = gradients(tiny_config, photo_patches, checkpoint_activations=True)
    assert torch.equal(loss, expected[0])
    for ours, other in zip(found, expected[1], strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-6, atol=1e-7)


def test_checkpointed_activations_are_not_kept(tiny_config, photo_patches):
    kept = []
    for options in ({}, {"checkpoint_activations": True}):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):  # noqa: B023
            torch.manual_seed(1)
            model = HVAE(tiny_config.model)
            network = make_network(model, dataclasses.replace(TrainConfig(precision="fp32"), **options))
            network(
                torch.from_numpy(photo_patches[:6]),
                keyed_noise(tiny_config.model, [(0, 1, i) for i in range(6)], "cpu"),
            )
        kept.append(sum(sizes))
    assert kept[1] < 0.7 * kept[0]


def test_small_blocks_keep_what_is_inside(tiny_config):
    """Those at 2 × 2 pixels hold little memory, and to run them again takes time."""
    run = checkpointing(tiny_config.model)
    ran = []

    def block_of(size: int) -> torch.nn.Module:
        block = torch.nn.Linear(2, 2)
        block.state_size = size
        block.register_forward_pre_hook(lambda *_: ran.append(size))
        return block

    largest = 8 * 16**2
    for size in (largest, largest // 4):
        run(block_of(size), torch.ones(1, 2, requires_grad=True)).square().sum().backward()
    assert ran == [largest, largest, largest // 4]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler looks at it
def test_compiled_parts_compute_the_same(tiny_config, photo_patches):
    """With the compiler's front end alone: its back end needs a C++ compiler, and minutes."""
    model = dataclasses.replace(tiny_config.model, stages=tiny_config.model.stages[:2])
    config = dataclasses.replace(tiny_config, model=model)
    expected = gradients(config, photo_patches)
    torch._dynamo.reset()
    loss, found = gradients(config, photo_patches, lambda model: model.compile_parts("aot_eager"))
    torch._dynamo.reset()
    torch.testing.assert_close(loss, expected[0], rtol=1e-5, atol=0)
    for ours, other in zip(found, expected[1], strict=True):
        assert (ours - other).abs().max() <= 1e-4 * other.abs().max()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_every_part_is_compiled_however_many_shapes_there_are(monkeypatch: pytest.MonkeyPatch):
    """More shapes than the compiler allows for by itself (8) left most blocks of the larger presets as they were."""
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 2)
    torch._dynamo.reset()
    stages = tuple(StageConfig(resolution, 4, 2, bottleneck=0.5) for resolution in (16, 8, 4, 2))
    model = HVAE(ModelConfig(16, stages, mixtures=1, middle_layers=0))
    plain = []
    monkeypatch.setattr(activated_conv._ActivatedConv, "apply", lambda *_: plain.append(1))
    model.compile_parts("eager")
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    model(images, keyed_noise(model.config, [(0, 1, 0)], "cpu"))
    torch._dynamo.reset()
    assert not plain


def test_bfloat16_is_near(tiny_config, photo_patches, expected):
    loss, found = gradients(tiny_config, photo_patches, precision="bf16")
    torch.testing.assert_close(loss, expected[0], rtol=0.02, atol=0)
    assert {g.dtype for g in found} == {torch.float32}
    ours, other = (torch.cat([g.flatten() for g in all_]) for all_ in (found, expected[1]))
    assert torch.cosine_similarity(ours, other, dim=0) > 0.98


def test_precision_is_what_was_asked_for_or_what_the_processor_has(monkeypatch: pytest.MonkeyPatch):
    assert resolve_precision("fp32", "cpu") == "fp32"
    assert resolve_precision("bf16", "cpu") == "bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert resolve_precision("auto", "cpu") == "bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False)
    assert resolve_precision("auto", "cpu") == "fp32"
    assert resolve_precision("auto", "cuda") == "fp32"
    assert resolve_precision("bf16", "cuda:1") == "bf16"
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # an older torch, which cannot tell
    assert resolve_precision("auto", "cpu") == "fp32"


def test_tuning_ends_with_its_context():
    tiny = torch.tensor(1e-39)
    with tuned_for_training():
        assert tiny * 0.5 == 0
    assert tiny * 0.5 != 0
