"""What is asked for, and which mask it becomes."""

from __future__ import annotations

import numpy as np
import pytest

from hvae_codec.errors import ModelError, UsageError
from hvae_codec.prune.cutoffs import Cutoff, CutoffSpec, merge_equal, tolerated_cutoff
from hvae_codec.prune.kl_stats import KLStats, kl_stats
from hvae_codec.prune.mask import LatentMask, save_mask
from hvae_codec.prune.tolerance import Tolerated


@pytest.fixture(scope="module")
def stats(tiny_model, photo_patches) -> KLStats:
    return kl_stats(tiny_model, photo_patches[:7])


def test_specs_become_masks(tiny_model, stats, tmp_path):
    keep = CutoffSpec(keep=0.3, granularity="position").cutoff(tiny_model, stats)
    assert (keep.rule, keep.keep, keep.mask.granularity) == ("keep 30%, by position", 0.3, "position")
    bits = CutoffSpec(bits=0.0).cutoff(tiny_model, stats)
    assert (bits.rule, bits.keep) == ("cutoff 0 bits", bits.mask.kept_share)
    variates = CutoffSpec(keep=0.3, count="variates").cutoff(tiny_model, stats)
    assert variates.rule == "keep 30% of variates"
    save_mask(tmp_path / "mine.json", keep.mask)
    file = CutoffSpec(file=tmp_path / "mine.json").cutoff(tiny_model, stats)
    assert (file.rule, file.keep) == ("mine.json", keep.mask.kept_share)
    for a, b in zip(file.mask.keep, keep.mask.keep, strict=True):
        np.testing.assert_array_equal(a, b)
    assert CutoffSpec(tolerance=0.1).cutoff(tiny_model, stats) is None
    found = Tolerated(keep.mask, 0.005, 3.0, 0.01, 0.001, 0.99, 7)
    assert tolerated_cutoff(found).rule == "tolerance 0.5%, by position"


def test_masks_that_cannot_be_used(tiny_model, stats, tmp_path):
    mask = LatentMask.from_keep(stats, 0.3)
    save_mask(tmp_path / "other.json", LatentMask(mask.keep, mask.resolutions, "another"))
    with pytest.raises(UsageError, match=r"other.json: .* another model"):
        CutoffSpec(file=tmp_path / "other.json").cutoff(tiny_model, stats)
    with pytest.raises(ModelError, match="cannot read the mask"):
        CutoffSpec(file=tmp_path / "nowhere.json").cutoff(tiny_model, stats)
    with pytest.raises(UsageError, match=r"more than 1e\+09 bits"):
        CutoffSpec(bits=1e9, granularity="position").cutoff(tiny_model, stats)


def test_less_than_one_variate_is_said(tiny_model, stats):
    spec = CutoffSpec(keep=1e-6)
    assert "The highest-ranked variate alone holds" in spec.cutoff(tiny_model, stats).note
    single = CutoffSpec(keep=1e-6, granularity="position").cutoff(tiny_model, stats)
    assert single.mask.kept_dims == 1
    assert "highest-ranked latent dimension alone" in single.note


def test_cutoffs_of_one_mask_are_one(stats):
    small, large = (LatentMask.from_keep(stats, share) for share in (0.1, 0.5))
    by_position = LatentMask.from_keep(stats, 1.0, granularity="position")
    cutoffs = [
        Cutoff("tolerance 1%", 0.5, large),
        Cutoff("keep 5%", 0.05, small),
        Cutoff("keep 7%", 0.07, small),
        Cutoff("keep 10%", 0.1, small),
        Cutoff("keep 50%", 0.5, large),
        Cutoff("keep 100%, by position", 1.0, by_position),
        Cutoff("keep 100%", 1.0, LatentMask.everything(stats)),
    ]
    merged = merge_equal(cutoffs)
    rules = ["keep 5% to 10%", "keep 50% and tolerance 1%", "keep 100%, by position", "keep 100%"]
    assert [cutoff.rule for cutoff in merged] == rules
    assert [cutoff.keep for cutoff in merged] == [0.05, 0.5, 1.0, 1.0]
