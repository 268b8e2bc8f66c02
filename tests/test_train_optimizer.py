from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from hvae_codec.config import OptimizerConfig
from hvae_codec.errors import ModelError
from hvae_codec.model.blocks import OutputConv
from hvae_codec.train.optimizer import FlatOptimizer
from hvae_codec.train.skipping_adamax import SkippingAdamax

DECAY = 0.75


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 2, 1)).to(memory_format=torch.channels_last)


def optimizer_config(name: str, **options) -> OptimizerConfig:
    return OptimizerConfig(name=name, skip_threshold=options.pop("skip_threshold", 1e3), **options)


def set_gradients(optimizer: FlatOptimizer, step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(step)
    for part in optimizer.named(optimizer.gradients).values():
        part.normal_(generator=generator).mul_(scale)


def library_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adamax": torch.optim.Adamax}
    decay = {"weight_decay": config.weight_decay} if config.name == "adamw" else {}
    return kinds[config.name](model.parameters(), betas=(config.beta1, config.beta2), eps=config.epsilon, **decay)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "decay"), [("adamax", 0.0), ("adam", 0.0), ("adamw", 0.3)])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_updates_are_the_librarys(name, decay, clip_norm):
    config = optimizer_config(name, clip_norm=clip_norm, weight_decay=decay)
    ours, theirs = network(), network()
    optimizer, library = FlatOptimizer(ours, config, DECAY), library_optimizer(theirs, config)
    average = [p.detach().clone() for p in theirs.parameters()]
    for step, rate in enumerate((0.1, 0.2, 0.05)):
        optimizer.zero_grad()
        set_gradients(optimizer, step)
        for own, other in zip(optimizer.named(optimizer.gradients).values(), theirs.parameters(), strict=True):
            other.grad = own.clone()
        expected = nn.utils.get_total_norm([p.grad for p in theirs.parameters()])
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(theirs.parameters(), clip_norm)
        library.param_groups[0]["lr"] = rate
        library.step()
        for mean, p in zip(average, theirs.parameters(), strict=True):
            mean.lerp_(p.detach(), 1 - DECAY)
        norm, skipped = optimizer.step(rate)
        torch.testing.assert_close(norm, expected)
        assert not skipped
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own, other)
    for own, other in zip(optimizer.named(optimizer.ema).values(), average, strict=True):
        torch.testing.assert_close(own, other)


def of_a_gpu(config: OptimizerConfig, monkeypatch: pytest.MonkeyPatch) -> FlatOptimizer:
    """One that computes on a CPU as it would on a GPU."""
    made = FlatOptimizer(network(), config, DECAY)
    if config.name == "adamax":
        made._inner = SkippingAdamax([made.weights], betas=(config.beta1, config.beta2), eps=config.epsilon)
    monkeypatch.setattr(made, "_advance", lambda rate: made._advance_if(torch.tensor(True), rate))
    return made


@pytest.mark.parametrize("name", ["adamax", "adam"])
def test_what_a_gpu_does_is_what_a_cpu_does(name, monkeypatch: pytest.MonkeyPatch):
    """A GPU makes every update or leaves it out by itself; also the first one, before there are moments."""
    config = optimizer_config(name)
    branching, branchless = FlatOptimizer(network(), config, DECAY), of_a_gpu(config, monkeypatch)
    for step, scale in enumerate((float("nan"), 1.0, 1e6, 1.0, float("inf"), 1.0, 0.01)):
        for optimizer in (branching, branchless):
            optimizer.zero_grad()
            set_gradients(optimizer, step, scale)
        norm, skipped = branching.step(0.1)
        with torch.no_grad():
            branchless._advance_if(norm < config.skip_threshold, 0.1)
        assert bool(skipped) == (scale not in (1.0, 0.01))
        expected, found = branching.tensors(), branchless.tensors()
        for key in expected:
            if not key.startswith("skipped"):
                torch.testing.assert_close(found[key], expected[key], rtol=1e-6, atol=2e-7)
    assert (int(branching.skipped), int(branching.skipped_in_a_row)) == (3, 0)


@pytest.mark.parametrize("name", ["adamax", "adam"])
def test_states_go_from_a_cpu_to_a_gpu_and_back(name, monkeypatch: pytest.MonkeyPatch):
    config = optimizer_config(name)
    optimizers = [FlatOptimizer(network(), config, DECAY), of_a_gpu(config, monkeypatch)]
    for own, other in (optimizers, optimizers[::-1]):
        set_gradients(own, 1)
        own.step(0.1)
        other.load({key: tensor.clone() for key, tensor in own.tensors().items()})
        assert all(torch.equal(other.tensors()[key], tensor) for key, tensor in own.tensors().items())
    assert int(optimizers[0].tensors()["optimizer.step"]) == 2


