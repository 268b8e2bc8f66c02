"""KL per latent dimension, averaged over images in one streaming pass: what pruning ranks by (paper section 7)."""

from __future__ import annotations

import io
import json
import math
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError, ModelError
from ..images import ImageSource, as_source
from ..model.checkpoint import model_hash, replace_atomically
from ..model.hvae import HVAE, gaussian_noise
from ..model.precision import full_float32
from ..model.top_down import LatentGroup

Progress = Callable[[int, int], None]
"""Called with the images done and the images in all."""


@dataclass(frozen=True)
class KLStats:
    """Averages over images, one array a latent group in top-down order."""

    kl_bits: tuple[NDArray[np.float64], ...]
    """KL(q || p) of each latent dimension in bits, [variates, H, W]."""
    posterior_std: tuple[NDArray[np.float64], ...]
    """Posterior standard deviation of each variate, [variates], averaged over positions too."""
    images: int
    """Images averaged over."""
    model_hash: str
    """The model they were measured with."""
    source: str = ""
    """Fingerprint of the images they were measured on."""

    @property
    def per_variate(self) -> tuple[NDArray[np.float64], ...]:
        """Bits per latent dimension of each variate, [variates] a group: averaged over positions."""
        return tuple(kl.mean(axis=(1, 2)) for kl in self.kl_bits)

    @property
    def per_group(self) -> NDArray[np.float64]:
        """Bits an image of each group, [groups]: summed over variates and positions."""
        return np.array([kl.sum() for kl in self.kl_bits])


def kl_stats(
    model: HVAE,
    images: ImageSource | NDArray[np.uint8] | Tensor,
    *,
    batch_size: int = 64,
    seed: int = 0,
    sample: bool = True,
    progress: Progress | None = None,
) -> KLStats:
    """Average KL and posterior std of every latent dimension over `images` (a source, or uint8 [N, C, H, W]).

    z is a posterior sample in each group, or the posterior's mean where `sample` is False. Sums run in float64 and
    count images, so a short last batch weighs what it should. Raises `DataError` where there are no images, they do
    not fit the model, or its output is not finite.
    """
    source = as_source(images)
    if not len(source):
        raise DataError("there are no images to measure the KL on; give at least one")
    noise = gaussian_noise(torch.Generator(model.device).manual_seed(seed)) if sample else None
    sums = _Sums(model, noise)
    done = 0
    for batch in source.batches(batch_size):
        sums.add(torch.from_numpy(batch))
        done += len(batch)
        if progress is not None:
            progress(done, len(source))
    return sums.average(done, source.fingerprint)


class _Sums:
    """Chooses z in each group while adding up its KL and posterior std, in float64 on the model's device."""

    def __init__(self, model: HVAE, noise: Callable[[LatentGroup], Tensor] | None) -> None:
        self.model = model
        self.noise = noise
        shapes = [(g.variates, g.resolution, g.resolution) for g in model.config.groups]
        self.kl = [torch.zeros(shape, dtype=torch.float64, device=model.device) for shape in shapes]
        self.std = [torch.zeros(shape[0], dtype=torch.float64, device=model.device) for shape in shapes]

    @torch.no_grad()
    @full_float32()
    def add(self, images: Tensor) -> None:
        groups = len(self.model.config.groups)
        self.model.top_down.run_groups(self.model.activations(images), self._choose, len(images), range(groups))

    def _choose(self, group: LatentGroup) -> Tensor:
        q = group.posterior()
        self.kl[group.index] += q.kl(group.prior).sum(dim=0, dtype=torch.float64)
        self.std[group.index] += q.std.mean(dim=(2, 3)).sum(dim=0, dtype=torch.float64)
        return q.mean if self.noise is None else q.sample(self.noise(group))

    def average(self, images: int, source: str) -> KLStats:
        kl = tuple((s / (images * math.log(2.0))).cpu().numpy() for s in self.kl)
        std = tuple((s / images).cpu().numpy() for s in self.std)
        for index, values in enumerate(kl):
            if not np.isfinite(values).all():
                raise DataError(f"the KL of latent group {index} is not finite; the model's weights are damaged")
        return KLStats(kl, std, images, model_hash(self.model), source)


def save_kl_stats(path: Path, stats: KLStats) -> None:
    """Write `stats` as `.npz` (no pickles), atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"images": stats.images, "model_hash": stats.model_hash, "source": stats.source}
    arrays = {f"kl_bits_{i}": a for i, a in enumerate(stats.kl_bits)}
    arrays |= {f"posterior_std_{i}": a for i, a in enumerate(stats.posterior_std)}
    whole = io.BytesIO()
    np.savez_compressed(whole, header=np.array(json.dumps(header)), **arrays)  # type: ignore[arg-type]
    replace_atomically(path, whole.getvalue())


def load_kl_stats(path: Path) -> KLStats:
    """Read what `save_kl_stats` wrote; `ModelError` where it is missing or damaged."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            groups = range(sum(name.startswith("kl_bits_") for name in file.files))
            if not groups or len(file.files) != 1 + 2 * len(groups):
                raise ValueError("arrays are missing")
            kl = tuple(file[f"kl_bits_{i}"] for i in groups)
            std = tuple(file[f"posterior_std_{i}"] for i in groups)
            return KLStats(kl, std, header["images"], header["model_hash"], header["source"])
    except FileNotFoundError:
        raise ModelError(f"there is no ranking at {path}; make one with hvae-codec analyze-kl DATA") from None
    except (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error):
        raise ModelError(f"cannot read the ranking {path}; make it again with hvae-codec analyze-kl DATA") from None
