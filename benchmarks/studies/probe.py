"""What the kept latents are worth to a classifier: linear probes on latents, pixels and their principal components.

    python benchmarks/studies/probe.py --out studies/probe
    python benchmarks/studies/probe.py --out studies/probe --data quickstart/data --run quickstart/runs/photos

Three tasks, none of whose images the model was trained on: digits (scikit-learn's, the model is trained on one half,
the other is probed), photo patches by photograph, and the same with whole bands of each photograph left out, so that
no test patch shares a pixel with a training patch. Latents are read back from stores that `encode` wrote: kept ones as
integer codes, and as float32 to tell what rounding costs; they are ranked on training images. Principal components are
those of a fold's training images, or of all images the model was trained on. A control is all latents of the model
before its first step. See linear_probe.py for the classifier.

The same command again goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import folder_above  # noqa: F401
import numpy as np
import sklearn
from linear_probe import (
    INNER_FOLDS,
    STRENGTHS,
    Fold,
    Score,
    cross_validate,
    principal_components,
    random_folds,
    standard_error,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray
from results import COLOURS, print_table, save_figure, write_markdown, write_results
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from study import make_model, use_threads

from hvae_codec import HVAE, ImageSource, KLStats, LatentMask, kl_stats, load_model, make_codec, open_images
from hvae_codec.config import with_settings
from hvae_codec.data.sample import Box, choose_patches, load_photographs, write_sample_data
from hvae_codec.encode.pipeline import encode_images
from hvae_codec.errors import HvaeCodecError, UsageError
from hvae_codec.model.checkpoint import load_run_config
from hvae_codec.presets import load_preset
from hvae_codec.storage.files import write_atomically
from hvae_codec.train.loop import start_run, train
from hvae_codec.train.run_folder import read_origin
from hvae_codec_cli.cutoffs import parse_keep

DIGITS, PATCHES, BANDS = "digits", "photo patches", "photo patches, bands"
KEPT, ALL, PIXELS = "kept latents, codes", "all latents", "pixels"
UNROUNDED, UNTRAINED = "kept latents, float32", "all latents, untrained"
FOLD_PCA, MODEL_PCA = "PCA, training folds", "PCA, model's images"
STYLES: dict[str, dict[str, Any]] = {
    KEPT: {"marker": "o"},
    UNROUNDED: {"marker": "v", "linestyle": (0, (1, 1))},
    FOLD_PCA: {"marker": "s", "linestyle": "--"},
    MODEL_PCA: {"marker": "^", "linestyle": "-."},
    ALL: {"marker": "*", "markersize": 11, "linestyle": "none"},
    PIXELS: {"marker": "D", "linestyle": "none"},
    UNTRAINED: {"marker": "x", "linestyle": "none"},
}
PATCH_SIZE = 32
STATS_IMAGES = 1000
"""Training images that latents are ranked on, at most."""


@dataclass(frozen=True)
class Data:
    """A model, the images it was trained on, and labelled images that it never saw."""

    model: HVAE
    training: ImageSource
    probed: ImageSource

    @property
    def labels(self) -> NDArray[np.str_]:
        """[N], of the probed images."""
        return np.array(self.probed.labels)


@dataclass(frozen=True)
class Features:
    """One representation of the probed images."""

    name: str
    values: NDArray[np.float32]
    """[N, dims]"""
    keep: str = ""
    """The shares of latent dimensions it belongs to."""
    components: int | None = None
    """How many principal components of a fold's training images stand for the values; None: the values themselves."""

    @property
    def dims(self) -> int:
        """Numbers an image."""
        return self.components or self.values.shape[1]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    use_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = list(run_tasks(options))
    folds = [
        {key: row[key] for key in ("task", "representation", "dims")} | f for row in rows for f in row.pop("folds")
    ]
    write_results(options.out, "probe_folds", folds, vars(options))
    write_results(options.out, "probe", rows, vars(options))
    report(options, rows)
    save_figure(plot(rows), options.out / "probe.png")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("studies/probe"), help="folder of data, runs and results")
    parser.add_argument("--data", type=Path, help="photo patches of sample-data; made below --out where not given")
    parser.add_argument("--run", type=Path, help="run that was trained on --data; trained below --out where not given")
    parser.add_argument("--tasks", nargs="+", choices=["digits", "photos"], default=["digits", "photos"])
    parser.add_argument(
        "--keep", nargs="+", default=["0.5%", "1%", "3%", "10%", "30%", "100%"], help="shares of latent dimensions"
    )
    parser.add_argument("--splits", type=int, default=5, help="folds of a cross-validation")
    parser.add_argument("--repeats", type=int, default=2, help="cross-validations, each with other folds")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="change the presets, as train does")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", "--quick", action="store_true", help="a moment of training, to see that it works")
    options = parser.parse_args(arguments)
    if options.run and not options.data:
        parser.error("--run needs --data, the photo patches that it was trained on")
    if options.small:
        options.keep, options.splits, options.repeats = ["1%", "10%"], 2, 1
        options.set = ["train.steps=2", "train.batch_size=2", *options.set]
    return options


