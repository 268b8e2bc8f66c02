"""Whole variates against single latent dimensions: which mask costs less at equal dimensions, and at equal bytes?

    cd quickstart && python ../benchmarks/studies/granularity.py --model runs/latest --data data --out granularity

For every keep fraction, the mask of whole variates is compared with two masks of single dimensions, ranked by their own
average KL: one that keeps exactly as many dimensions, and the largest that takes no more bytes (found by bisection, by
really encoding). Both see the same images and noise, so differences are paired. Ranked on training images, measured on
held-out ones; bytes, PSNR and SSIM are of `--pictures` of these.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import folder_above  # noqa: F401
import torch
from results import print_table, write_markdown, write_results

from hvae_codec.analysis.reconstruction import (
    Reconstruction,
    ReconstructionMeter,
    SizeMeter,
    example_indices,
    reconstructions,
)
from hvae_codec.cpu import reuse_freed_memory
from hvae_codec.data.sources import ImageSource, open_images
from hvae_codec.encode.array_dtypes import array_dtypes
from hvae_codec.encode.coder import LatentCoder, quantiser_steps
from hvae_codec.model.checkpoint import load_model
from hvae_codec.model.hvae import HVAE
from hvae_codec.prune.kl_stats import KLStats, kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.prune.sweep import SweepRow, sweep
from hvae_codec.store.compressors import ZSTD
from hvae_codec.store.quantiser import IntCodec
from hvae_codec_cli.cutoffs import parse_keep

COLUMNS = ("kept", "dims", "bytes/image", "NELBO", "position - variate", "PSNR", "SSIM")


def main() -> None:
    arguments = parse()
    reuse_freed_memory()
    model = load_model(arguments.model, "cpu")
    config = model.config
    source = open_images(arguments.data, size=config.image_size, channels=config.channels)
    held_out = source.split("val").evenly(arguments.images)
    pictures = held_out.evenly(arguments.pictures)
    stats = kl_stats(model, source.split("train").evenly(arguments.images))
    masks: dict[str, LatentMask] = {}
    for keep in arguments.keep.split(","):
        masks |= three_masks(model, stats, pictures, parse_keep(keep))
    rows = sweep(model, held_out, list(masks.values()))
    decoded = decode(model, stats, pictures, list(masks.values()))
    table = [as_row(*each) for each in zip(masks, rows, compared_with(rows), decoded, strict=True)]
    report(table, arguments, len(held_out))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/latest"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("granularity"), help="folder for CSV, JSON and Markdown")
    parser.add_argument("--keep", default="1%,3%,5%,10%,20%")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--pictures", type=int, default=256)
    return parser.parse_args()


def three_masks(model: HVAE, stats: KLStats, images: ImageSource, keep: float) -> dict[str, LatentMask]:
    """Whole variates, as many single dimensions, and single dimensions in as many bytes."""
    variates = LatentMask.from_keep(stats, keep)
    name, dims = f"{100 * keep:g}%", variates.kept_dims
    return {
        f"{name}, variates": variates,
        f"{name}, positions, equal dims": LatentMask.from_rank(stats, dims, granularity="position"),
        f"{name}, positions, equal bytes": in_bytes(
            model, stats, images, encoded_bytes(model, stats, images, variates)
        ),
    }


def in_bytes(model: HVAE, stats: KLStats, images: ImageSource, limit: float) -> LatentMask:
    """The most single dimensions that take at most `limit` bytes an image."""
    fits, too_many = 1, LatentMask.everything(stats).dims + 1
    # A thousandth of the dimensions changes no figure that is shown.
    while too_many - fits > max(1, fits // 1000):
        middle = (fits + too_many) // 2
        mask = LatentMask.from_rank(stats, middle, granularity="position")
        if encoded_bytes(model, stats, images, mask) <= limit:
            fits = middle
        else:
            too_many = middle
    return LatentMask.from_rank(stats, fits, granularity="position")


def encoded_bytes(model: HVAE, stats: KLStats, images: ImageSource, mask: LatentMask) -> float:
    meter = make_meter(mask, stats)
    coder = make_coder(model, stats, mask)
    for batch in images.batches(64):
        meter.add(coder.encode(torch.from_numpy(batch)))
    return meter.total_bytes() / len(images)


def make_coder(model: HVAE, stats: KLStats, mask: LatentMask) -> LatentCoder:
    return LatentCoder(model, mask, IntCodec(), quantiser_steps(mask, IntCodec(), stats))


def make_meter(mask: LatentMask, stats: KLStats) -> SizeMeter:
    return SizeMeter(ZSTD, array_dtypes(mask, IntCodec(), stats))


def decode(model: HVAE, stats: KLStats, images: ImageSource, masks: list[LatentMask]) -> list[Reconstruction]:
    coders, first = [make_coder(model, stats, mask) for mask in masks], 0
    meters = [make_meter(mask, stats) for mask in masks]
    with torch.no_grad(), ReconstructionMeter(coders, len(images), example_indices(images), meters) as decoding:
        for batch in images.batches(64):
            pixels = torch.from_numpy(batch)
            decoding.add(model.activations(pixels), pixels, first)
            first += len(batch)
        return reconstructions([decoding.compared()])[1]


def compared_with(rows: list[SweepRow]) -> list[SweepRow]:
    """The row of whole variates that each is compared with."""
    return [rows[number - number % 3] for number in range(len(rows))]


def as_row(name: str, row: SweepRow, variates: SweepRow, decoded: Reconstruction) -> dict[str, object]:
    change, error = row.change_from(variates)
    return {
        "kept": name,
        "dims": row.mask.kept_dims,
        "bytes": decoded.bytes_per_image,
        "nelbo": row.nelbo.mean(),
        "nelbo_minus_variates": change,
        "nelbo_minus_variates_se": error,
        "psnr": decoded.psnr,
        "ssim": decoded.ssim,
    }


def report(table: list[dict[str, object]], arguments: argparse.Namespace, images: int) -> None:
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_results(arguments.out, "granularity", table, vars(arguments))
    cells = [
        (
            str(row["kept"]),
            f"{row['dims']:,}",
            f"{row['bytes']:.1f}",
            f"{row['nelbo']:.4f}",
            f"{row['nelbo_minus_variates']:+.5f} ± {row['nelbo_minus_variates_se']:.5f}" if number % 3 else "",
            f"{row['psnr']:.2f}",
            f"{row['ssim']:.4f}",
        )
        for number, row in enumerate(table)
    ]
    print_table(f"{images} held-out images", COLUMNS, cells, "NELBO in bits/dim; ± is a paired standard error")
    write_markdown(arguments.out / "granularity.md", COLUMNS, cells)


if __name__ == "__main__":
    main()
