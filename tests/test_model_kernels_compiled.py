"""Formulas that are compiled compute what they compute as written, whatever the shapes; and if there is no compiler."""

from __future__ import annotations

import dataclasses
import functools
import threading

import pytest
import torch

from hvae_codec.config import ModelConfig, StageConfig
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.kernels import compiled
from hvae_codec.model.kernels.sample_and_kl import FORMULAS
from hvae_codec.model.keyed_noise import keyed_noise
from hvae_codec.model.top_down import TopDownBlock

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


def test_without_a_compiler_it_is_said_why(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("Cannot find a working triton installation\nand more lines")

    monkeypatch.setattr(torch, "compile", broken)
    assert compiled.why_not_compilable(torch.device("cpu")) == "Cannot find a working triton installation"


def repeated(x: torch.Tensor, word: str) -> torch.Tensor:
    """Compiled anew for every word."""
    return x * len(word)


def test_backward_passes_of_a_gpu_compile_as_many_variants():
    """They run in threads of their own, in which settings are torch's: 8 variants, and the next one was an error."""
    told: list[str] = []
    fast = compiled.compiled(repeated, backend="eager", on_failure=told.append)
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.extend(float(fast(torch.ones(()), "a" * n)) for n in range(12)))
    thread.start()
    thread.join()
    torch._dynamo.reset()
    assert found == list(range(12))
    assert not told


def test_a_function_that_cannot_be_compiled_later_runs_as_it_is_written():
    def broken(*_: object) -> None:
        raise RuntimeError("out of registers\nand more lines")

    told: list[str] = []
    fast = compiled.compiled(repeated, backend=broken, on_failure=told.append)
    assert [float(fast(torch.ones(()), word)) for word in ("a", "bb")] == [1.0, 2.0]
    torch._dynamo.reset()
    assert len(told) == 1
    assert "out of registers" in told[0]
