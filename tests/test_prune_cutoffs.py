"""What is typed, and which mask it becomes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hvae_codec.errors import ModelError, UsageError
from hvae_codec.prune.cutoffs import (
    CutoffSpec,
    parse_bits,
    parse_cutoff,
    parse_cutoffs,
    parse_keep,
    parse_tolerance,
    tolerated_cutoff,
)
from hvae_codec.prune.kl_stats import KLStats, kl_stats
from hvae_codec.prune.mask import LatentMask, save_mask
from hvae_codec.prune.tolerance import Tolerated


@pytest.fixture(scope="module")
def stats(tiny_model, photo_patches) -> KLStats:
    return kl_stats(tiny_model, photo_patches[:7])


@pytest.mark.parametrize(
    ("text", "fraction"), [("3%", 0.03), (" 3 % ", 0.03), ("0.03", 0.03), ("100%", 1.0), ("1", 1.0), ("1e-2", 0.01)]
)
def test_keep_is_a_percentage_or_a_fraction(text: str, fraction: float):
    assert parse_keep(text) == pytest.approx(fraction, rel=1e-12)


@pytest.mark.parametrize("text", ["", "%", "some", "3%%", "3 percent", "0", "0%", "-1%", "101%", "3", "nan", "inf%"])
def test_keep_that_cannot_be(text: str):
    with pytest.raises(UsageError, match="keep is") as caught:
        parse_keep(text)
    assert "\n" not in str(caught.value)


def test_bits_and_tolerances():
    assert parse_bits(" 0.01 ") == 0.01
    assert parse_tolerance("0.5%") == parse_tolerance("0.005") == 0.005
    assert parse_tolerance("0") == 0.0
    for text in ("", "x", "nan", "inf"):
        with pytest.raises(UsageError, match="the cutoff is"):
            parse_bits(text)
    for text in ("", "x", "nan", "-1%", "100%", "2"):
        with pytest.raises(UsageError, match="the tolerance is"):
            parse_tolerance(text)


def test_lists_of_wishes():
    wishes = parse_cutoffs("10%,3%,0.1", "0.5,0.1", "1%", [Path("a.json")], "position")
    assert [wish.keep for wish in wishes] == [0.03, 0.1, None, None, None, None]
    assert [wish.bits for wish in wishes] == [None, None, 0.1, 0.5, None, None]
    assert [wish.tolerance for wish in wishes] == [None] * 4 + [0.01, None]
    assert wishes[-1].file == Path("a.json")
    assert {wish.granularity for wish in wishes} == {"position"}
    assert parse_cutoffs() == []
    with pytest.raises(UsageError, match="keep is ''"):
        parse_cutoffs("3%,,5%")


def test_one_wish():
    assert parse_cutoff() == CutoffSpec(keep=0.03)
    assert parse_cutoff(tolerance="1%", granularity="position") == CutoffSpec(tolerance=0.01, granularity="position")
    for two in (("3%", "0.1"), ("3%,5%",), ("", "", "1%", Path("a.json"))):
        with pytest.raises(UsageError, match=r"give one of --keep, .*--mask"):
            parse_cutoff(*two)


def test_wishes_become_masks(tiny_model, stats, tmp_path):
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
    wish = CutoffSpec(keep=1e-6)
    assert "The highest-ranked variate alone holds" in wish.cutoff(tiny_model, stats).note
    single = CutoffSpec(keep=1e-6, granularity="position").cutoff(tiny_model, stats)
    assert single.mask.kept_dims == 1
    assert "highest-ranked latent dimension alone" in single.note