def test_a_copy_in_bfloat16_follows_the_weights():
    """The model computes with it; gradients, moments and what is saved stay in float32."""
    model, plain = network(), network()
    optimizer = FlatOptimizer(model, optimizer_config("adamax"), DECAY, torch.bfloat16)
    other = FlatOptimizer(plain, optimizer_config("adamax"), DECAY)
    images = torch.randn(2, 3, 6, 6)
    for _ in range(2):
        assert all(p.dtype == torch.bfloat16 for p in model.parameters())
        for name, weights in optimizer.named(optimizer.weights.detach()).items():
            assert torch.equal(model.get_parameter(name), weights.bfloat16())
        for own, network_, x in ((optimizer, model, images.bfloat16()), (other, plain, images)):
            own.zero_grad()
            own.backward(network_(x).float().square().sum())
            own.step(0.01)
    assert {tensor.dtype for tensor in optimizer.tensors().values()} == {torch.float32, torch.int64}
    cosine = torch.cosine_similarity(optimizer.gradients, other.gradients, dim=0)
    assert cosine > 0.99
    fresh = FlatOptimizer(again := network(), optimizer_config("adamax"), DECAY, torch.bfloat16)
    fresh.load(optimizer.tensors())
    assert torch.equal(again[0].weight, model[0].weight)


def test_skips_in_a_row_are_counted_from_the_last_update():
    optimizer = FlatOptimizer(network(), optimizer_config("adamax", skip_threshold=None), DECAY)
    for step, scale in enumerate((float("nan"), 1.0, float("inf"), float("nan"))):
        set_gradients(optimizer, step, scale)
        optimizer.step(0.1)
    assert (int(optimizer.skipped), int(optimizer.skipped_in_a_row)) == (3, 2)


def test_gradients_are_gathered_in_the_flat_tensor():
    """Of one loss as of several, which add up, and again after they were set to 0."""
    model, other = network(), network()
    optimizer = FlatOptimizer(model, optimizer_config("adamax"), DECAY)
    images = torch.randn(2, 3, 6, 6)
    for losses in (1, 2):
        optimizer.zero_grad()
        other.zero_grad()
        for _ in range(losses):
            optimizer.backward(model(images).square().sum())
            other(images).square().sum().backward()
        for own, p in zip(optimizer.named(optimizer.gradients).values(), other.parameters(), strict=True):
            torch.testing.assert_close(own, p.grad)


def test_gradients_of_another_memory_format_find_their_place():
    optimizer = FlatOptimizer(model := network(), optimizer_config("adamax"), DECAY)
    factors = torch.randn(model[0].weight.shape)
    assert factors.stride() != model[0].weight.stride()
    optimizer.backward((model[0].weight * factors).sum())
    assert torch.equal(optimizer.named(optimizer.gradients)["0.weight"], factors)


def test_weights_that_no_loss_depends_on_keep_their_gradient():
    optimizer = FlatOptimizer(model := network(), optimizer_config("adamax"), DECAY)
    optimizer.backward(model[0](torch.randn(2, 3, 6, 6)).square().sum())
    found = optimizer.named(optimizer.gradients)
    assert found["0.weight"].abs().min() > 0
    assert not found["1.weight"].any()
    assert not found["1.bias"].any()


def test_weights_keep_their_memory_format():
    model = network()
    before = [p.stride() for p in model.parameters()]
    optimizer = FlatOptimizer(model, optimizer_config("adamax"), DECAY)
    assert [p.stride() for p in model.parameters()] == before
    assert all(p.untyped_storage().data_ptr() == optimizer.weights.data_ptr() for p in model.parameters())


@pytest.mark.parametrize("name", ["adamax", "adam"])
def test_tensors_come_back(name):
    config = optimizer_config(name)
    trained, fresh = FlatOptimizer(network(), config, DECAY), FlatOptimizer(network(), config, DECAY)
    set_gradients(trained, 1)
    trained.step(0.1)
    fresh.load({key: tensor.clone() for key, tensor in trained.tensors().items()})
    for optimizer in (trained, fresh):
        set_gradients(optimizer, 2)
        optimizer.step(0.1)
    expected, found = trained.tensors(), fresh.tensors()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_tensor_too_few_is_named():
    config = dataclasses.replace(optimizer_config("adamax"), name="adamax")
    optimizer = FlatOptimizer(network(), config, DECAY)
    tensors = optimizer.tensors()
    del tensors["weights.0.weight"]
    with pytest.raises(ModelError, match=r"tensor weights\.0\.weight"):
        optimizer.load(tensors)


def test_only_weights_and_biases_of_convolutions_are_copied():
    layer = OutputConv(2, 3, 1, gain=True, init="uniform")
    FlatOptimizer(layer, optimizer_config("adamax"), DECAY, torch.bfloat16)
    types = {name: parameter.dtype for name, parameter in layer.named_parameters()}
    assert types == {
        "weight": torch.bfloat16,
        "bias": torch.bfloat16,
        "gain": torch.float32,
        "shift": torch.float32,
    }
