"""Chooses the cutoff and the codec that were asked for, and measures what they cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..config import ROW_GROUP_SIZE
from ..data.sources import ImageSource
from ..encode.pipeline import SAMPLE_IMAGES
from ..engine.engine import Engine
from ..engine.tally import Tally
from ..model.hvae import HVAE
from ..progress import Stage
from ..prune.cutoffs import Cutoff, CutoffSpec, fitting, tolerated_cutoff
from ..prune.kl_stats import KLStats
from ..prune.tolerance import Tolerated, find_tolerated
from ..store.compressors import ZSTD
from ..store.quantiser import Codec, IntCodec
from .cutoff_table import measure_masks
from .step_choice import AutoStep, ChosenCodec, choose_codecs


@dataclass(frozen=True)
class CutoffCost:
    """What the same images cost with the kept latents and with all; means over images, in bits/dim unless said."""

    kept: float  # NELBO
    everything: float  # NELBO
    change_se: float  # standard error of the paired difference
    images: int
    held_out: bool | None  # whether training leaves them out; None if that is not known
    stored: StoredCost


@dataclass(frozen=True)
class StoredCost:
    """What some of the images take and cost that were really encoded and decoded; see `MeasuredMask.closed_loop`."""

    bits: float  # compressed latents, bits/dim
    distortion: float  # -log2 p(x given decoded z), bits/dim
    change: float  # mean paired difference of that from posterior samples, bits/dim
    change_se: float  # standard error of that; NaN of one image
    psnr: float  # dB
    images: int

    @property
    def total(self) -> float:
        """The description length: what is stored, and what is missing then, bits/dim."""
        return self.bits + self.distortion


@dataclass(frozen=True)
class ChosenCutoff:
    """A cutoff, how it was found, and what it costs."""

    cutoff: Cutoff
    tolerated: Tolerated | None = None  # the search for a tolerance; None if none was asked for
    codec: ChosenCodec | None = None  # None if none was asked for
    cost: CutoffCost | None = None  # None if it was not measured


def choose_cutoff(
    spec: CutoffSpec,
    model: HVAE,
    stats: KLStats,
    images: ImageSource,
    *,
    batch_size: int | None,
    seed: int,
    stage: Stage,
    engine: Engine | None = None,
    device: str | None = None,
    tally: Tally | None = None,
) -> ChosenCutoff:
    """Choose the cutoff that `spec` asks for; if that is a tolerance, search for it on `images`."""
    cutoff = fitting([spec], model)[-1].cutoff(model, stats)
    if cutoff is not None:
        return ChosenCutoff(cutoff)
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "seed": seed,
        "engine": engine,
        "device": device,
        "tally": tally,
    }
    tolerance, progress = spec.tolerance or 0.0, stage("Looking for the cutoff")
    found = find_tolerated(model, images, stats, tolerance, granularity=spec.granularity, progress=progress, **options)
    return ChosenCutoff(tolerated_cutoff(found), found)


def choose_and_measure(
    spec: CutoffSpec,
    model: HVAE,
    stats: KLStats,
    held_out: ImageSource,
    codec: Codec | AutoStep,
    *,
    batch_size: int | None,
    seed: int,
    stage: Stage,
    images: int | None = SAMPLE_IMAGES,
    is_shared: bool = False,
    packing: str = ZSTD,
    engine: Engine | None = None,
    device: str | None = None,
    tally: Tally | None = None,
) -> ChosenCutoff:
    """Choose cutoff and codec as asked for, and measure their cost on the `held_out` images, on `engine` as `kl_stats`.

    These are at most `images`: all if that is None; if it is 0, no cost is measured. With `is_shared`, other processes
    must choose the same step. Bytes are of codes in `packing`, see `EncodeOptions`.
    """
    work: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "engine": engine, "device": device, "tally": tally}
    chosen = choose_cutoff(spec, model, stats, held_out.evenly(SAMPLE_IMAGES), stage=stage, **work)
    chosen = with_codec(chosen, codec, model, stats, held_out, stage=stage, is_shared=is_shared, **work)
    if images == 0:
        return chosen
    measured, progress = held_out if images is None else held_out.evenly(images), stage("Cost of this cutoff")
    return replace(chosen, cost=cutoff_cost(model, measured, stats, chosen, packing=packing, progress=progress, **work))


def with_codec(
    chosen: ChosenCutoff,
    codec: Codec | AutoStep,
    model: HVAE,
    stats: KLStats,
    images: ImageSource,
    **how: Any,
) -> ChosenCutoff:
    """Choose the codec that goes with a cutoff; `how` is further arguments of `choose_codecs`."""
    (own,) = choose_codecs(codec, model, [chosen.cutoff.mask], stats, images, **how)
    return replace(chosen, codec=own)


def cutoff_cost(
    model: HVAE,
    images: ImageSource,
    stats: KLStats,
    chosen: ChosenCutoff,
    **work: Any,
) -> CutoffCost:
    """Measure `images` with a cutoff and without pruning; `work` is further arguments of `measure_masks`.

    At most 256 of them, evenly spaced, are encoded and decoded, with steps of 1 if no codec was chosen.
    """
    mask, codec = chosen.cutoff.mask, chosen.codec.codec if chosen.codec else IntCodec()
    _, (kept,), dense = measure_masks(model, stats, images, [mask], [codec], ROW_GROUP_SIZE, **work)
    decoded, (_, error) = kept.decoded, kept.row.change_from(dense)
    bits = 8 * decoded.bytes_per_image / model.config.image_dims
    stored = StoredCost(bits, *kept.closed_loop, decoded.psnr, len(decoded.distortion))
    return CutoffCost(kept.row.nelbo.mean(), dense.nelbo.mean(), error, len(images), images.held_out, stored)
