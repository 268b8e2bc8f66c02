"""Formulas that are compiled compute what they compute as written, whatever the shapes; and if there is no compiler."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch

from hvae_codec.config import ModelConfig, StageConfig
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.kernels import compiled
from hvae_codec.model.kernels.sample_and_kl import FORMULAS
from hvae_codec.model.keyed_noise import keyed_noise
from hvae_codec.model.top_down import TopDownBlock
from hvae_codec.train.update import _compile_formulas

STAGES = tuple(StageConfig(size, 6, 2, bottleneck=0.5, linked_blocks=1) for size in (4, 1))
CONFIG = ModelConfig(4, STAGES, mixtures=1, middle_layers=0)


def model_of(config: ModelConfig) -> HVAE:
    torch.manual_seed(0)
    return HVAE(config).to(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["residual", "codes"])
def test_compiled_formulas_compute_the_same(form: str):
    """With the compiler's front end alone: its back end needs a C++ compiler, and a minute."""
    config = dataclasses.replace(CONFIG, learned_steps=form == "codes", residual_distribution=form == "residual")
    images, results = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8), []
    torch._dynamo.reset()
    for compiler in (None, functools.partial(compiled.compiled, backend="eager")):
        model = model_of(config)
        if compiler is not None:
            model.compile_formulas(compiler)
        terms = model(images, keyed_noise(config, [(0, 1), (0, 2)], "cpu"))
        gradients = torch.autograd.grad((terms.nll + terms.kl.sum(dim=0)).sum(), list(model.parameters()))
        results.append([*terms, *gradients])
    torch._dynamo.reset()
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def formulas_of(model: HVAE) -> set[object]:
    return {block.formulas for block in model.top_down.blocks if isinstance(block, TopDownBlock)}


def test_what_is_compiled_is_used_by_every_group():
    model = model_of(CONFIG)
    model.compile_formulas(functools.partial)
    assert formulas_of(model) != {FORMULAS}
    assert len(formulas_of(model)) == 1


def test_without_a_compiler_formulas_stay_as_they_are(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("Cannot find a working triton installation\nand more lines")

    monkeypatch.setattr(torch, "compile", broken)
    assert compiled.why_not_compilable(torch.device("cpu")) == "Cannot find a working triton installation"
    model, warnings = model_of(CONFIG), []
    _compile_formulas(model, warnings.append)
    assert formulas_of(model) == {FORMULAS}
    assert len(warnings) == 1
    assert "(Cannot find a working triton installation)" in warnings[0]
