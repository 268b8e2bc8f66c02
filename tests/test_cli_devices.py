"""Which device a command takes, and what it says where a GPU is missing or too small."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from hvae_codec.errors import UsageError
from hvae_codec.store.workers import Worker
from hvae_codec_cli.app import main
from hvae_codec_cli.engine_session import own_device
from hvae_codec_cli.options import torch_device


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """`gpus(n)`: torch finds that many."""

    def found(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return found


@pytest.mark.parametrize(
    ("count", "asked", "worker", "taken"),
    [
        (0, "auto", 3, "cpu"),
        (0, "cpu", 0, "cpu"),
        (2, "cpu", 1, "cpu"),
        (2, "auto", 0, "cuda"),
        (2, "cuda", 0, "cuda"),
        (2, "cuda:1", 0, "cuda:1"),
        (2, "cuda:1", 4, "cuda:1"),
        (2, "auto", 3, "cuda:1"),
        (2, "cuda", 4, "cuda:0"),
        (1, "auto", 5, "cuda:0"),
    ],
)
def test_what_is_taken(gpus, count: int, asked: str, worker: int, taken: str):
    gpus(count)
    assert torch_device(asked, worker) == taken


@pytest.mark.parametrize(("graph", "told"), [("auto", 0), ("on", 1), ("off", 0)])
def test_batches_are_recorded_on_a_gpu_alone(graph: str, told: int, tiny_run, photo_patches, tmp_path, capsys):
    """And told once, whatever is computed: ranking, cost and store."""
    np.save(tmp_path / "images.npy", photo_patches.transpose(0, 2, 3, 1))
    run = shutil.copytree(tiny_run, tmp_path / "run")
    arguments = ["encode", tmp_path / "images.npy", tmp_path / "a.zarr", "--model", run, "--device", "cpu"]
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments), "--graph", graph])
    assert ended.value.code == 0
    sentence = "warning: batches are recorded as a CUDA graph on a GPU alone; they run without"
    assert capsys.readouterr().err.count(sentence) == told


@pytest.mark.parametrize(
    ("count", "asked", "sentence"),
    [
        (1, "gpu", r"--device gpu: give auto, cpu, cuda, or cuda:N for GPU N, counted from 0"),
        (1, "cuda:-1", r"--device cuda:-1: give auto"),
        (0, "cuda", r"--device cuda: torch finds no GPU here; give --device cpu, or install a CUDA build of torch"),
        (0, "cuda:0", r"--device cuda:0: torch finds no GPU here"),
        (2, "cuda:2", r"--device cuda:2: GPUs are counted from 0, and the last one here is cuda:1"),
    ],
)
def test_what_is_refused(gpus, count: int, asked: str, sentence: str):
    gpus(count)
    with pytest.raises(UsageError, match=sentence):
        torch_device(asked)


def test_workers_of_a_store_take_turns(gpus):
    gpus(2)
    devices = [own_device("auto", None, Worker(k, 4)) for k in range(4)]
    assert devices == ["cuda", "cuda:1", "cuda:0", "cuda:1"]


def test_workers_elsewhere_may_have_gpus_and_this_process_none(gpus):
    gpus(0)
    assert own_device("cuda", "local:2", Worker()) == "cpu"
    with pytest.raises(UsageError, match=r"--device is cuda:1, and .* each worker .* give --device cuda"):
        own_device("cuda:1", "local:2", Worker())
    with pytest.raises(UsageError, match=r"--device tpu: give auto, cpu or cuda$"):
        own_device("tpu", "local:2", Worker())


def test_a_device_that_is_none_is_one_sentence(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "data", "--device", "tpu"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("hvae-codec: --device tpu: give auto, cpu, cuda, or cuda:N")


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    ("command", "help_"),
    [
        ("train", "compute a step in parts, such as --set train.accumulate=4, or give --checkpoint-activations"),
        ("encode", "give a smaller --batch-size, or --device cpu"),
        ("verify", "give --device cpu"),
    ],
)
def test_too_little_memory(error, command: str, help_: str, monkeypatch: pytest.MonkeyPatch, capsys):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("typer.core.TyperGroup.invoke", fail)
    with pytest.raises(SystemExit) as stopped:
        main([command, "anything"])
    assert stopped.value.code == 1
    assert capsys.readouterr().err == f"hvae-codec: the GPU has too little memory; {help_}\n"


CPU_ERRORS = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("Storage size calculation overflowed with sizes=[4294967296, 4294967296]"),
    RuntimeError("could not create a primitive"),
    OSError(12, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", CPU_ERRORS)
@pytest.mark.parametrize(
    ("command", "help_"),
    [
        ("train", "compute a step in parts, such as --set train.accumulate=4, or give --checkpoint-activations"),
        ("encode", "give a smaller --batch-size, or close other programs, or take a machine with more"),
        ("verify", "close other programs, or take a machine with more"),
    ],
)
def test_too_little_memory_on_a_cpu(error, command: str, help_: str, monkeypatch: pytest.MonkeyPatch, capsys):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("typer.core.TyperGroup.invoke", fail)
    with pytest.raises(SystemExit) as stopped:
        main([command, "anything"])
    assert stopped.value.code == 1
    assert capsys.readouterr().err == f"hvae-codec: this machine has too little memory; {help_}\n"


def test_other_errors_of_torch_are_not_hidden(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("size mismatch")

    monkeypatch.setattr("typer.core.TyperGroup.invoke", fail)
    with pytest.raises(RuntimeError, match="size mismatch"):
        main(["encode", "anything"])