# --- what is probed --------------------------------------------------------------------------------------------------


def run_tasks(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row a task and representation."""
    keeps = [parse_keep(text) for text in options.keep]
    make_folds = partial(random_folds, splits=options.splits, repeats=options.repeats)
    if "digits" in options.tasks:
        data = digits(options)
        yield from probe(DIGITS, data, make_features(data, keeps, options.out), make_folds(data.labels), options.out)
    if "photos" in options.tasks:
        data, boxes = photos(options)
        features = make_features(data, keeps, options.out)
        yield from probe(PATCHES, data, features, make_folds(data.labels), options.out)
        bands = band_folds(data.labels, boxes, options.splits, options.repeats)
        yield from probe(BANDS, data, features, bands, options.out)


def digits(options: argparse.Namespace) -> Data:
    """scikit-learn's digits, 8 × 8: one stratified half for the model, the other to be probed."""
    loaded = load_digits()
    images = (loaded.images * 255 / 16).round().astype(np.uint8)
    halves = train_test_split(np.arange(len(images)), test_size=0.5, stratify=loaded.target, random_state=0)
    sources = []
    for name, half in zip(("model", "probe"), halves, strict=True):
        path = options.out / f"digits-{name}.npz"
        np.savez(path, images=images[half], labels=loaded.target[half])
        sources.append(open_images(path, size=images.shape[1], channels=1))
    model = trained_model(options, "digits8", sources[0])
    return Data(model, sources[0].split("train"), sources[1])


def photos(options: argparse.Namespace) -> tuple[Data, list[Box]]:
    """The patches of `sample-data`: train/ for the model, val/ to be probed; and where the latter were cut."""
    folder = options.data or options.out / f"patches{PATCH_SIZE}"
    write_sample_data(folder, size=PATCH_SIZE)  # leaves what is there as it is, and refuses anything else
    source = open_images(folder, size=PATCH_SIZE, channels=3)
    model = given_model(options.run, source) if options.run else trained_model(options, "tiny32", source)
    probed = source.split("val")
    cut = choose_patches(load_photographs(), PATCH_SIZE)
    return Data(model, source.split("train"), probed), [cut[name] for name in probed.names]


def given_model(run: Path, source: ImageSource) -> HVAE:
    """The model of `run`; `UsageError` where it may have been trained on the images to be probed."""
    model, origin = load_model(run), read_origin(run)
    if origin is None or origin.training != source.split("train").fingerprint:
        raise UsageError(f"{run} was not trained on the train/ patches of --data; leave out --run to train a model")
    return model


def trained_model(options: argparse.Namespace, preset: str, source: ImageSource) -> HVAE:
    """The preset trained on `source`'s share for training, below --out; a finished run is only read."""
    run = options.out / "runs" / preset
    config = start_run(run, with_settings(load_preset(preset), ["train.precision=fp32", *options.set]), resume=False)
    result = train(run, config, source.split("train"), source.split("val"))
    print(f"{run}: {result.step:,} steps, held-out NELBO {result.validation.nelbo:.3f} bits/dim")
    return load_model(run)


def band_folds(labels: NDArray, boxes: Sequence[Box], splits: int, repeats: int) -> list[Fold]:
    """Folds that leave out a band of each photograph's held-out strip, and of the rest what shares a pixel with it.

    Bands run across the strip, which the boxes' longer extent tells; each repeat shifts them.
    """
    corners, side = np.array([(box.top, box.left) for box in boxes]), boxes[0].side
    near = (np.abs(corners[:, None] - corners) < side).all(axis=2) & (labels[:, None] == labels)
    place = np.empty(len(boxes))  # along the strip, from 0 to below 1
    for name in np.unique(labels):
        own = corners[labels == name]
        along = own[:, np.argmax(np.ptp(own, axis=0))]
        places, location_of = np.unique(along, return_inverse=True)
        place[labels == name] = location_of / len(places)
    folds = []
    for repeat in range(repeats):
        band = np.floor(place * splits + repeat / repeats).astype(int) % splits
        for number in range(splits):
            test = band == number
            training = ~near[test].any(axis=0)
            folds.append(Fold(np.flatnonzero(training), np.flatnonzero(test)))
    return folds


# --- representations -------------------------------------------------------------------------------------------------


def make_features(data: Data, keeps: Sequence[float], out: Path) -> list[Features]:
    """Latents at each share, all latents, pixels, and principal components of each number of kept latents."""
    stats = kl_stats(data.model, data.training.evenly(STATS_IMAGES))
    latents = partial(stored_latents, data.model, data.probed, stats, out=out)
    masks = different_masks(stats, keeps)
    kept = [Features(KEPT, latents(mask, codec="int"), shares) for shares, mask in masks]
    pruned = [(shares, mask) for shares, mask in masks if mask.kept_dims < mask.dims]
    unrounded = [Features(UNROUNDED, latents(mask, codec="float32"), shares) for shares, mask in pruned]
    pixels, seen = flat_pixels(data.probed), flat_pixels(data.training)
    sizes = [features.dims for features in kept]
    components = principal_components(seen.shape).fit(seen).transform(pixels)
    reduced = [Features(MODEL_PCA, components[:, :size]) for size in capped(sizes, components.shape[1])]
    everything = Features(ALL, all_latents(data.model, data, out))
    control = Features(UNTRAINED, all_latents(untrained(data.model), data, out))
    return [*kept, *unrounded, everything, control, Features(PIXELS, pixels), *reduced]


def fold_components(features: Sequence[Features], folds: Sequence[Fold]) -> list[Features]:
    """Pixels to be reduced to each number of kept latents, or to as many as the smallest fold gives."""
    pixels = next(f.values for f in features if f.name == PIXELS)
    most = min(pixels.shape[1], *(len(fold.training) - 1 for fold in folds))
    sizes = capped([f.dims for f in features if f.name == KEPT], most)
    return [Features(FOLD_PCA, pixels, components=size) for size in sizes]


def capped(sizes: Sequence[int], most: int) -> list[int]:
    """`sizes`, none above `most`, each once.

    >>> capped([8, 64, 128], 50)
    [8, 50]
    """
    return list(dict.fromkeys(min(size, most) for size in sizes))


def different_masks(stats: KLStats, keeps: Sequence[float]) -> list[tuple[str, LatentMask]]:
    """Masks, smallest first, each with the shares that lead to it: "1%, 2%"."""
    found: dict[int, tuple[list[str], LatentMask]] = {}  # masks nest, so their size tells them apart
    for keep in sorted(keeps):
        mask = LatentMask.from_keep(stats, keep)
        found.setdefault(mask.kept_dims, ([], mask))[0].append(f"{100 * keep:g}%")
    return [(", ".join(shares), mask) for shares, mask in found.values()]


def all_latents(model: HVAE, data: Data, out: Path) -> NDArray[np.float32]:
    """[N, all dims]: posterior means, each group's given those before it."""
    stats = kl_stats(model, data.training.evenly(1))  # for what is kept; float32 latents have no quantiser steps
    return stored_latents(model, data.probed, stats, LatentMask.everything(stats), out, "float32")


def stored_latents(
    model: HVAE, images: ImageSource, stats: KLStats, mask: LatentMask, out: Path, codec: str
) -> NDArray[np.float32]:
    """[N, kept dims]: what a store of `images` holds, as z."""
    with tempfile.TemporaryDirectory(prefix="store-", dir=out) as folder:
        store = encode_images(
            model, images, Path(folder) / "probed.zarr", mask=mask, codec=make_codec(codec), stats=stats
        )
        latents = store.latents(slice(0, len(store))).values()
    return np.concatenate([z.reshape(len(z), -1) for z in latents], axis=1)


def untrained(model: HVAE) -> HVAE:
    """The model as it was before its first training step: what its layers alone make of the images."""
    origin = read_origin(model.run) if model.run else None
    fresh = make_model(load_run_config(model.run), origin.seed if origin else 0, "cpu")
    return fresh.requires_grad_(False).eval()


def flat_pixels(source: ImageSource) -> NDArray[np.float32]:
    """[N, C · H · W], 0 to 1."""
    return source.read(range(len(source))).reshape(len(source), -1) / np.float32(255)


# --- results ---------------------------------------------------------------------------------------------------------


def probe(
    task: str, data: Data, features: Sequence[Features], folds: Sequence[Fold], out: Path
) -> Iterator[dict[str, Any]]:
    """One row a representation; `folds` in it are the scores of each."""
    scores: list[tuple[Features, list[Score]]] = []
    for each in [*features, *fold_components(features, folds)]:
        scores.append((each, measured(each, data.labels, folds, out)))
        accuracy = np.mean([score.accuracy for score in scores[-1][1]])
        print(f"{task}: {each.name}, {each.dims:,} dims: {accuracy:.3f}", flush=True)
    about = {"task": task, "images": len(data.labels), "chance": chance(data.labels)}
    about |= {"classes": len(np.unique(data.labels)), "training": np.mean([len(fold.training) for fold in folds])}
    for each, own in scores:
        row = about | {"representation": each.name, "keep": each.keep, "dims": each.dims}
        for name in ("accuracy", "balanced"):
            row |= estimate(name, [getattr(score, name) for score in own], folds)
        for name, other in references(each, scores).items():
            row |= estimate(name, [a.accuracy - b.accuracy for a, b in zip(own, other, strict=True)], folds)
        yield row | {"folds": [{"fold": number, **asdict(score)} for number, score in enumerate(own)]}


def measured(features: Features, labels: NDArray, folds: Sequence[Fold], out: Path) -> list[Score]:
    """Scores of each fold, measured now or read where the same was measured before."""
    digest = hashlib.sha256(repr((features.components, STRENGTHS, INNER_FOLDS, sklearn.__version__)).encode())
    for array in (features.values, labels, *(part for fold in folds for part in (fold.training, fold.test))):
        digest.update(repr((array.dtype, array.shape)).encode() + array.tobytes())
    path = out / "measured" / f"{digest.hexdigest()}.json"
    if not path.exists():
        scores = cross_validate(features.values, labels, folds, features.components)
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, json.dumps([asdict(score) for score in scores]).encode() + b"\n")
    return [Score(**score) for score in json.loads(path.read_text())]


