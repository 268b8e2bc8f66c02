"""Work on the device recorded once as a CUDA graph: later calls are one launch, where the host would need thousands.

A recording holds addresses, not values. What changes from call to call is therefore written into buffers before a
replay, and a replay writes its results where those of the one before are.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

GraphMode = Literal["auto", "on", "off"]
"""Whether work is recorded; auto: on a GPU."""

Result = TypeVar("Result")


class Recorded(Generic[Result]):
    """`function`, whose second call on a GPU is recorded; that one and the later ones replay the recording.

    `function` takes what it needs from tensors that stay where they are, and waits for no number. A result holds until
    the next call. If recording fails, `on_failure` is called with the reason, and `function` is launched kernel by
    kernel, as it is on other devices.
    """

    def __init__(self, function: Callable[[], Result], device: torch.device, on_failure: Callable[[str], None]) -> None:
        self._function, self._device, self._on_failure = function, device, on_failure
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
            if self._stream is None:
                return self._first()
            if self._recording is None:
                self.record()
            return self._function() if self._recording is None else self._replay(*self._recording)

    def _first(self) -> Result:
        """Run `function` where it will be recorded: libraries set themselves up, which a recording could not hold."""
        self._stream = torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = self._function()
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def record(self) -> None:
        """Record `function`, which computes nothing."""
        gc.collect()  # what is thrown away while recording may be memory of another recording
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                result = self._function()
        except RuntimeError as error:  # out of memory is one, too
            self._failed = True
            # What went wrong makes the end of the recording fail, too, which says less.
            self._on_failure(str(error.__context__ or error).partition("\n")[0])
        else:
            self._recording = graph, result

    def _replay(self, graph: torch.cuda.CUDAGraph, result: Result) -> Result:
        graph.replay()
        return result


class OnBatches(Generic[Result]):
    """`function` of tensors, for batches of the first one's shape: these are copied into buffers that it reads.

    So it can be recorded. Tensors of other shapes are given to it as they are, on the device.
    """

    def __init__(
        self, function: Callable[..., Result], device: torch.device, on_failure: Callable[[str], None]
    ) -> None:
        self._function, self._device = function, device
        self._buffers: list[Tensor] = []
        self._recorded = Recorded(lambda: function(*self._buffers), device, on_failure)

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

    def of(self, function: Callable[..., Result], device: torch.device) -> Callable[..., Result]:
        """Make what calls `function` with a batch's tensors on `device`, recorded if it is wanted and possible.

        Its result may hold until the next call only.
        """
        if self._wanted == "on" and device.type == "cpu":
            self._tell("batches are recorded as a CUDA graph on a GPU alone; they run without")
        if self._wanted == "off" or device.type == "cpu":
            return lambda *given: function(*(tensor.to(device) for tensor in given))
        return OnBatches(function, device, self._failed)

    def _failed(self, reason: str) -> None:
        self._tell(f"batches cannot be recorded as a CUDA graph ({reason}); they run without")

    def _tell(self, sentence: str) -> None:
        self._wanted = "off"  # what failed once is not tried again, nor told again
        self._on_warning(sentence)
