"""What quantiser steps cost, and what the codes take in each packing, on held-out images of one run or several.

    python benchmarks/codecs.py runs/photos runs/seed1 runs/seed2 --data data --out codecs

Images are encoded and decoded in memory, closed loop. Of a run that `prune` made, all that is left is kept. Packings
are those of stores, chunk by chunk: `blosc` is format version 4's, `zstd` and `archive` version 5's; `zstd, 256` and
`archive, 256` have chunks of 256 images. `prior` is no packing: it is the length that an ideal coder would reach with
the model's own Gaussian prior, the std of each variate multiplied by the number that is best on these very images.
Shard indices, names and metadata are not counted. With several runs the last table has means, and ± their standard
deviation.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from results import print_table, write_markdown, write_results
from scipy.special import ndtr
from torch import Tensor

from hvae_codec.analysis.quality import mean_squared_error, psnr
from hvae_codec.analysis.reconstruction import SizeMeter
from hvae_codec.analysis.step_search import find_step
from hvae_codec.cpu import reuse_freed_memory
from hvae_codec.data.sources import ImageSource, open_images
from hvae_codec.encode.array_dtypes import array_dtypes
from hvae_codec.encode.coder import EncodeChooser, GroupColumns, LatentCoder, quantiser_steps
from hvae_codec.model.checkpoint import load_model
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.precision import full_float32
from hvae_codec.model.top_down import LatentGroup
from hvae_codec.prune.kl_stats import KLStats, kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.prune.shared_prefix import masked_outputs
from hvae_codec.store.arrays import compressed_bytes
from hvae_codec.store.narrowing import fits
from hvae_codec.store.quantiser import IntCodec
from hvae_codec_cli.cutoffs import parse_keep

BATCH, CHUNK = 64, 256
SCALES = np.geomspace(0.1, 4.0, 75)  # of the prior's std: neighbours differ by 5%
COLUMNS = ("step", "PSNR", "-log2 p(x given z)", "blosc", "zstd", "zstd, 256", "archive", "archive, 256", "prior")
NAMES = {"psnr": 2, "distortion": 3, **dict.fromkeys(COLUMNS[3:], 3)}
"""Figures after the step, with their decimals."""


@dataclass
class Step:
    """What is measured of one step."""

    step: float
    coder: LatentCoder
    meters: dict[str, SizeMeter]
    errors: list[NDArray[np.float64]] = field(default_factory=list)  # mean squared errors of images
    distortions: list[NDArray[np.float64]] = field(default_factory=list)
    codes: list[dict[int, NDArray]] = field(default_factory=list)
    priors: list[dict[int, NDArray[np.float32]]] = field(default_factory=list)  # see `PriorChooser`


class PriorChooser(EncodeChooser):
    """Also records where each kept z stands in its prior: distance from the mean and half a step, both in stds."""

    def __init__(self, coder: LatentCoder) -> None:
        super().__init__(coder)
        self.places: dict[int, NDArray[np.float32]] = {}  # by group: float32 [2, B, columns, ...]

    def store(self, group: LatentGroup, kept: GroupColumns) -> Tensor:
        """Record and return what is stored of `group`."""
        codes, prior = super().store(group, kept), group.prior.variates(kept.variates)
        z, std = self.coder.codec.decode(codes, kept.steps), kept.take(prior.std)
        distance, half = (z - kept.take(prior.mean)) / std, kept.steps / (2.0 * std)
        self.places[group.index] = torch.stack([distance, half.expand_as(distance)]).cpu().numpy()
        return codes


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    reuse_freed_memory()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for run in options.runs:
        model = load_model(run, "cpu")
        source = open_images(options.data, size=model.config.image_size, channels=model.config.channels)
        own = measured(model, source, options)
        rows += [{"run": str(run), **row} for row in own]
        print_table(f"{run}: {own[0]['dims']:,} codes per image; bits/dim", COLUMNS, cells([own]))
    write_results(options.out, "codecs", rows, {**vars(options), "runs": [str(run) for run in options.runs]})
    tables = [[row for row in rows if row["run"] == str(run)] for run in options.runs]
    if len(tables) > 1:
        print_table(f"Means of {len(tables)} runs; bits/dim", COLUMNS, cells(tables))
    write_markdown(options.out / "codecs.md", COLUMNS, cells(tables))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", default="data")
    parser.add_argument("--keep", default="3%")
    parser.add_argument("--steps", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.46])
    parser.add_argument("--images", type=int, default=800, help="held-out ones, at most")
    parser.add_argument("--ranking-images", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("codecs"))
    return parser.parse_args(arguments)


def measured(model: HVAE, source: ImageSource, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each step asked for, and a last one for the step that `encode` finds on these images."""
    stats = kl_stats(model, source.split("train").evenly(options.ranking_images))
    pruned = model.pruning is not None
    mask = LatentMask.everything(stats) if pruned else LatentMask.from_keep(stats, parse_keep(options.keep))
    images = source.split("val").evenly(options.images)
    auto = 1.0 if model.config.learned_steps else find_step(model, images, mask, stats).step
    steps = [as_step(model, mask, stats, step) for step in [*options.steps, auto]]
    for batch in images.batches(BATCH):
        encode(model, steps, torch.from_numpy(batch))
    rows = [row_of(step, model) for step in steps]
    rows[-1]["auto"] = True
    return rows


