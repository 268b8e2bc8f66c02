"""Work on the device recorded once as a CUDA graph: later calls are one launch, where the host would need thousands.

A recording holds addresses, not values. What changes from call to call is therefore written into buffers before a
replay, and a replay writes its results where those of the one before are.
"""

from __future__ import annotations

import gc
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

GraphMode = Literal["auto", "on", "off"]
"""Whether work is recorded; auto: on a GPU."""

Result = TypeVar("Result")

OTHER = 0.01
"""Share of its numbers by which a recording may differ from what was launched: algorithms may add up in any order."""


class Recorded(Generic[Result]):
    """`function`, whose second call on a GPU is recorded; that one and the later ones replay the recording.

    `function` takes what it needs from tensors that stay where they are, changes none that outlast it but `state`, and
    waits for no number. A result, a tensor or tuples and lists of them, holds until the next call. The second call is
    launched kernel by kernel first, and compared: if recording fails, or gives other numbers, `on_failure` is called
    with the reason, and `function` is launched from then on, as it is on other devices.
    """

    def __init__(
        self,
        function: Callable[[], Result],
        device: torch.device,
        on_failure: Callable[[str], None],
        state: Sequence[Tensor] = (),
    ) -> None:
        self._function, self._device, self._on_failure, self._state = function, device, on_failure, state
        self._stream: torch.cuda.Stream | None = None
        self._recording: tuple[torch.cuda.CUDAGraph, Result] | None = None
        self._failed = False

    @property
    def replays(self) -> bool:
        """Whether it is recorded."""
        return self._recording is not None

    def __call__(self) -> Result:
        """Run `function`, or replay it."""
        if self._device.type != "cuda" or self._failed:
            return self._function()
        with torch.cuda.device(self._device):
            if self._recording is not None:
                return self._replay(*self._recording)
            if self._stream is None:
                self._stream = torch.cuda.Stream()
                return self._launched()
            return self._compared()

    def _launched(self) -> Result:
        """Run `function` where it will be recorded: libraries set themselves up, which a recording could not hold."""
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = self._function()
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def _compared(self) -> Result:
        """Record `function`, and replay it if that gives what launching it gives."""
        before = list(_on_host(self._state))  # on the device there may be no room for it
        expected = [*_on_host(self._launched()), *_changes(self._state, before)]
        self._restore(before)
        self.record()
        if self._recording is not None:
            result = self._replay(*self._recording)
            found = itertools.chain(_on_host(result), _changes(self._state, before))
            if all(itertools.starmap(_near, zip(found, expected, strict=True))):
                return result
            self._recording = None
            self._restore(before)
            self._fail("it computes other numbers than what it was recorded from")
        self._settle()
        return self._function()

    @torch.no_grad()
    def _restore(self, numbers: Sequence[Tensor]) -> None:
        for tensor, old in zip(self._state, numbers, strict=True):
            tensor.copy_(old)

    def record(self) -> None:
        """Record `function`, which computes nothing."""
        gc.collect()  # what is thrown away while recording may be memory of another recording
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        # Other threads may use the GPU meanwhile, as those that free copies of results.
        recording = torch.cuda.graph(graph, pool, self._stream, capture_error_mode="thread_local")
        try:
            # The outer one gives the current stream back, which a recording that fails does not.
            with torch.cuda.stream(self._stream), recording:
                result = self._function()
        except Exception as error:  # of torch, of libraries, of compilers: launched, it ran before
            _end_failed(graph, pool)
            # What went wrong makes the end of the recording fail, too, which says less.
            cause = error.__context__ or error
            self._fail(str(cause).partition("\n")[0] or type(cause).__name__)
        else:
            self._recording = graph, result

    def _fail(self, reason: str) -> None:
        self._failed = True
        self._on_failure(reason)

    def _settle(self) -> None:
        """Free the memory of a recording that failed, and take the error that it may have left for the next launch."""
        gc.collect()
        with suppress(Exception):
            torch.cuda.synchronize()
            torch.empty(1, device=self._device).zero_()
        with suppress(RuntimeError):
            torch.cuda.empty_cache()

    def _replay(self, graph: torch.cuda.CUDAGraph, result: Result) -> Result:
        graph.replay()
        return result


