"""Formulas are compiled for a GPU if a trial shows the same numbers; the compilers here are stand-ins."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hvae_codec.config import Config
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.kernels.compiled import Compiler
from hvae_codec.model.kernels.sample_and_kl import FORMULAS
from hvae_codec.model.precision import copied_as
from hvae_codec.train import formulas
from hvae_codec.train.formulas import compile_formulas, why_not_trusted
from hvae_codec.train.optimizer import FlatOptimizer


def made(config: Config) -> tuple[HVAE, FlatOptimizer]:
    torch.manual_seed(0)
    model = HVAE(config.model).to(memory_format=torch.channels_last)
    return model, FlatOptimizer(model, config.optimizer, 0.9, copied_as(config.train.precision, "cuda"))


def changed(name: str, change: Callable[[Any], Any]) -> Compiler:
    """What compiles the function `name` to something else."""

    def compiler(function: Callable[..., Any]) -> Callable[..., Any]:
        def other(*arguments: Any) -> Any:
            return change(function(*arguments))

        return other if function.__name__ == name else function

    return compiler


def raising(_: object) -> None:
    raise ValueError("no such instruction\nand more lines")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        (functools.partial, None),
        (changed("_with_derivatives", lambda found: [1.000001 * tensor for tensor in found]), None),
        (changed("_with_derivatives", lambda found: [found[0], 1.1 * found[1], *found[2:]]), "other numbers"),
        (changed("_combined", lambda found: [*found[:3], 2.0 * found[3]]), "other numbers"),
        (changed("_combined", lambda found: [torch.nan * found[0], *found[1:]]), "other numbers"),
        (changed("nll", lambda found: found + 0.1 * found.detach()), "other numbers"),
        (changed("_with_derivatives", raising), "no such instruction"),
        (changed("_combined", raising), "no such instruction"),
    ],
)
def test_what_is_compiled_is_tried(tiny_config: Config, precision: str, compiler: Compiler, reason: str | None):
    """In the forward and the backward pass; weights and random numbers stay."""
    config = dataclasses.replace(tiny_config, train=dataclasses.replace(tiny_config.train, precision=precision))
    model, optimizer = made(config)
    weights, random = optimizer.weights.detach().clone(), torch.get_rng_state()
    found = why_not_trusted(model, optimizer, config, 2, compiler)
    assert found is None if reason is None else reason in found
    assert "\n" not in (found or "")
    assert all((block.formulas is FORMULAS) == (reason is not None) for block in model.top_down.blocks)
    assert torch.equal(optimizer.weights, weights)
    assert torch.equal(torch.get_rng_state(), random)


class OnGPU:
    """A model that says it is on a GPU."""

    device = torch.device("cuda")


def test_a_compiler_that_is_not_trusted_is_told_of_once(tiny_config: Config, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(formulas, "why_not_compilable", lambda _: None)
    monkeypatch.setattr(formulas, "why_not_trusted", lambda *_: "what was compiled computes other numbers")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    warnings: list[str] = []
    _, optimizer = made(tiny_config)
    compile_formulas(OnGPU(), optimizer, tiny_config, 2, warnings.append)
    assert warnings == [
        "torch cannot compile for this GPU (what was compiled computes other numbers); steps run without, as some "
        "thousand kernels more"
    ]


def test_too_little_memory_for_the_trial_is_left_to_the_check_of_memory(tiny_config, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(formulas, "why_not_compilable", lambda _: None)
    monkeypatch.setattr(formulas, "why_not_trusted", full)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    warnings: list[str] = []
    _, optimizer = made(tiny_config)
    compile_formulas(OnGPU(), optimizer, tiny_config, 2, warnings.append)
    assert not warnings
    assert not optimizer.gradients.any()


def test_a_cpu_takes_formulas_as_they_are_written(tiny_config: Config):
    model, optimizer = made(tiny_config)
    compile_formulas(model, optimizer, tiny_config, 2, [].append)
    assert all(block.formulas is FORMULAS for block in model.top_down.blocks)
