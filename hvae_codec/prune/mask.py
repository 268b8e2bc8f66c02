"""Masks that say which latent dimensions are kept: from a keep fraction or a KL cutoff, readable as JSON."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ModelError, UsageError
from ..model.checkpoint import model_hash
from ..model.hvae import HVAE
from ..ranges import flags_of, ranges_text
from ..storage.files import write_atomically
from ..text_files import read_text
from .kl_stats import Granularity, KLStats, Ranking

Count = Literal["dimensions", "variates"]
"""What a keep fraction is a fraction of."""


@dataclass(frozen=True)
class LatentMask:
    """Which latent dimensions of each group, in top-down order, are kept (True)."""

    keep: tuple[NDArray[np.bool_], ...]  # [variates] per group; of granularity position, [variates, H, W]
    resolutions: tuple[int, ...]  # height and width of each group
    model_hash: str = ""  # the model it was made for; empty if it fits any of this shape
    unpruned_dims: int = 0  # latent dimensions that shares are of, if pruning left fewer than there are here; 0 if not

    @classmethod
    def from_keep(
        cls, stats: KLStats, fraction: float, *, granularity: Granularity = "variate", count: Count = "dimensions"
    ) -> LatentMask:
        """Keep the highest-ranked variates (one at least) that hold at most `fraction` (0 to 1) of the dimensions.

        Variates are ranked by KL in bits per latent dimension (paper section 7); ties go to the earlier one. The first
        variate that does not fit ends the list: every mask is also a KL cutoff, and masks nest. Of granularity
        position, single dimensions are ranked by their own average KL. `count="variates"` is the published code's rule:
        keep the variates whose KL is above (not at) the 1 - `fraction` quantile over all variates, whatever their
        resolution; 1 keeps all. Raises `UsageError` if `fraction` is not above 0 and at most 1, or single positions are
        to be counted as variates.
        """
        if not 0.0 < fraction <= 1.0:
            raise UsageError(f"keep is {100 * fraction:g}%; it must be above 0% and at most 100%")
        ranking = Ranking.of(stats, granularity)
        if count == "variates":
            if granularity == "position":
                raise UsageError("--count variates counts whole variates; with --granularity position count dimensions")
            kl = ranking.kl_bits
            keep = ranking.left & (kl > (-np.inf if fraction == 1.0 else np.quantile(kl, 1.0 - fraction)))
            keep[np.argmax(kl)] = True  # also if all of the highest are equal
            return cls._split(stats, granularity, keep)
        # The product may round just below a whole number of dimensions.
        budget = math.floor(fraction * stats.dims + 1e-6)
        kept = max(1, int(np.searchsorted(ranking.cumulative_dims, budget, side="right")))
        return cls._split(stats, granularity, ranking.highest(kept))

    @classmethod
    def from_rank(cls, stats: KLStats, kept: int, *, granularity: Granularity = "variate") -> LatentMask:
        """Keep the `kept` highest-ranked variates (or single dimensions), ranked as in `from_keep`."""
        return cls._split(stats, granularity, Ranking.of(stats, granularity).highest(kept))

    @classmethod
    def from_cutoff(cls, stats: KLStats, bits: float, *, granularity: Granularity = "variate") -> LatentMask:
        """Keep the variates (or single dimensions) whose average KL is above `bits` per latent dimension.

        Raises `UsageError` if none is, or `bits` is not a number.
        """
        ranking = Ranking.of(stats, granularity)
        kl = ranking.kl_bits
        if not (ranking.left & (kl > bits)).any():
            what = "variate" if granularity == "variate" else "latent dimension"
            raise UsageError(f"no {what} has more than {bits:g} bits per latent dimension; the most is {kl.max():g}")
        return cls._split(stats, granularity, ranking.left & (kl > bits))

    @classmethod
    def everything(cls, stats: KLStats) -> LatentMask:
        """Keep all latent dimensions that the run has: what pruning is measured against."""
        return cls.from_keep(stats, 1.0)

    @classmethod
    def _split(cls, stats: KLStats, granularity: Granularity, keep: NDArray[np.bool_]) -> LatentMask:
        shapes = [a.shape if granularity == "position" else a.shape[:1] for a in stats.kl_bits]
        ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
        parts = tuple(part.reshape(shape) for part, shape in zip(np.split(keep, ends), shapes, strict=True))
        return cls(parts, tuple(a.shape[-1] for a in stats.kl_bits), stats.model_hash, stats.unpruned_dims)

    @property
    def granularity(self) -> Granularity:
        """Whether whole variates or single positions are kept."""
        return "position" if self.keep[0].ndim == 3 else "variate"

    @property
    def dims(self) -> int:
        """Latent dimensions in all, of the unpruned model."""
        return self.unpruned_dims or sum(len(k) * r**2 for k, r in zip(self.keep, self.resolutions, strict=True))

    def keeps_the_same(self, other: LatentMask) -> bool:
        """Whether another mask of this model keeps the same, in the same units."""
        return self.same_groups(other) == len(self.keep)

    @property
    def kept_dims(self) -> int:
        """Latent dimensions that are kept."""
        each = zip(self.keep, self.resolutions, strict=True)
        return sum(int(k.sum()) * (1 if k.ndim == 3 else r**2) for k, r in each)

    @property
    def kept_variates(self) -> int:
        """Variates that are kept, at one position at least."""
        return sum(int(k.any(axis=tuple(range(1, k.ndim))).sum()) for k in self.keep)

    @property
    def kept_share(self) -> float:
        """Share of the unpruned model's latent dimensions that is kept, 0 to 1."""
        return self.kept_dims / self.dims

    def cutoff_bits(self, stats: KLStats) -> float:
        """Return the highest average KL of what is pruned, bits per latent dimension; 0 if nothing is."""
        kl = Ranking.of(stats, self.granularity).kl_bits
        pruned = ~np.concatenate([keep.ravel() for keep in self.keep])
        return float(kl[pruned].max()) if pruned.any() else 0.0

    @property
    def groups_needed(self) -> int:
        """Groups up to and with the last one of which something is kept: all that an encoder must run."""
        return max((i + 1 for i, k in enumerate(self.keep) if k.any()), default=0)

    def same_groups(self, other: LatentMask) -> int:
        """Count the groups, from the first, that both masks prune alike; 0 if their granularities differ."""
        if self.granularity != other.granularity:
            return 0
        alike = (np.array_equal(a, b) for a, b in zip(self.keep, other.keep, strict=True))
        return len(list(itertools.takewhile(bool, alike)))

    def check_fits(self, model: HVAE) -> None:
        """Raise `UsageError` if this mask is of another model."""
        own = [(*k.shape[:1], r) for k, r in zip(self.keep, self.resolutions, strict=True)]
        groups = [(group.variates, group.resolution) for group in model.config.groups]
        if own != groups or (self.model_hash and self.model_hash != model_hash(model)):
            raise UsageError("the mask was made for another model; make one from this model's KL statistics")
        if model.keep is not None and not self._is_part_of(model.keep):
            raise UsageError(
                "the mask keeps latents that its run has pruned away; make one from this run's KL statistics"
            )

    def _is_part_of(self, left: Sequence[Tensor]) -> bool:
        return not any((keep & ~flags.cpu()).any() for keep, flags in zip(self.tensors("cpu"), left, strict=True))

    def tensors(self, device: torch.device | str) -> list[Tensor]:
        """Return bool [variates, 1, 1] (or [variates, H, W]) per group on `device`, to broadcast against z."""
        return [torch.from_numpy(k.reshape(*k.shape, *[1] * (3 - k.ndim)).copy()).to(device) for k in self.keep]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON: the kept variates' numbers in each group.

        Of granularity position, each kept variate's kept positions y · W + x as ranges: `{"3": "0-5 7"}`.
        """
        each = zip(self.keep, self.resolutions, strict=True)
        groups = [{"resolution": r, "variates": len(k), "keep": _kept_numbers(k)} for k, r in each]
        more = {"unpruned_dims": self.unpruned_dims} if self.unpruned_dims else {}
        return {"granularity": self.granularity, "model_hash": self.model_hash, **more, "groups": groups}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LatentMask:
        """Invert `to_dict`; `ModelError` if `data` is no mask."""
        try:
            if not isinstance(data, Mapping):
                raise TypeError("it is no table of keys")
            read = {"variate": _read_variates, "position": _read_positions}[data.get("granularity", "variate")]
            keep = tuple(read(group) for group in data["groups"])
            if not any(k.any() for k in keep):
                raise ValueError("nothing is kept")
            resolutions = tuple(int(group["resolution"]) for group in data["groups"])
            return cls(keep, resolutions, str(data["model_hash"]), int(data.get("unpruned_dims", 0)))
        except (KeyError, TypeError, ValueError, AttributeError, MemoryError) as error:
            raise ModelError(f"the mask is damaged ({error}); make it again with hvae-codec analyze-kl") from None


def save_mask(path: Path | str, mask: LatentMask) -> None:
    """Write `mask` as JSON, atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(mask.to_dict(), indent=1).encode() + b"\n")


