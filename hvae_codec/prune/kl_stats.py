"""Measures the KL of each latent dimension, averaged over images in one pass, and ranks by it (paper section 7)."""

from __future__ import annotations

import io
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.sources import Images, as_source
from ..engine.engine import Engine
from ..engine.given import Executors, given_engine
from ..engine.tally import Tally
from ..errors import DataError, ModelError
from ..model.batch_size import batch_size_of
from ..model.checkpoint import model_hash
from ..model.gaussian import DiagonalGaussian
from ..model.hvae import HVAE
from ..model.keyed_noise import keyed_rows, noise_of
from ..model.precision import full_float32
from ..model.top_down import LatentGroup
from ..progress import Progress
from ..ranges import flags_of, ranges_text
from ..storage.files import write_atomically
from .parts import Cut, Part, PartWork, measured_parts

Granularity = Literal["variate", "position"]
"""The unit that is kept or pruned whole: a variate at all its positions, or each latent dimension by itself."""


@dataclass(frozen=True)
class KLStats:
    """Averages and maxima over images, one array per latent group in top-down order.

    Files of older versions have no maxima: None.
    """

    kl_bits: tuple[NDArray[np.float64], ...]  # KL(q || p) of each latent dimension in bits, [variates, H, W]
    posterior_std: tuple[NDArray[np.float64], ...]  # average posterior std of each variate, [variates]
    images: int  # images averaged over
    model_hash: str  # the model they were measured with
    source: str = ""  # fingerprint of the images they were measured on
    unpruned_dims: int = 0  # latent dimensions before the run was pruned; 0 if it was not
    left: tuple[NDArray[np.bool_], ...] | None = None  # variates that pruning left, [variates] per group; None: all
    largest_mean: tuple[NDArray[np.float64], ...] | None = None  # largest |posterior mean| of each variate, [variates]

    @property
    def dims(self) -> int:
        """Latent dimensions that shares are of: those of the unpruned model."""
        return self.unpruned_dims or sum(kl.size for kl in self.kl_bits)

    @property
    def per_variate(self) -> tuple[NDArray[np.float64], ...]:
        """Bits per latent dimension of each variate, averaged over positions; [variates] per group."""
        return tuple(kl.mean(axis=(1, 2)) for kl in self.kl_bits)

    @property
    def per_group(self) -> NDArray[np.float64]:
        """Bits per image of each group, summed over variates and positions; [groups]."""
        return np.array([kl.sum() for kl in self.kl_bits])


