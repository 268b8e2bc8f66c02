"""Formulas compiled for a GPU, if a step with them has the numbers of one with formulas as they are written.

What a compiler makes depends on the GPU, its driver and the versions of the compiler's parts, so it is tried before
the first step: on random images, up to the gradients of all weights.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..config import Config
from ..errors import is_gpu_out_of_memory
from ..model.hvae import HVAE, Terms
from ..model.kernels.compiled import Compiler, compiled, first_line, why_not_compilable
from ..model.keyed_noise import keyed_noise
from .optimizer import FlatOptimizer
from .schedules import StepNumbers
from .update import make_network, training_loss

NEAR_TERMS, NEAR_GRADIENT, NOTHING = 0.01, 0.1, 1e-3
"""Relative differences that bfloat16 may make of other roundings: of terms, of a parameter's gradient; and the share of
the whole gradient below which a difference is none. Other formulas are far beyond."""

_ONE_STAYS = "a formula cannot be compiled for this GPU ({}); it runs as it is written"


def compile_formulas(
    model: HVAE, optimizer: FlatOptimizer, config: Config, images: int, on_warning: Callable[[str], None]
) -> None:
    """Compile the formulas of `model` for steps of so many `images`, on a GPU and unless all of it is to be compiled.

    Weights stay, gradients are 0 afterwards, and no random number is drawn. `on_warning` is called with a sentence if
    formulas stay as they are written.
    """
    if model.device.type != "cuda" or config.train.compile:
        return
    reason = why_not_compilable(model.device)
    if reason is None:
        compiler = functools.partial(compiled, on_failure=lambda why: on_warning(_ONE_STAYS.format(why)))
        try:
            reason = why_not_trusted(model, optimizer, config, images, compiler)
        except RuntimeError as error:
            if not is_gpu_out_of_memory(error):
                raise
            return  # not even as they are written: `check_memory` says what fits
        finally:
            optimizer.zero_grad()
            gc.collect()  # an error may hold what was computed until then
            torch.cuda.empty_cache()
    if reason is not None:
        on_warning(f"torch cannot compile for this GPU ({reason}); steps run without, as some thousand kernels more")


def why_not_trusted(
    model: HVAE, optimizer: FlatOptimizer, config: Config, images: int, compiler: Compiler
) -> str | None:
    """Compile the formulas of `model`; return None if they compute the same, else what happened, and they are undone.

    The optimiser's gradients are written over.
    """
    trial = _Trial(model, config, images)
    optimizer.zero_grad()
    expected, loss = trial.run()
    optimizer.backward(loss)
    del loss  # with its activations
    model.compile_formulas(compiler)
    try:
        found, loss = trial.run()
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        if _near(found, expected) and _near_gradients(gradients, optimizer):
            return None
        reason = "what was compiled computes other numbers"
    except Exception as error:  # of any of the compiler's parts, or of the GPU's
        reason = first_line(error)
    model.write_out_formulas()
    return reason


class _Trial:
    """Runs steps on the same images and noise, up to the loss."""

    def __init__(self, model: HVAE, config: Config, images: int) -> None:
        self._config, size = config, config.model.image_size
        self._network = make_network(model, replace(config.train, compile=False))
        shape, generator = (images, config.model.channels, size, size), torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        self._pixels = pixels.to(model.device)
        self._noise = keyed_noise(config.model, [(0, 0, image) for image in range(images)], model.device)

    def run(self) -> tuple[Terms, Tensor]:
        """Return the terms, and the loss with its graph, in which the KL has its full weight, as later in training."""
        terms = self._network(self._pixels, self._noise)
        numbers = StepNumbers(learning_rate=0.0, kl_weight=1.0, balanced=False)
        loss = training_loss(terms, self._config.model, self._config.loss, numbers)
        return Terms(terms.nll.detach(), terms.kl.detach()), loss


def _near(found: Terms, expected: Terms) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(bool((one - other).norm() <= NEAR_TERMS * other.norm()) for one, other in pairs)


def _near_gradients(found: Sequence[Tensor | None], optimizer: FlatOptimizer) -> bool:
    """Compare with the gradients that `optimizer` holds, parameter by parameter."""
    expected = optimizer.named(optimizer.gradients).values()
    pairs = [(one.float(), other) for one, other in zip(found, expected, strict=True) if one is not None]
    norms = torch.stack([other.norm() for _, other in pairs])
    differences = torch.stack([(one - other).norm() for one, other in pairs])
    return bool((differences <= NEAR_GRADIENT * norms + NOTHING * norms.norm()).all())
