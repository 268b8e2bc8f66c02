"""Recorded work: what is called when, and where its tensors are; on a CPU and on a GPU that is faked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from hvae_codec.model.batch_size import default_batch_size
from hvae_codec.model.recorded import OnBatches, Recorded, Recording

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Doubling:
    """Doubles a batch, and remembers the tensors that it was given."""

    def __init__(self) -> None:
        self.given: list[Tensor] = []

    def __call__(self, batch: Tensor) -> Tensor:
        self.given.append(batch)
        return 2 * batch


def refuse(reason: str) -> None:
    raise AssertionError(reason)


def test_batches_of_one_size_are_read_from_one_buffer():
    double = Doubling()
    on_batches = OnBatches(double, CPU, refuse)
    for number in (1.0, 2.0, 3.0):
        assert torch.equal(on_batches(torch.full((4, 3), number)), torch.full((4, 3), 2 * number))
    assert len({id(given) for given in double.given}) == 1


def test_a_batch_of_another_size_is_given_as_it_is():
    double = Doubling()
    on_batches = OnBatches(double, CPU, refuse)
    on_batches(torch.zeros(4, 3))
    assert torch.equal(on_batches(torch.ones(2, 3)), torch.full((2, 3), 2.0))
    assert torch.equal(on_batches(torch.ones(4, 3)), torch.full((4, 3), 2.0))
    assert [len(given) for given in double.given] == [4, 2, 4]


def test_buffers_have_the_memory_format_of_what_is_given():
    double = Doubling()
    OnBatches(double, CPU, refuse)(torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last))
    assert double.given[0].is_contiguous(memory_format=torch.channels_last)


class FakeGPU:
    """A GPU of which only the recording is real: what is called while it records is called again by a replay."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.recorded: list[Callable[[], None]] = []
        self.recording = False

    def work(self, kernels: Callable[[], None]) -> None:
        """Launch kernels, or record them."""
        if self.recording:
            self.recorded.append(kernels)
        else:
            kernels()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGPU:
    fake = FakeGPU()

    class Graph:
        def pool(self) -> None:
            raise RuntimeError("without a preceding successful capture")

        def replay(self) -> None:
            fake.asked.append("replay")
            for kernels in fake.recorded:
                kernels()

    class Stream:
        def wait_stream(self, other: object) -> None:
            pass

    @contextlib.contextmanager
    def graph(*_: object, **__: object) -> Iterator[None]:
        fake.asked.append("record")
        fake.recording = True
        try:
            yield
        finally:
            fake.recording = False

    for name, done in {"_cuda_endAllocateToPool": "end", "_cuda_releasePool": "release"}.items():
        monkeypatch.setattr(torch._C, name, lambda *_, done=done: fake.asked.append(done), raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for name, what in {"CUDAGraph": Graph, "graph": graph, "Stream": Stream, "current_stream": Stream}.items():
        monkeypatch.setattr(torch.cuda, name, what)
    for name in ("device", "stream", "synchronize", "empty_cache", "graph_pool_handle"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: contextlib.nullcontext())
    return fake


class Summing:
    """Adds a batch's numbers to a sum, which is its state; gives twice the numbers."""

    def __init__(self, gpu: FakeGPU, size: int = 1000) -> None:
        self.gpu, self.calls = gpu, 0
        self.batch, self.sum = torch.empty(size), torch.zeros(size)

    def __call__(self) -> Tensor:
        self.calls += 1
        twice = torch.zeros_like(self.batch)

        def kernels() -> None:
            self.sum.add_(self.batch)
            torch.mul(self.batch, 2.0, out=twice)

        self.gpu.work(kernels)
        return twice


def run(summing: Summing, recorded: Recorded[Tensor]) -> None:
    """Call it with 1, 2, 3 and 4, and check what it gives."""
    for number in (1.0, 2.0, 3.0, 4.0):
        summing.batch.fill_(number)
        assert torch.equal(recorded(), torch.full_like(summing.batch, 2 * number))
    assert torch.equal(summing.sum, torch.full_like(summing.batch, 10.0))


def test_the_second_call_is_recorded_and_later_ones_are_replays(gpu: FakeGPU):
    """The second one is launched, too, and what it changes is taken back."""
    summing = Summing(gpu)
    recorded = Recorded(summing, GPU, refuse, [summing.sum])
    run(summing, recorded)
    assert summing.calls == 3
    assert gpu.asked == ["record", "replay", "replay", "replay"]
    assert recorded.replays


@pytest.mark.parametrize("wrong", ["result", "state"])
def test_a_recording_that_computes_something_else_is_not_used(gpu: FakeGPU, wrong: str):
    """As it would if it read what is not there any more; nothing is left of what it computed."""
    told: list[str] = []

    class Stale(Summing):
        def __call__(self) -> Tensor:
            twice = super().__call__()
            if self.gpu.recording:
                stale = twice if wrong == "result" else self.sum
                self.gpu.work(lambda: stale.add_(0.1))
            return twice

    summing = Stale(gpu)
    run(summing, Recorded(summing, GPU, told.append, [summing.sum]))
    assert gpu.asked == ["record", "replay"]
    assert told == ["it computes other numbers than what it was recorded from"]


def test_numbers_that_are_added_up_in_another_order_are_the_same(gpu: FakeGPU):
    class Rounding(Summing):
        def __call__(self) -> Tensor:
            twice = super().__call__()
            self.gpu.work(lambda: twice.mul_(1.0 + 1e-6 * self.calls))
            return twice

    summing = Rounding(gpu)
    recorded = Recorded(summing, GPU, refuse, [summing.sum])
    for _ in range(3):
        recorded()
    assert recorded.replays


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_recording_that_fails_is_told_once_and_not_tried_again(gpu: FakeGPU, error: type[Exception]):
    told: list[str] = []
    recording = Recording("auto", told.append)

    class Waiting(Summing):
        def __call__(self) -> Tensor:
            twice = super().__call__()
            if self.gpu.recording:
                raise error("CUDA error: operation not permitted when stream is capturing\nmore lines")
            return twice

    summing = Waiting(gpu)
    call = recording.of(summing, GPU, state=[summing.sum])
    run(summing, call)
    assert gpu.asked == ["record", "end", "release"]
    assert told == [
        "batches cannot be recorded as a CUDA graph (CUDA error: operation not permitted when stream is capturing); "
        "they run without"
    ]
    assert not isinstance(recording.of(summing, GPU), OnBatches)


def test_which_work_is_recorded():
    told: list[str] = []
    for wanted, device, recorded in [
        ("auto", CPU, False),
        ("on", CPU, False),
        ("off", GPU, False),
        ("auto", GPU, True),
        ("on", torch.device("cuda:1"), True),
    ]:
        call = Recording(wanted, told.append).of(Doubling(), device)
        assert isinstance(call, OnBatches) == recorded
    assert told == ["batches are recorded as a CUDA graph on a GPU alone; they run without"]


@pytest.mark.parametrize(
    ("device", "size", "images"),
    [("cpu", 1024, 64), ("cuda", 28, 256), ("cuda", 64, 256), ("cuda", 96, 64), ("cuda", 256, 16), ("cuda", 1024, 1)],
)
def test_images_per_pass(device: str, size: int, images: int):
    class Model:
        device = torch.device("cpu")

        class config:  # noqa: N801
            image_size = size

    Model.device = torch.device(device)
    assert default_batch_size(Model) == images
