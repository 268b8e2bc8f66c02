"""A step that does not fit into memory is refused before the first one, with what fits; a failing model stands in."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hvae_codec.config import Config, config_to_toml, with_settings
from hvae_codec.distributed import DistributedContext
from hvae_codec.errors import TrainingError
from hvae_codec.model.hvae import HVAE
from hvae_codec.train.memory_probe import available_memory, check_memory
from hvae_codec.train.optimizer import FlatOptimizer
from hvae_codec.train.recorded_step import EagerStep
from hvae_codec.train.update import make_network
from hvae_codec_cli.app import main

GIB = 2**30
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
NEVER = 10**6


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """`memory(stored, twice)`: so many images fit, with activations stored or computed twice; gives the tries."""
    monkeypatch.setattr(gc, "collect", lambda: 0)  # takes most of the time

    def holds(stored: int, twice: int, error: Exception = FULL) -> list[int]:
        tried: list[int] = []
        whole, checkpointing = HVAE.forward, HVAE.checkpoint_activations

        def checkpoint_activations(model: HVAE) -> None:
            model.computed_twice = True
            checkpointing(model)

        def forward(model: HVAE, images: torch.Tensor, *rest: object) -> object:
            tried.append(len(images))
            if torch.is_grad_enabled() and len(images) > (twice if hasattr(model, "computed_twice") else stored):
                raise error
            return whole(model, images, *rest)

        monkeypatch.setattr(HVAE, "checkpoint_activations", checkpoint_activations)
        monkeypatch.setattr(HVAE, "forward", forward)
        return tried

    return holds


def made(config: Config) -> tuple[HVAE, FlatOptimizer]:
    torch.manual_seed(0)
    model = HVAE(config.model).to(memory_format=torch.channels_last)
    return model, FlatOptimizer(model, config.optimizer, config.train.ema_decay)


def check(config: Config, processes: DistributedContext | None = None) -> None:
    check_memory(*made(config), config, processes or DistributedContext(), int(7.8 * GIB))


@pytest.mark.parametrize(
    ("settings", "stored", "twice", "sentence"),
    [
        ((), 2, 4, "a step of 8 images does not fit in 7.8 GiB; it fits in 4 parts: --set train.accumulate=4, or with "
         "activations computed twice in 2 parts: --set train.accumulate=2 --set train.checkpoint_activations=true"),
        ((), 4, 8, "; it fits in 2 parts: --set train.accumulate=2, or with activations computed twice: "
         "--set train.checkpoint_activations=true"),
        ((), 4, 4, "; it fits in 2 parts: --set train.accumulate=2"),
        ((), 0, 1, "; it fits with activations computed twice in 8 parts: --set train.accumulate=8 "
         "--set train.checkpoint_activations=true"),
        ((), 0, 0, "a step of 8 images does not fit in 7.8 GiB, and neither does one of an image at a time; take a "
         "GPU with more memory, or a smaller model"),
        (("accumulate=2",), 1, 1, "a step of 8 images in 2 parts does not fit in 7.8 GiB; it fits in 8 parts: "
         "--set train.accumulate=8"),
        (("checkpoint_activations=true",), 8, 3, "does not fit in 7.8 GiB; it fits in 4 parts: "
         "--set train.accumulate=4"),
        (("batch_size=12",), 4, 4, "it fits in 3 parts: --set train.accumulate=3"),
    ],
    ids=str,
)  # fmt: skip
def test_what_would_fit(tiny_config, memory, settings: tuple[str, ...], stored: int, twice: int, sentence: str):
    memory(stored, twice)
    with pytest.raises(TrainingError) as refused:
        check(with_settings(tiny_config, [f"train.{setting}" for setting in settings]))
    assert str(refused.value).endswith(sentence)


def test_of_several_processes_each_has_its_part(tiny_config, memory, monkeypatch: pytest.MonkeyPatch):
    tried = memory(2, 2)
    monkeypatch.setattr(DistributedContext, "_all_reduce", lambda _, tensor, __: tensor)
    with pytest.raises(TrainingError, match=r"a step of 8 images on 2 GPUs does not fit in 7.8 GiB; .*accumulate=2$"):
        check(tiny_config, DistributedContext(0, 2))
    assert tried[:2] == [4, 2]


def test_one_process_that_is_full_is_enough(tiny_config, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(DistributedContext, "_all_reduce", lambda _, tensor, __: tensor)
    monkeypatch.setattr(DistributedContext, "any", lambda *_: True)
    with pytest.raises(TrainingError, match="neither does one of an image at a time"):
        check(tiny_config, DistributedContext(0, 2))


def test_a_step_that_fits_is_tried_once_and_changes_nothing(tiny_config, memory, photo_patches):
    config = with_settings(tiny_config, ["train.accumulate=2", "train.precision=fp32"])
    model, optimizer = made(config)
    step = EagerStep(make_network(model, config.train), optimizer, config, DistributedContext())
    step(torch.from_numpy(photo_patches[:8]), [(0, 1, i) for i in range(8)], 1)
    before = {name: tensor.clone() for name, tensor in optimizer.tensors().items()}
    random = torch.get_rng_state()
    tried = memory(4, 4)
    check_memory(model, optimizer, config, DistributedContext(), GIB)
    assert tried == [4]
    assert all(torch.equal(before[name], tensor) for name, tensor in optimizer.tensors().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_other_errors_are_not_taken_for_too_little_memory(tiny_config, memory):
    memory(0, 0, RuntimeError("size mismatch"))
    with pytest.raises(RuntimeError, match="size mismatch"):
        check(tiny_config)


def test_there_is_nothing_to_try_on_a_cpu():
    assert available_memory(torch.device("cpu")) is None


# --- commands


@pytest.fixture
def run_command(tiny_config, photo_patches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """`run_command(code, words)` in a folder with data.npy and tiny.toml, as on a GPU of 7.8 GiB; gives the errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hvae_codec.train.loop.available_memory", lambda _: int(7.8 * GIB))
    np.save("data.npy", photo_patches.transpose(0, 2, 3, 1))
    config = with_settings(tiny_config, ["train.steps=2", "train.precision=fp32"])
    Path("tiny.toml").write_text(config_to_toml(config))

    def run(code: int, words: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main([*words.split(), "--no-tensorboard"])
        assert stopped.value.code == code
        return capsys.readouterr().err

    return run


SENTENCE = "hvae-codec: a step of 8 images does not fit in 7.8 GiB; it fits in 2 parts: --set train.accumulate=2\n"


def test_train_begins_nothing_and_the_option_that_it_names_works(run_command, memory):
    memory(4, 4)
    words = "train data.npy --config tiny.toml --out runs/a"
    assert run_command(1, words).endswith(SENTENCE)
    assert not Path("runs").exists()
    run_command(0, f"{words} --set train.accumulate=2")
    assert Path("runs/a/model.safetensors").exists()


def test_a_run_that_goes_on_is_left_as_it_was(run_command, memory):
    run_command(0, "train data.npy --config tiny.toml --out runs/a")
    before = {path: path.read_bytes() for path in Path("runs/a").rglob("*") if path.is_file()}
    memory(4, 4)
    assert run_command(1, "train data.npy --resume --out runs/a --steps 4").endswith(SENTENCE)
    assert {path: path.read_bytes() for path in Path("runs/a").rglob("*") if path.is_file()} == before
    run_command(0, "train data.npy --resume --out runs/a --steps 4 --set train.accumulate=2")


def test_prune_names_it_too(run_command, memory, tiny_run: Path):
    memory(4, 4)
    shutil.copytree(tiny_run, "runs/whole")  # which gets a ranking
    words = "prune data.npy --model runs/whole --out runs/p --keep 20% --steps 2 --validation-images 2 --batch-size 8"
    assert run_command(1, words).endswith(SENTENCE)
    assert not Path("runs/p/config.json").exists()
    refused = run_command(2, f"{words} --set train.accumulate=3")
    assert "the 8 images a step cannot be cut into 3 equal parts; give --set train.accumulate=4" in refused
