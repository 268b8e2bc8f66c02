"""What a command will take, told by a trial: sentences for the terminal, and plain data for scripts."""

from __future__ import annotations

from typing import Any

from ..analysis.cutoff_cost import ChosenCutoff, StoredCost
from ..analysis.encode_forecast import EncodeOutlook
from ..analysis.step_choice import ChosenCodec
from ..encode.forecast import EncodeForecast
from ..train.forecast import TrainForecast
from .counts import count
from .cutoff_sentences import choice_sentences


def train_forecast_data(found: TrainForecast) -> dict[str, Any]:
    """Return the forecast of a training as plain data."""
    return {
        "training_images": found.images,
        "images_per_step": found.batch_size,
        "steps": found.steps,
        "steps_left": found.steps_left,
        "epochs": found.epochs,
        "image_bytes": found.image_bytes,
        "cached_bytes": found.cached_bytes,
        "seconds_per_step": found.seconds_per_step,
        "seconds": found.seconds,
        "not_tried": found.not_tried,
    }


def train_forecast_sentences(found: TrainForecast) -> list[str]:
    """Say what a training will take."""
    left = "" if not found.steps_taken else f", {found.steps_left:,} left"
    work = f"{count(found.steps, 'step')}{left} of {count(found.batch_size, 'image')}: {found.epochs:,.1f} epochs of "
    mib = f"{found.image_bytes / 2**20:,.1f} MiB"
    held = f"held in memory, {mib}" if found.cached_bytes else f"read again in each epoch, as they are {mib}"
    if found.seconds_per_step is None or found.seconds is None:
        pace = f"No step was tried: {found.not_tried}."
    else:
        pace = f"That takes {about(found.seconds)} here ({found.seconds_per_step:.3g} s a step), and validations."
    return [f"{work}{count(found.images, 'training image')}.", f"The images are {held}.", pace]


def encode_forecast_data(found: EncodeForecast) -> dict[str, Any]:
    """Return the forecast of an encode or an append as plain data."""
    return {
        "images_to_encode": found.images,
        "images_measured": found.measured_on,
        "row_groups": found.row_groups,
        "images_per_row_group": found.row_group_size,
        "store_bytes": found.bytes,
        "latent_bytes": found.latent_bytes,
        "latent_bytes_per_image": found.latent_bytes / found.images,
        "table_bytes": found.table_bytes,
        "encoding_seconds": found.seconds,
    }


def outlook_data(found: EncodeOutlook) -> dict[str, Any]:
    """Return all facts of an encode as plain data."""
    return {
        **encode_forecast_data(found.forecast),
        "ranking_images": found.ranked_on,
        "ranking_seconds": found.ranking_seconds,
        "cutoff_cost_seconds": found.cost_seconds,
        "seconds": found.seconds,
        "cutoff": cutoff_data(found.chosen),
    }


def cutoff_data(chosen: ChosenCutoff) -> dict[str, Any]:
    """Return a cutoff and its cost, null if that was not measured, as plain data."""
    mask, cost = chosen.cutoff.mask, chosen.cost
    return {
        "rule": chosen.cutoff.rule,
        "kept_dims": mask.kept_dims,
        "dims": mask.dims,
        "granularity": mask.granularity,
        "codec": chosen.codec and codec_data(chosen.codec),
        "cost": cost
        and {
            "nelbo_bits_per_dim": cost.kept,
            "nelbo_of_all_bits_per_dim": cost.everything,
            "change_bits_per_dim": cost.kept - cost.everything,
            "change_standard_error_bits_per_dim": cost.change_se if cost.images > 1 else None,
            "images": cost.images,
            "held_out": cost.held_out,
            "stored": _stored_data(cost.stored),
        },
    }


def codec_data(chosen: ChosenCodec) -> dict[str, Any]:
    """Return a codec, and what its step was found by, null if it was not looked for, as plain data."""
    found = chosen.found
    return {
        **chosen.codec.to_dict(),
        "search": found
        and {
            "tolerance": found.tolerance,
            "is_tolerable": found.is_tolerable,
            "sampled_distortion_bits_per_dim": found.sampled,
            "distortion_bits_per_dim": found.distortion,
            "change_standard_error_bits_per_dim": found.change_se if found.images > 1 else None,
            "confidence": found.confidence if found.images > 1 else None,
            "images": found.images,
            "held_out": found.held_out,
            "path": None if chosen.path is None else str(chosen.path),
            "is_new": chosen.is_new,
            "is_of_these_images": chosen.is_of_these_images,
        },
    }


def _stored_data(stored: StoredCost) -> dict[str, Any]:
    return {
        "bits_per_dim": stored.bits,
        "distortion_bits_per_dim": stored.distortion,
        "description_length_bits_per_dim": stored.total,
        "change_from_samples_bits_per_dim": stored.change,
        "change_standard_error_bits_per_dim": stored.change_se if stored.images > 1 else None,
        "psnr": stored.psnr,
        "images": stored.images,
    }


def encode_forecast_sentences(found: EncodeForecast) -> list[str]:
    """Say what an encode or an append will take."""
    groups = f"{count(found.row_groups, 'row group')} of {count(found.row_group_size, 'image')}"
    latents = f"latents {found.latent_bytes:,} ({found.latent_bytes / found.images:,.1f} per image)"
    old = f", those that are there already {found.old_latent_bytes:,}" if found.old_latent_bytes else ""
    return [
        f"{count(found.images, 'image')} to encode, in a store of {groups}.",
        f"About {found.bytes:,} bytes on disk: {latents}{old}, names, labels and the rest {found.table_bytes:,}; "
        f"measured on {count(found.measured_on, 'image')}.",
        f"Encoding them takes {about(found.seconds)} here.",
    ]


def outlook_sentences(found: EncodeOutlook) -> list[str]:
    """Say all facts of an encode."""
    before = []
    if found.ranking_seconds:
        ranked = f"a ranking of this model, which the run has not ({about(found.ranking_seconds)}"
        before.append(f"Before: {ranked}; here: on {count(found.ranked_on, 'image')}).")
    if found.cost_seconds:
        before.append(f"Before: the cutoff, the step and what they cost ({about(found.cost_seconds)}).")
    return [*choice_sentences(found.chosen), *encode_forecast_sentences(found.forecast), *before]


def about(seconds: float) -> str:
    """Write an estimated time as a person does.

    >>> about(0.2), about(7), about(75), about(5000), about(200_000)
    ('less than 1 s', 'about 7 s', 'about 1.2 min', 'about 1.4 h', 'about 2.3 days')
    """
    if seconds < 1:
        return "less than 1 s"
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"about {seconds / length:.1f} {unit}"
    return f"about {seconds:.0f} s"