def load_mask(path: Path | str) -> LatentMask:
    """Read what `save_mask` wrote; `ModelError` if it is missing or damaged."""
    try:
        return LatentMask.from_dict(json.loads(read_text(Path(path))))
    except OSError as error:
        raise ModelError(f"cannot read the mask {path} ({error.strerror}); check the path") from None
    except (ValueError, RecursionError, ModelError) as error:
        reason = error if isinstance(error, ModelError) else f"the mask is no JSON ({error})"
        raise ModelError(f"{path}: {reason}") from None


def _kept_numbers(keep: NDArray[np.bool_]) -> Any:
    if keep.ndim == 1:
        return np.flatnonzero(keep).tolist()
    return {str(v): ranges_text(plane.ravel()) for v, plane in enumerate(keep) if plane.any()}


def _read_variates(group: Mapping[str, Any]) -> NDArray[np.bool_]:
    variates, keep = int(group["variates"]), group["keep"]
    if not all(type(number) is int and 0 <= number < variates for number in keep):
        raise ValueError(f"kept variates {str(keep)[:60]} of {variates}")
    return np.isin(np.arange(variates), keep)


def _read_positions(group: Mapping[str, Any]) -> NDArray[np.bool_]:
    variates, resolution = int(group["variates"]), int(group["resolution"])
    keep = np.zeros((variates, resolution**2), dtype=bool)
    for number, text in group["keep"].items():
        keep[flags_of(number, variates, "variates")] = flags_of(text, resolution**2, "positions")
    return keep.reshape(variates, resolution, resolution)