@dataclass(frozen=True)
class Ranking:
    """Units in the order of the statistics: groups, then variates, then positions row by row."""

    kl_bits: NDArray[np.float64]  # average KL of each unit, bits per latent dimension (paper, section 7)
    dims: NDArray[np.int64]  # latent dimensions of each unit
    left: NDArray[np.bool_]  # whether the run's own pruning left each unit

    @classmethod
    def of(cls, stats: KLStats, granularity: Granularity) -> Ranking:
        """Collect the units of a granularity."""
        sizes = [math.prod(kl.shape[1:]) for kl in stats.kl_bits]
        left = stats.left or [np.ones(len(kl), dtype=bool) for kl in stats.kl_bits]
        if granularity == "position":
            kl = np.concatenate([kl.ravel() for kl in stats.kl_bits])
            each = [np.repeat(flags, size) for flags, size in zip(left, sizes, strict=True)]
            return cls(kl, np.ones(len(kl), dtype=np.int64), np.concatenate(each))
        dims = [np.full(len(kl), size, dtype=np.int64) for kl, size in zip(stats.kl_bits, sizes, strict=True)]
        return cls(np.concatenate(stats.per_variate), np.concatenate(dims), np.concatenate(left))

    @property
    def units(self) -> int:
        """Units that are left."""
        return int(self.left.sum())

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Numbers of the units that are left, from the highest KL to the lowest; ties go to the earlier one."""
        return np.lexsort((-self.kl_bits, ~self.left))[: self.units]

    @cached_property
    def cumulative_dims(self) -> NDArray[np.int64]:
        """Latent dimensions of the first unit of `order`, the first two, and so on."""
        return np.cumsum(self.dims[self.order])

    def highest(self, count: int) -> NDArray[np.bool_]:
        """Mark the `count` first units of `order`, in the order of the statistics."""
        keep = np.zeros(len(self.dims), dtype=bool)
        keep[self.order[:count]] = True
        return keep


def kl_stats(
    model: HVAE,
    images: Images,
    *,
    batch_size: int | None = None,
    seed: int = 0,
    sample: bool = True,
    progress: Progress | None = None,
    engine: Engine | None = None,
    executor: Executors | None = None,
    device: str | None = None,
    tally: Tally | None = None,
) -> KLStats:
    """Average the KL and posterior std of every latent dimension over `images` (a source, or uint8 [N, C, H, W]).

    Also finds how far posterior means are from 0 at most. z is a posterior sample in each group, or the posterior's
    mean if not `sample`; a model that was trained for codes has these, their lengths in place of the KL, and its
    learned steps in place of the std. An image's noise depends on
    `seed` and its index in its file or folder alone. Sums run in float64; nothing grows with the number of images.
    Batches are tasks of `engine`, or of an `executor`, whose number of workers changes no bit; without either they are
    measured in this process. Other processes load the model of the same run, onto a `device` of that kind, cpu or cuda,
    or of the model's. `tally` counts their tasks. Raises `DataError` if there are no images, they do not fit the model,
    or its output is not finite; `EngineError` if the workers are lost; `ModelError` if they do not find the model,
    `UsageError` if it has no run that they could load.
    """
    source = as_source(images)
    if not len(source):
        raise DataError("there are no images to measure the KL on; give at least one")
    work, cut = KLWork(model, device, seed=seed, sample=sample), Cut.of(batch_size_of(model, batch_size, device))
    total: _Total | None = None
    with given_engine(engine, executor) as used:
        for part in measured_parts(used, work, source, cut, progress, tally, sums=True):
            total = part if total is None else total.add_(part)
    assert total is not None  # there is an image
    return _average(total.cpu(), model, len(source), source.fingerprint)


class _Total(NamedTuple):
    """What was found over some images: groups in top-down order, then variates, then positions."""

    sums: Tensor  # float64 [dims + variates]: of the KL, then of the posterior stds
    largest: Tensor  # float64 [variates]: of |posterior mean|

    def add_(self, other: _Total) -> _Total:
        """Add what was found over other images, in place."""
        self.sums.add_(other.sums)
        torch.maximum(self.largest, other.largest, out=self.largest)
        return self

    def cpu(self) -> _Total:
        """Take it to the host."""
        return _Total(self.sums.cpu(), self.largest.cpu())


class KLWork(PartWork["tuple[_Sums, Callable[..., None]]", _Total]):
    """Adds up KL and posterior std over the images of a part, and finds the largest posterior means."""

    def __init__(self, model: HVAE, device: str | None = None, *, seed: int, sample: bool) -> None:
        super().__init__(model, device)
        self.seed, self.sample = seed, sample

    def prepare(self, model: HVAE) -> tuple[_Sums, Callable[..., None]]:
        """Make sums, and what adds a batch to them; they are emptied for each part, as a recording knows them."""
        sums = _Sums(model)
        return sums, model.recording.of(sums.add, model.device, state=sums.tensors)

    def measure(self, tools: tuple[_Sums, Callable[..., None]], part: Part) -> _Total:
        """Add up over a part; the result is on the model's device if that is at hand."""
        sums, add = tools
        sums.empty()
        config, device = sums.model.config, sums.model.device
        for numbers, batch in part.batches():
            keys = part.keys(numbers, self.seed)
            drawn = [keyed_rows(config, keys, device, len(config.groups) - 1)] if self.sample else []
            add(torch.from_numpy(batch), *drawn)
            part.report(numbers.stop)
        return sums.total().cpu() if part.is_away else sums.total()


class _Sums:
    """KL of every latent dimension and posterior std of every variate, added up over images on the model's device.

    Also the largest |posterior mean| of every variate: codes follow from it (`code_dtypes`).
    """

    def __init__(self, model: HVAE) -> None:
        self.model = model
        zeros, groups = partial(torch.zeros, dtype=torch.float64, device=model.device), model.config.groups
        # Positions first, in memory, as the activations have them.
        self.kl = [zeros(g.resolution, g.resolution, g.variates).permute(2, 0, 1) for g in groups]
        self.std, self.largest = ([zeros(g.variates) for g in groups] for _ in range(2))

    @property
    def tensors(self) -> list[Tensor]:
        """All sums and maxima, which stay where they are."""
        return [*self.kl, *self.std, *self.largest]

    def empty(self) -> None:
        """Begin anew, in the tensors that a recording knows."""
        for tensor in self.tensors:
            tensor.zero_()

    def total(self) -> _Total:
        """Copy all sums into one tensor, and all maxima into another."""
        return _Total(torch.cat([tensor.flatten() for tensor in (*self.kl, *self.std)]), torch.cat(self.largest))

    @torch.no_grad()
    @full_float32()
    def add(self, images: Tensor, drawn: Tensor | None = None) -> None:
        """Add a batch, uint8 [B, C, H, W], with the noise that was `drawn`, [B, dims]; without, z is the mean."""
        noise = None if drawn is None else noise_of(self.model.config, drawn)
        activations, top_down = self.model.activations(images), self.model.top_down

        def choose(group: LatentGroup) -> Tensor:
            return self._choose(group, None if noise is None else noise(group))

        # What the last group's z would lead to is of no interest.
        last = len(self.kl) - 1
        state = top_down.run_groups(activations, choose, len(images), range(last))
        self._choose(top_down.group(activations, last, state), None)

    def _choose(self, group: LatentGroup, noise: Tensor | None) -> Tensor:
        """Choose z of `group` as the model's bound has it, and add what is measured of it."""
        if self.model.config.learned_steps:
            z, lengths, steps = *group.rounded_posterior(), group.steps
            of_codes = DiagonalGaussian(z, steps.expand(len(z), -1, 1, 1))  # the averages of steps are exact
            self._add(group.index, lengths, of_codes)
            return z
        z = group.observed_z(noise, partial(self._add, group.index))
        if self.model.keep is None:
            return z
        of_prior = group.prior_mean if noise is None else group.prior.sample(noise)
        return torch.where(self.model.keep[group.index], z, of_prior)

    def _add(self, group: int, kl: Tensor, posterior: DiagonalGaussian) -> None:
        # For so many, several times faster on a CPU than a sum over the first axis; a GPU has one kernel for that.
        if kl.device.type == "cpu" and kl[0].numel() > 4096:
            for image in kl:
                self.kl[group] += image
        else:
            self.kl[group] += kl.sum(dim=0, dtype=torch.float64)
        self.std[group] += posterior.std.mean(dim=(2, 3)).sum(dim=0, dtype=torch.float64)
        furthest = posterior.mean.abs().amax(dim=(0, 2, 3))
        torch.maximum(self.largest[group], furthest, out=self.largest[group])


