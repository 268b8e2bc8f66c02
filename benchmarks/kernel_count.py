"""Kernels that a GPU would launch for a training step, counted where there is no GPU.

    python benchmarks/kernel_count.py --preset cifar10_C1
    python benchmarks/kernel_count.py --preset tiny32 --batch-size 64 --operations 20

The step runs on tensors without numbers, on torch's device `meta`, which is no CPU, so that all branches of GPUs are
taken; each operation that it calls is counted by the kernels that it is on a GPU. Not seen: what cuDNN and cuBLAS add
(changes of layout, sums of parts), fills and copies of memory that are no kernels, and noise, which is drawn outside
the model.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from results import print_table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from hvae_codec.config import Config
from hvae_codec.model.choices import Noise
from hvae_codec.model.hvae import HVAE, Terms
from hvae_codec.model.kernels.compiled import Compiler
from hvae_codec.model.keyed_noise import noise_dims, noise_of
from hvae_codec.model.precision import copied_as
from hvae_codec.presets import load_preset
from hvae_codec.train.optimizer import FlatOptimizer
from hvae_codec.train.schedules import StepNumbers
from hvae_codec.train.update import update

DEVICE = "meta"
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_reshape_alias"}
"""Operations that are no views, and compute nothing."""
SEVERAL = {"addmv": 2, "baddbmm": 2, "logsumexp": 8, "index_copy": 2}
"""Operations of more than one kernel: copies of what they add to, or steps of a formula."""
TENSORS_AT_ONCE = {"_foreach_copy_": 64, "_foreach_add_": 64}
"""Tensors of a list that one kernel takes."""
ELEMENTS_AT_ONCE = 320 * 65536
"""Elements of a list's tensors that one kernel takes."""


COMPILED = {"_with_derivatives": (2, 0), "_combined": (2, 0), "rounded_posterior": (7, 5), "nll": (12, 11)}
"""Kernels of compiled functions, of the values and of the gradients: loops in what TorchInductor makes for CPUs."""


class KernelCount(TorchDispatchMode):
    """Counts kernels by phase and by operation, of all that is called within it."""

    def __init__(self) -> None:
        super().__init__()
        self.phases: dict[str, Counter[str]] = {}
        self.begin("forward")

    def begin(self, phase: str) -> None:
        """Count for `phase` from now on."""
        self._counts = self.phases.setdefault(phase, Counter())

    @property
    def total(self) -> int:
        """Kernels of all phases."""
        return sum(counts.total() for counts in self.phases.values())

    def add(self, name: str, kernels: int) -> None:
        """Count kernels of something that is no operation of torch's."""
        self._counts[name] += kernels

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = computed(func, args, kwargs or {})
        self.add(func.overloadpacket.__name__, kernels_of(func, args, (args, kwargs, result)))
        return result


