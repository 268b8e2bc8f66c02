"""Time and memory of a training step, of one configuration in a process of its own.

The studies call `measure`, which starts this file as a program: a process's peak memory is that of everything
it ever did. What an empty process needs (torch loaded, no model) is measured too and taken off.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hvae_codec.config import Config, config_from_dict, config_to_dict

# No torch here: on Linux a process starts with its parent's peak memory as its own (ru_maxrss).


@dataclass(frozen=True)
class StepCost:
    """Of one configuration; `error` says why there are no numbers."""

    seconds: float = float("nan")
    """A step, median."""
    first_seconds: float = float("nan")
    """The first step, compilation included."""
    mebibytes: float = float("nan")
    """Peak memory: allocated on the GPU, or resident on the CPU beyond an empty process."""
    parameters: int = 0
    latent_dims: int = 0
    groups: int = 0
    device: str = ""
    """What ran it, as torch calls it."""
    error: str = ""


def measure(config: Config | None, *, device: str = "cpu", threads: int = 1, steps: int = 5) -> StepCost:
    """Time `steps` training steps after a first one, in a new process; None is the empty process.

    Precision, compilation and activation checkpointing are the configuration's. A failure, such as too little memory,
    is given as `error`.
    """
    request = {"config": None if config is None else config_to_dict(config), "device": device}
    request |= {"threads": threads, "steps": steps}
    ended = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), json.dumps(request)],
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or [f"ended with code {ended.returncode}"])[-1]
        return StepCost(error=last[:200])
    return StepCost(**json.loads(ended.stdout.splitlines()[-1]))


def main(request: dict[str, Any]) -> None:
    import torch
    from study import use_threads

    use_threads(request["threads"])
    device = request["device"]
    if request["config"] is None:
        from study import make_model  # noqa: F401 - what every process loads

        print(json.dumps(asdict(StepCost(mebibytes=peak_mebibytes("cpu")))))
        return
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    print(json.dumps(asdict(cost(config_from_dict(request["config"]), device, request["steps"]))))


def cost(config: Config, device: str, steps: int) -> StepCost:
    """Take the steps in this process, on random images: their content does not change the work."""
    import statistics

    from study import make_model

    model = make_model(config, 0, device)
    times = timed_steps(model, config, device, steps)
    # CPU memory is resident, so it holds an empty process's too; the caller takes that off.
    return StepCost(
        seconds=statistics.median(times[1:]),
        first_seconds=times[0],
        mebibytes=peak_mebibytes(device),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        latent_dims=config.model.latent_dims,
        groups=len(config.model.groups),
        device=device_name(device),
    )


def timed_steps(model: Any, config: Config, device: str, steps: int) -> list[float]:
    """Seconds of the first step, and of `steps` more."""
    import time

    import torch

    from hvae_codec.model.keyed_noise import keyed_noise
    from hvae_codec.train.optimizer import FlatOptimizer
    from hvae_codec.train.update import make_network, update

    optimizer = FlatOptimizer(model, config.optimizer, config.train.ema_decay)
    network = make_network(model, config.train)
    count, side = config.train.batch_size, config.model.image_size
    images = torch.randint(0, 256, (count, config.model.channels, side, side), dtype=torch.uint8).to(device)
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    times = []
    for step in range(1, steps + 2):
        wait()
        started = time.perf_counter()
        noise = keyed_noise(config.model, [(0, step, i) for i in range(count)], device)
        update(network, optimizer, config, images, noise, step)
        wait()
        times.append(time.perf_counter() - started)
    return times


def peak_mebibytes(device: str) -> float:
    """Most memory so far: allocated by torch on a GPU, resident on the CPU."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 2**20)


def device_name(device: str) -> str:
    """The GPU's name, or "cpu"."""
    import torch

    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