def _end_failed(graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    """End what torch leaves open of a recording that was broken off by an operation that cannot be recorded.

    Its allocator would go on as if it recorded, which makes it fail once memory is short, and would keep the memory.
    """
    with suppress(Exception):
        graph.pool()  # raises if it was broken off
        return
    names = ["_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"]  # older releases have the second one
    if tuple(map(int, torch.__version__.split(".")[:2])) <= (2, 13):  # later ones free it, and twice would be too often
        names.append("_cuda_releasePool")
    for name in names:
        with suppress(Exception):  # there is no such function, or it was done
            getattr(torch._C, name)(torch.cuda.current_device(), pool)


def _on_host(value: object) -> Iterator[Tensor]:
    """Copy all tensors in `value`, in tuples and lists of any depth, to the host, one after the other."""
    if isinstance(value, Tensor):
        yield value.detach().to("cpu", copy=True)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _on_host(part)


def _changes(state: Sequence[Tensor], before: Sequence[Tensor]) -> Iterator[Tensor]:
    """Measure by how much each tensor is no longer what it was: a step changes weights by little."""
    for now, old in zip(_on_host(state), before, strict=True):
        yield now.sub_(old).float().norm()


def _near(found: Tensor, expected: Tensor) -> bool:
    """Whether numbers are the same but for rounding: real ones in norm, of whole ones all but a few."""
    if found.shape != expected.shape:
        return False
    if not found.is_floating_point():
        return int((found != expected).sum()) <= OTHER * found.numel()
    one, other = found.float().nan_to_num(), expected.float().nan_to_num()  # training may meet what is no number
    return bool((one - other).norm() <= OTHER * other.norm())


class OnBatches(Generic[Result]):
    """`function` of tensors, for batches of the first one's shape: these are copied into buffers that it reads.

    So it can be recorded. Tensors of other shapes are given to it as they are, on the device.
    """

    def __init__(
        self,
        function: Callable[..., Result],
        device: torch.device,
        on_failure: Callable[[str], None],
        state: Sequence[Tensor] = (),
    ) -> None:
        self._function, self._device = function, device
        self._buffers: list[Tensor] = []
        self._recorded = Recorded(lambda: function(*self._buffers), device, on_failure, state)

    def __call__(self, *given: Tensor) -> Result:
        """Call `function`; the result holds until the next call."""
        if not self._buffers:  # in the memory format of what is given, on which rounding depends
            self._buffers = [torch.empty_like(tensor, device=self._device) for tensor in given]
        if [tensor.shape for tensor in given] != [buffer.shape for buffer in self._buffers]:
            return self._function(*(tensor.to(self._device) for tensor in given))
        for buffer, tensor in zip(self._buffers, given, strict=True):
            buffer.copy_(_pinned(tensor, self._device), non_blocking=True)
        return self._recorded()


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to where a GPU reads without the host waiting; others are returned as they are."""
    return tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor


class Recording:
    """Which work on a model's batches is recorded, and who is told if that is not possible."""

    def __init__(self, wanted: GraphMode = "auto", on_warning: Callable[[str], None] | None = None) -> None:
        """`on_warning` is called with one sentence (it is logged by default), once."""
        self._wanted = wanted
        self._on_warning = on_warning or logging.getLogger(__name__).warning

    @property
    def wanted(self) -> GraphMode:
        """What is wanted of it; off once it failed."""
        return self._wanted

    def of(
        self, function: Callable[..., Result], device: torch.device, state: Sequence[Tensor] = ()
    ) -> Callable[..., Result]:
        """Make what calls `function` with a batch's tensors on `device`, recorded if it is wanted and possible.

        Its result may hold until the next call only. `state` are the tensors that it changes, if there are any.
        """
        if self._wanted == "on" and device.type == "cpu":
            self._tell("batches are recorded as a CUDA graph on a GPU alone; they run without")
        if self._wanted == "off" or device.type == "cpu":
            return lambda *given: function(*(tensor.to(device) for tensor in given))
        return OnBatches(function, device, self._failed, state)

    def _failed(self, reason: str) -> None:
        self._tell(f"batches cannot be recorded as a CUDA graph ({reason}); they run without")

    def _tell(self, sentence: str) -> None:
        self._wanted = "off"  # what failed once is not tried again, nor told again
        self._on_warning(sentence)
