"""Recorded work: what is called when, and where its tensors are; on a CPU and on a GPU that is faked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A faked GPU: what it is asked for, in order."""
    asked: list[str] = []

    class Graph:
        def replay(self) -> None:
            asked.append("replay")

    class Stream:
        def wait_stream(self, other: object) -> None:
            pass

    @contextlib.contextmanager
    def graph(*_: object, **__: object) -> Iterator[None]:
        asked.append("record")
        yield

    for name, fake in {"CUDAGraph": Graph, "graph": graph, "Stream": Stream, "current_stream": Stream}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: contextlib.nullcontext())
    return asked


def test_the_second_call_is_recorded_and_later_ones_are_replays(gpu: list[str]):
    calls: list[int] = []

    def work() -> int:
        calls.append(len(calls))
        return calls[-1]

    recorded = Recorded(work, GPU, refuse)
    assert [recorded() for _ in range(4)] == [0, 1, 1, 1]
    assert calls == [0, 1]
    assert gpu == ["record", "replay", "replay", "replay"]
    assert recorded.replays


def test_a_recording_that_fails_is_told_once_and_not_tried_again(gpu: list[str]):
    told: list[str] = []
    recording, calls = Recording("auto", told.append), []

    def work() -> str:
        calls.append(len(gpu))
        if len(calls) == 2:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore lines")
        return "result"

    call = recording.of(work, GPU)
    assert [call() for _ in range(4)] == ["result"] * 4
    assert len(calls) == 5
    assert gpu == ["record"]
    assert told == [
        "batches cannot be recorded as a CUDA graph (CUDA error: operation not permitted when stream is capturing); "
        "they run without"
    ]
    assert not isinstance(recording.of(work, GPU), OnBatches)


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