def as_step(model: HVAE, mask: LatentMask, stats: KLStats, step: float) -> Step:
    codec = IntCodec(step)
    types = array_dtypes(mask, codec, stats)
    before = dict.fromkeys(types, codec.dtype)
    meters = {"blosc": SizeMeter("blosc", before), "zstd": SizeMeter("zstd", types)}
    meters["archive"] = SizeMeter("archive", types)
    return Step(step, LatentCoder(model, mask, codec, quantiser_steps(mask, codec, stats)), meters)


@torch.no_grad()
@full_float32()
def encode(model: HVAE, steps: Sequence[Step], images: Tensor) -> None:
    """Encode, decode and measure a batch with all steps."""
    likelihood, activations = model.likelihood, model.activations(images)
    seen = likelihood.quantised(images).cpu().numpy()
    for step in steps:
        choice = PriorChooser(step.coder)
        # Alone: of groups that two coders share, only the first one's choice is asked.
        (output,) = masked_outputs(model, activations, [step.coder], [choice])
        step.codes.append(choice.stored())
        step.priors.append(choice.places)
        for meter in step.meters.values():
            meter.add(step.codes[-1])
        step.distortions.append((likelihood.nll(output, images).double() / model.nats_per_bit_dim).numpy())
        step.errors.append(mean_squared_error(seen, likelihood.to_pixels(likelihood.mean(output)).cpu().numpy()))


def row_of(step: Step, model: HVAE) -> dict[str, Any]:
    """Figures of a step; sizes in bits/dim."""
    distortions, mse = np.concatenate(step.distortions), np.concatenate(step.errors)
    images, dims = len(distortions), model.config.image_dims
    joined = {r: np.concatenate([codes[r] for codes in step.codes]) for r in step.codes[0]}
    sizes: dict[str, float] = {name: meter.total_bytes() for name, meter in step.meters.items()}
    sizes |= {f"{name}, {CHUNK}": in_chunks(joined, name) for name in ("zstd", "archive")}
    bits = {name: 8 * size / images / dims for name, size in sizes.items()}
    return {
        "step": step.step,
        "dims": sum(codes[0].size for codes in joined.values()),
        "psnr": psnr(mse),
        "distortion": float(distortions.mean()),
        **{name: bits[name] for name in COLUMNS[3:-1]},
        "prior": sum(prior_bits(places) for places in joined_places(step.priors)) / images / dims,
        "auto": False,
    }


def in_chunks(joined: Mapping[int, NDArray], packing: str) -> float:
    """Bytes of all codes in chunks of `CHUNK` images, int8 where they fit."""
    total = 0
    for codes in joined.values():
        narrow = codes.astype("int8") if fits(codes, np.dtype("int8")) else codes
        total += sum(compressed_bytes(narrow[i : i + CHUNK], packing) for i in range(0, len(narrow), CHUNK))
    return total


def joined_places(batches: Sequence[dict[int, NDArray]]) -> list[NDArray[np.float32]]:
    """Of each group, [2, images, columns, ...]."""
    return [np.concatenate([batch[group] for batch in batches], axis=1) for group in batches[0]]


def prior_bits(places: NDArray[np.float32]) -> float:
    """Code length in bits of a group's columns, all images, at the best scale of each column's prior std."""
    columns = np.moveaxis(places, 2, 0).reshape(places.shape[2], 2, -1).astype(np.float64)
    return float(sum(min(length(distance, half, scale) for scale in SCALES) for distance, half in columns))


def length(distance: NDArray, half: NDArray, scale: float) -> float:
    """-log2 of the mass in each code's bin, added up."""
    near = np.abs(distance)  # on the left of the mean, where the normal distribution's function is exact
    mass = ndtr((half - near) / scale) - ndtr((-half - near) / scale)
    return float(-np.log2(np.maximum(mass, 2.0**-60)).sum())


def cells(tables: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[str]]:
    """Rows to print: means over runs."""
    return [[step_name(rows), *(figure(rows, name) for name in NAMES)] for rows in zip(*tables, strict=True)]


def step_name(rows: Sequence[Mapping[str, Any]]) -> str:
    step = np.mean([row["step"] for row in rows])
    return f"auto ({step:.2f})" if rows[0]["auto"] else f"{step:g}"


def figure(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    values, digits = [row[name] for row in rows], NAMES[name]
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


if __name__ == "__main__":
    main()
