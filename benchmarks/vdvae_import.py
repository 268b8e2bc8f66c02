"""From a published VDVAE to decoded images on a CPU: time and peak memory of import, analyze-kl, encode and decode.

    OMP_NUM_THREADS=1 python benchmarks/vdvae_import.py [--models cifar10] [--images 24] [--batch-size 8] [--out OUT]

The weights are random, in files of the published size, names, order and container: convolutions uniform as at the
start of training, and the priors' last ones small in place of zero, so that every signal and KL is an ordinary number.
imagenet32 has a log, as its download; cifar10 has none, and takes its preset. Images are patches of `sample-data`, two
thirds of them for the ranking. Each command is a process of its own. Its seconds are those of processors, which other
work on the machine hardly changes, and include the start; with several threads waiting counts, too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
import resource
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from command_memory import link_images, run_command
from results import print_table, write_results
from torch import Tensor

SMALL_PRIOR = 0.1  # of the usual scale, for the last convolutions of the priors
COMMON = {
    "zdim": 16,
    "bottleneck_multiple": 0.25,
    "custom_width_str": "",
    "no_bias_above": 64,
    "num_mixtures": 10,
    "warmup_iters": 100.0,
    "wd": 0.01,
    "adam_beta1": 0.9,
    "adam_beta2": 0.9,
}


class Published(NamedTuple):
    """One download."""

    file: str  # up to -model-ema.th
    has_log: bool
    parameters: int
    hparams: Mapping[str, Any]


MODELS = {
    "cifar10": Published(
        "cifar10-seed1-iter-1050000",
        False,
        39_145_700,
        COMMON
        | {
            "dataset": "cifar10",
            "width": 384,
            "enc_blocks": "32x11,32d2,16x6,16d2,8x6,8d2,4x3,4d4,1x3",
            "dec_blocks": "1x1,4m1,4x2,8m4,8x5,16m8,16x10,32m16,32x21",
        },
    ),
    "imagenet32": Published(
        "imagenet32-iter-1700000",
        True,
        119_280_868,
        COMMON
        | {
            "dataset": "imagenet32",
            "width": 512,
            "lr": 0.00015,
            "ema_rate": 0.999,
            "grad_clip": 200.0,
            "skip_threshold": 300.0,
            "n_batch": 8,
            "mpi_size": 32,
            "enc_blocks": "32x15,32d2,16x9,16d2,8x8,8d2,4x6,4d4,1x6",
            "dec_blocks": "1x2,4m1,4x4,8m4,8x9,16m8,16x19,32m16,32x40",
        },
    ),
}


def main(given: Sequence[str] | None = None) -> None:
    options = parse(given)
    with tempfile.TemporaryDirectory(prefix="vdvae_import-") as name, contextlib.chdir(name):  # runs/latest is there
        folder = Path(name)
        run_command(folder / "memory", ["sample-data", str(folder / "patches"), "--size", "32"])
        link_images(folder / "patches", folder / "data" / "train", -(-2 * options.images // 3))
        link_images(folder / "patches", folder / "data" / "val", options.images // 3)
        rows = [row for model in options.models for row in measured(model, folder, options)]
    columns = ("model", "command", "CPU seconds", "images", "CPU seconds/image", "peak memory, MiB")
    print_table("VDVAE of random weights", columns, [as_cells(row) for row in rows])
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        write_results(options.out, "vdvae_import", rows, vars(options))


def parse(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    parser.add_argument("--images", type=int, default=24, help="two thirds are for training")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument(
        "--out", type=lambda text: Path(text).resolve(), help="a folder for vdvae_import.csv and vdvae_import.json"
    )
    return parser.parse_args(given)


def measured(model: str, folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Run the commands on a checkpoint that is made for them, and yield what each took."""
    checkpoint = write_published(folder, MODELS[model])
    run, data = str(folder / "runs" / model), str(folder / "data")
    hyper = [] if MODELS[model].has_log else ["--preset", f"{model}_vdvae"]
    batches = ["--batch-size", str(options.batch_size)]
    encode = [data, "--model", run, "--evaluate", "none", *batches]
    store = str(folder / f"{model}.zarr")
    commands = {
        "import": ["import", str(checkpoint), "--out", run, *hyper],
        "analyze-kl --keep 3%": ["analyze-kl", data, "--model", run, "--keep", "3%", *batches],
        "encode --keep 3%": ["encode", *encode, store, "--keep", "3%"],
        "encode --keep 100%": ["encode", *encode, f"{store}.whole", "--keep", "100%"],
        "decode": ["decode", store, f"{store}.images", *batches],
    }
    for name, arguments in commands.items():
        before = cpu_seconds()
        kilobytes = run_command(folder / "memory", arguments)
        seconds, images = cpu_seconds() - before, 0 if name == "import" else options.images
        yield {"model": model, "command": name, "seconds": seconds, "images": images, "MiB": kilobytes / 1024}
    checkpoint.unlink()