def references(features: Features, scores: Sequence[tuple[Features, list[Score]]]) -> dict[str, list[Score]]:
    """What a representation is compared with, on the same folds."""
    found = {} if features.name == ALL else {"from_all": next(own for each, own in scores if each.name == ALL)}
    if features.name in (KEPT, UNROUNDED):
        of_model = {each.dims: own for each, own in scores if each.name == MODEL_PCA}
        found["from_pca"] = of_model[min(features.dims, max(of_model))]
    return found


def estimate(name: str, values: Sequence[float], folds: Sequence[Fold]) -> dict[str, float]:
    """Mean over folds, and its standard error."""
    return {name: float(np.mean(values)), f"{name}_se": standard_error(values, folds)}


def chance(labels: NDArray) -> float:
    """Accuracy of naming the largest class every time."""
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels))


def report(options: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> None:
    columns = ["task", "representation", "keep", "dims", "accuracy, %", "balanced accuracy, %"]
    columns += ["from all latents", "from PCA, model's images"]
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        for row in own:
            line = [task, row["representation"], row["keep"], f"{row['dims']:,}"]
            line += [percent(row, "accuracy"), percent(row, "balanced")]
            lines.append([*line, percent(row, "from_all", "+"), percent(row, "from_pca", "+")])
        lines.append(
            [task, "chance", "", "", f"{100 * own[0]['chance']:.1f}", f"{100 / own[0]['classes']:.1f}", "", ""]
        )
    caption = f"{options.splits} folds, {options.repeats} times, differences in points"
    caption += "; ± is the standard error over folds, corrected"
    print_table("Linear probes", columns, lines, caption)
    write_markdown(options.out / "probe.md", columns, lines)


def percent(row: dict[str, Any], name: str, sign: str = "") -> str:
    return f"{100 * row[name]:{sign}.1f} ± {100 * row[f'{name}_se']:.1f}" if name in row else "–"


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """Share of wrong answers against the numbers an image has, a panel a task."""
    panels = list(dict.fromkeys(row["task"] for row in rows))
    figure = Figure(figsize=(4.8 * len(panels), 4.8), layout="constrained")
    for axes, task in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        plot_task(axes, [row for row in rows if row["task"] == task])
    figure.axes[0].set_ylabel("wrong, %")
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize="small")
    return figure


def plot_task(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    for (name, style), colour in zip(STYLES.items(), (*COLOURS, "#000000"), strict=True):
        own = sorted((row for row in rows if row["representation"] == name), key=lambda row: row["dims"])
        dims, wrong = [row["dims"] for row in own], [100 * (1 - row["accuracy"]) for row in own]
        error = [100 * row["accuracy_se"] for row in own]
        axes.errorbar(dims, wrong, error, label=name, color=colour, capsize=3, **style)
    axes.axhline(100 * (1 - rows[0]["chance"]), color="grey", linestyle=":", label="chance")
    axes.set(xscale="log", yscale="log", xlabel="numbers an image", title=rows[0]["task"])
    ticks = [tick for tick in (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 90) if tick >= axes.get_ylim()[0]]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    try:
        main()
    except HvaeCodecError as error:
        sys.exit(f"probe.py: {error}")
