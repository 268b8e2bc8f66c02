"""What a slim model saves: parameters, bytes in a store, multiplications, images/s of encoding and decoding.

    python benchmarks/slim_models.py [--presets tiny32 cifar10_C1] [--keep 0.03] [--seconds 60] [--out results/slim]

Before is the whole model with a mask, after is the slim model, which keeps everything it has; both take the same images
and give the same codes. Models and masks are those of `encode_speed`: random weights, the lowest resolutions' variates
("lowest") or random ones of all groups ("anywhere"). Multiplications are those of convolutions and matrix products, per
image. A store carries the whole model before, and the slim one's decoder after. Encoding and decoding, before and
after, alternate for `--seconds` per row, and each counts with its fastest time, so that what else runs slows all alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from encode_speed import Case, untrained
from results import print_table, write_results
from torch.utils.flop_counter import FlopCounterMode

from hvae_codec.cpu import reuse_freed_memory
from hvae_codec.encode.coder import LatentCoder
from hvae_codec.encode.embedded_model import model_weights
from hvae_codec.model.decoder import decoder_of
from hvae_codec.model.hvae import HVAE
from hvae_codec.prune.mask import LatentMask
from hvae_codec.prune.slim import slim


def main(given: Sequence[str] | None = None) -> None:
    options = parse(given)
    torch.set_num_threads(options.threads)
    reuse_freed_memory()
    rows = [measured(case, options) for preset in options.presets for case in untrained(preset, options.keep)]
    report(rows, options)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        write_results(options.out, "slim_models", rows, vars(options))


def parse(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["tiny32", "cifar10_C1"])
    parser.add_argument("--keep", type=float, default=0.03, help="share of the latent dimensions")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0, help="timed, per row")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a folder for slim_models.csv and slim_models.json")
    return parser.parse_args(given)


def measured(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one model and mask."""
    before, after = case.coder, slimmed(case.coder)
    mask, config = before.mask, before.model.config
    shape = (options.batch_size, config.channels, *2 * [config.image_size])
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    stored = before.encode(images)
    works: dict[str, Callable[[], object]] = {
        "encode_before": lambda: before.encode(images),
        "encode_after": lambda: after.encode(images),
        "decode_before": lambda: before.decode_pixels(stored),
        "decode_after": lambda: after.decode_pixels(stored),
    }
    counts = {f"{name}_multiplications": multiplications(work) / len(images) for name, work in works.items()}
    speed = {f"{name}_images_per_second": len(images) / s for name, s in fastest(works, options.seconds).items()}
    row: dict[str, Any] = {"case": case.name, "kept_share": mask.kept_share}
    row |= {"groups_with_latents": sum(bool(keep.any()) for keep in mask.keep), "groups": len(mask.keep)}
    row |= {f"parameters_{name}": parameters(coder.model) for name, coder in (("before", before), ("after", after))}
    row |= {"embedded_bytes_before": len(model_weights(before.model)), "embedded_bytes_after": decoder_bytes(after)}
    return row | counts | speed


def slimmed(coder: LatentCoder) -> LatentCoder:
    """The coder of the slim model, which stores the same."""
    everything = LatentMask(tuple(keep[keep] for keep in coder.mask.keep), coder.mask.resolutions)
    return LatentCoder(slim(coder.model, coder.mask.keep), everything, coder.codec, coder.steps)


def parameters(model: HVAE) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def decoder_bytes(coder: LatentCoder) -> int:
    """What a store carries of a model with `--embed decoder`."""
    return len(model_weights(decoder_of(coder.model, coder.mask.keep)))


def multiplications(work: Callable[[], object]) -> float:
    """Those of convolutions and matrix products; the counter counts an addition beside each."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2


def fastest(works: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Fewest seconds of each, in turn until `seconds` are over; two rounds at least, the first of which warms up."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken["decode_after"]) < 2:
        for name, work in works.items():
            begun = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - begun)
    return {name: min(times[1:]) for name, times in taken.items()}


def report(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    pairs = [("parameters_{}", 1e6, 3), ("encode_{}_multiplications", 1e6, 3), ("decode_{}_multiplications", 1e6, 3)]
    pairs += [("embedded_bytes_{}", 1e6, 2)]
    sizes = [[*named(row), *changes(row, pairs)] for row in rows]
    columns = ("model, kept", "groups with latents", "parameters, M", "ratio")
    columns += ("encode, M mult.", "ratio", "decode, M mult.", "ratio", "embedded, MB", "ratio")
    print_table("Whole with a mask -> slim", columns, sizes)
    pairs = [("encode_{}_images_per_second", 1, 1), ("decode_{}_images_per_second", 1, 1)]
    speeds = [[*named(row), *changes(row, pairs)] for row in rows]
    title = f"Images/s, batch {options.batch_size}, {options.threads} threads, the fastest in {options.seconds:g} s"
    print_table(title, ("model, kept", "groups with latents", "encode", "ratio", "decode", "ratio"), speeds)


def named(row: dict[str, Any]) -> tuple[str, str]:
    return f"{row['case']}, {100 * row['kept_share']:.2f}%", f"{row['groups_with_latents']} of {row['groups']}"


def changes(row: dict[str, Any], pairs: Sequence[tuple[str, float, int]]) -> Iterator[str]:
    """Each figure before and after, in its unit and decimals, and the ratio."""
    for figure, unit, decimals in pairs:
        before, after = row[figure.format("before")], row[figure.format("after")]
        yield f"{before / unit:,.{decimals}f} -> {after / unit:,.{decimals}f}"
        yield f"{after / before:.2f}"


if __name__ == "__main__":
    main()