def cpu_seconds() -> float:
    """Return what the processes that were run and ended took of all processors."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def as_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    each = f"{row['seconds'] / row['images']:,.2f}" if row["images"] else "–"
    return row["model"], row["command"], f"{row['seconds']:,.1f}", str(row["images"] or "–"), each, f"{row['MiB']:,.0f}"


def write_published(folder: Path, published: Published) -> Path:
    """Write averaged weights as they are published, and the log beside them if there is one."""
    state = OrderedDict(tensors(published.hparams))
    counted = sum(tensor.numel() for tensor in state.values())
    if counted != published.parameters:
        raise SystemExit(f"{published.file} has {published.parameters:,} parameters as published, not {counted:,}")
    path = folder / f"{published.file}-model-ema.th"
    torch.save(state, path)
    if published.has_log:
        lines = [json.dumps({"type": "hparam", "key": k, "value": v}) for k, v in sorted(published.hparams.items())]
        (folder / f"{published.file}-log.jsonl").write_text("\n".join(lines) + "\n")
    return path


def tensors(hparams: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield names and random tensors in the order of a published file, for networks of one width."""
    width, variates = hparams["width"], hparams["zdim"]
    bottom_up, top_down = (resolutions(hparams[key]) for key in ("enc_blocks", "dec_blocks"))
    yield from conv("encoder.in_conv", 3, width, 3)
    for number, resolution in enumerate(bottom_up):
        yield from block(f"encoder.enc_blocks.{number}", width, width, resolution, hparams, len(bottom_up) ** -0.5)
    yield "decoder.gain", torch.ones(1, width, 1, 1)
    yield "decoder.bias", torch.zeros(1, width, 1, 1)
    scale = len(top_down) ** -0.5
    for number, resolution in enumerate(top_down):
        name = f"decoder.dec_blocks.{number}"
        yield from block(f"{name}.enc", 2 * width, 2 * variates, resolution, hparams)
        yield from block(f"{name}.prior", width, 2 * variates + width, resolution, hparams, SMALL_PRIOR)
        yield from conv(f"{name}.z_proj", variates, width, 1, scale)
        yield from block(f"{name}.resnet", width, width, resolution, hparams, scale)
    for number, resolution in enumerate(resolution for resolution, _ in groupby(top_down)):
        yield f"decoder.bias_xs.{number}", torch.zeros(1, width, resolution, resolution)
    yield from conv("decoder.out_net.out_conv", width, 10 * hparams["num_mixtures"], 1)


def resolutions(blocks: str) -> list[int]:
    """List the resolution of every block: `4m1,4x2` is three at 4."""
    found = [re.fullmatch(r"(\d+)(?:x(\d+)|[md]\d+)?", entry) for entry in blocks.split(",")]
    return [int(entry[1]) for entry in found if entry for _ in range(int(entry[2] or 1))]


def block(
    name: str, inputs: int, outputs: int, resolution: int, hparams: Mapping[str, Any], scale: float = 1.0
) -> Iterator[tuple[str, Tensor]]:
    """Yield the four convolutions of a block; `scale` is of the last one's weights."""
    middle, kernel = int(hparams["width"] * hparams["bottleneck_multiple"]), 3 if resolution > 2 else 1
    yield from conv(f"{name}.c1", inputs, middle, 1)
    yield from conv(f"{name}.c2", middle, middle, kernel)
    yield from conv(f"{name}.c3", middle, middle, kernel)
    yield from conv(f"{name}.c4", middle, outputs, 1, scale)


def conv(name: str, inputs: int, outputs: int, kernel: int, scale: float = 1.0) -> Iterator[tuple[str, Tensor]]:
    bound = scale / math.sqrt(inputs * kernel**2)
    yield f"{name}.weight", torch.empty(outputs, inputs, kernel, kernel).uniform_(-bound, bound)
    yield f"{name}.bias", torch.zeros(outputs)


if __name__ == "__main__":
    main()