def _average(total: _Total, model: HVAE, images: int, source: str) -> KLStats:
    """Divide the sums over all images by their number."""
    groups, sums = model.config.groups, total.sums
    variates = [g.variates for g in groups]
    parts = sums.split([g.dims for g in groups] + variates)
    if not bool(torch.isfinite(sums).all()):
        broken = [index for index, kl in enumerate(parts[: len(groups)]) if not bool(torch.isfinite(kl).all())]
        where = f"latent group {broken[0]}" if broken else "a latent group"
        raise DataError(f"the KL of {where} is not finite; the model's weights are damaged")
    nats, std = ([(part / images).numpy() for part in half] for half in (parts[: len(groups)], parts[len(groups) :]))
    shapes = [(g.variates, g.resolution, g.resolution) for g in groups]
    kl_bits = tuple(kl.reshape(shape) / math.log(2.0) for kl, shape in zip(nats, shapes, strict=True))
    largest = tuple(part.numpy() for part in total.largest.split(variates))
    return _restricted(KLStats(kl_bits, tuple(std), images, model_hash(model), source, largest_mean=largest), model)


def _restricted(stats: KLStats, model: HVAE) -> KLStats:
    """Say what the model's run was pruned to; the KL of what is not left is 0."""
    if model.keep is None:
        return replace(stats, unpruned_dims=model.config.unpruned_dims if model.pruning else 0)
    left = tuple(keep.flatten().cpu().numpy() for keep in model.keep)
    kl = tuple(np.where(keep[:, None, None], kl, 0.0) for keep, kl in zip(left, stats.kl_bits, strict=True))
    return replace(stats, kl_bits=kl, left=left, unpruned_dims=model.config.unpruned_dims)


def save_kl_stats(path: Path, stats: KLStats) -> None:
    """Write `stats` as `.npz` (no pickles), atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header: dict[str, Any] = {"images": stats.images, "model_hash": stats.model_hash, "source": stats.source}
    header |= {"unpruned_dims": stats.unpruned_dims} if stats.unpruned_dims else {}
    header |= {"left": [ranges_text(flags) for flags in stats.left]} if stats.left else {}
    named = {"kl_bits": stats.kl_bits, "posterior_std": stats.posterior_std}
    named |= {"largest_mean": stats.largest_mean} if stats.largest_mean else {}
    arrays = {f"{name}_{i}": array for name, arrays in named.items() for i, array in enumerate(arrays)}
    whole = io.BytesIO()
    np.savez_compressed(whole, header=np.array(json.dumps(header)), **arrays)  # type: ignore[arg-type]
    write_atomically(path, whole.getvalue())


def _left(header: Mapping[str, Any], kl: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.bool_], ...] | None:
    if "left" not in header:
        return None
    return tuple(flags_of(*pair, "variates") for pair in zip(header["left"], map(len, kl), strict=True))


def load_kl_stats(path: Path) -> KLStats:
    """Read what `save_kl_stats` wrote; `ModelError` if it is missing or damaged, `PermissionError` if it is shut."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            groups = range(sum(name.startswith("kl_bits_") for name in file.files))
            names = ["kl_bits", "posterior_std", *(["largest_mean"] if "largest_mean_0" in file.files else [])]
            if not groups or len(file.files) != 1 + len(names) * len(groups):
                raise ValueError("arrays are missing")
            kl, std, *largest = (tuple(file[f"{name}_{i}"] for i in groups) for name in names)
            images, model_hash, source = (header[key] for key in ("images", "model_hash", "source"))
            dims, left = header.get("unpruned_dims", 0), _left(header, kl)
            return KLStats(kl, std, images, model_hash, source, dims, left, *largest)
    except FileNotFoundError:
        raise ModelError(f"there is no ranking at {path}; make one with hvae-codec analyze-kl DATA") from None
    except PermissionError:
        raise
    except (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error):
        raise ModelError(f"cannot read the ranking {path}; make it again with hvae-codec analyze-kl DATA") from None