def computed(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Find the shape of a result; of what there is most of without torch, which takes long to tell."""
    name = func.overloadpacket.__name__
    written = [kwargs[key] for key in ("out", "grad_input") if isinstance(kwargs.get(key), Tensor)]
    written += [args[0]] if name in ("add_", "mul_", "silu_", "copy_") else []
    if written and written[0].device.type == DEVICE:
        return written[0]
    if name == "silu":
        return torch.empty_like(args[0])
    if name == "convolution_backward":
        gradient, x, weight, wanted = *args[:3], args[-1]
        of_bias = weight.new_empty(gradient.shape[1])
        return tuple(torch.empty_like(t) if of else None for t, of in zip((x, weight, of_bias), wanted, strict=True))
    return func(*args, **kwargs)


def kernels_of(func: Any, args: Sequence[Any], all_tensors: Any) -> int:
    """Count the kernels of one operation."""
    name = func.overloadpacket.__name__
    tensors = [x for x in tree_leaves(all_tensors) if isinstance(x, Tensor)]
    if func.is_view or name in ALLOCATIONS or not any(x.numel() for x in tensors if x.device.type == DEVICE):
        return 0
    if name == "convolution":
        return 1 if args[2] is None else 2  # the bias is added by a kernel of its own
    if name == "convolution_backward":
        return sum(args[-1])  # of input, weight and bias, as far as they are wanted
    if name in TENSORS_AT_ONCE:
        elements = sum(tensor.numel() for tensor in args[0])
        return max(-(-len(args[0]) // TENSORS_AT_ONCE[name]), -(-elements // ELEMENTS_AT_ONCE))
    return SEVERAL.get(name, 1)


def compiler(count: KernelCount) -> Compiler:
    """Make a stand-in for the compiler: what is compiled counts as the kernels that TorchInductor makes of it."""

    def as_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            leaves, structure = tree_flatten(arguments)
            return _Compiled.apply(count, function, structure, *leaves)

        return run

    return as_compiled


class _Compiled(torch.autograd.Function):
    """A function whose own operations, forward and backward, are not counted."""

    @staticmethod
    def forward(ctx: Any, count: KernelCount, function: Callable[..., Any], structure: Any, *leaves: Any) -> Any:
        ctx.count, ctx.name = count, function.__name__
        with uncounted(), torch.enable_grad():
            ctx.inputs = [own(leaf, wanted) for leaf, wanted in zip(leaves, ctx.needs_input_grad[3:], strict=True)]
            ctx.outputs = function(*tree_unflatten(ctx.inputs, structure))
        count.add(f"{ctx.name}, compiled", COMPILED[ctx.name][0])
        outputs = [x.detach() for x in tree_leaves(ctx.outputs)]
        return outputs[0] if isinstance(ctx.outputs, Tensor) else tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        wanted = [x for x in ctx.inputs if isinstance(x, Tensor) and x.requires_grad]
        with uncounted():
            found = iter(torch.autograd.grad(tree_leaves(ctx.outputs), wanted, gradients, allow_unused=True))
        ctx.count.add(f"{ctx.name}, compiled", COMPILED[ctx.name][1])
        return None, None, None, *(next(found) if any(x is y for y in wanted) else None for x in ctx.inputs)


def own(leaf: Any, wanted: bool) -> Any:
    return leaf.detach().requires_grad_(wanted) if isinstance(leaf, Tensor) else leaf


def uncounted() -> Any:
    return torch.utils._python_dispatch._disable_current_modes()


def count_step(config: Config, batch: int, *, compiled: bool = True) -> KernelCount:
    """Count the kernels of one training step as it is recorded, with moments made before."""
    count = KernelCount()
    with torch.device(DEVICE):
        model = HVAE(config.model).to(memory_format=torch.channels_last)
        shape = (batch, config.model.channels, config.model.image_size, config.model.image_size)
        images, drawn = torch.empty(shape, dtype=torch.uint8), torch.empty(batch, noise_dims(config.model))
        numbers = StepNumbers(torch.empty(()), torch.empty(()), config.loss.balance_groups)
    if compiled:
        model.compile_formulas(compiler(count))
    dtype = copied_as(config.train.precision, DEVICE)
    # The library's Adam does not run on this device.
    adamax = dataclasses.replace(config.optimizer, name="adamax")
    optimizer = FlatOptimizer(model, adamax, config.train.ema_decay, dtype)

    def network(images: Tensor, noise: Noise) -> Terms:
        count.begin("forward")
        terms: Terms = model(images, noise)
        count.begin("loss")
        return terms

    optimizer.prime()
    optimizer.backward = counted(count, "backward", optimizer.backward)
    optimizer.step = counted(count, "optimiser", optimizer.step, "result")
    with count:
        update(network, optimizer, config, images, noise_of(config.model, drawn), numbers)
    return count


def counted(count: KernelCount, phase: str, function: Callable[..., Any], after: str = "") -> Callable[..., Any]:
    def in_phase(*arguments: Any) -> Any:
        count.begin(phase)
        result = function(*arguments)
        count.begin(after or phase)
        return result

    return in_phase


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cifar10_C1")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--operations", type=int, default=0, help="show the operations with the most kernels, too")
    options = parser.parse_args()
    config = load_preset(options.preset)
    counts = {}
    for precision in ("fp32", "bf16"):
        train = dataclasses.replace(config.train, precision=precision)
        for words, compiled in (("", True), (", nothing compiled", False)):
            ready = dataclasses.replace(config, train=train)
            counts[precision + words] = count_step(ready, options.batch_size, compiled=compiled)
    show(f"{options.preset}, batch size {options.batch_size}", counts, options.operations)


def show(title: str, counts: dict[str, KernelCount], operations: int) -> None:
    """Print the kernels by phase, and the `operations` that have the most."""
    phases = dict.fromkeys(phase for count in counts.values() for phase in count.phases)
    rows = [(phase, *(f"{count.phases[phase].total():,}" for count in counts.values())) for phase in phases]
    print_table(title, ("kernels", *counts), [*rows, ("all", *(f"{count.total:,}" for count in counts.values()))])
    for way, count in counts.items():
        for name, kernels in sum(count.phases.values(), Counter()).most_common(operations):
            print(f"{way}: {name} {kernels:,}")


if __name__ == "__main__":
    main()
