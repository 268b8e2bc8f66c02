"""Cutoffs as they are typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from hvae_codec.errors import UsageError
from hvae_codec.prune.cutoffs import CutoffSpec
from hvae_codec_cli.cutoffs import parse_bits, parse_cutoff, parse_cutoffs, parse_keep, parse_tolerance


@pytest.mark.parametrize(
    ("text", "fraction"), [("3%", 0.03), (" 3 % ", 0.03), ("0.03", 0.03), ("100%", 1.0), ("1.0", 1.0), ("1e-2", 0.01)]
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


def test_lists_of_cutoffs():
    specs = parse_cutoffs("10%,3%,0.1", "0.5,0.1", "1%", [Path("a.json")], "position")
    assert [spec.keep for spec in specs] == [0.03, 0.1, None, None, None, None]
    assert [spec.bits for spec in specs] == [None, None, 0.1, 0.5, None, None]
    assert [spec.tolerance for spec in specs] == [None] * 4 + [0.01, None]
    assert specs[-1].file == Path("a.json")
    assert {spec.granularity for spec in specs} == {"position"}
    assert parse_cutoffs() == []
    with pytest.raises(UsageError, match="keep is ''"):
        parse_cutoffs("3%,,5%")


def test_one_cutoff():
    assert parse_cutoff() == CutoffSpec(keep=0.03, is_default=True)
    assert parse_cutoff(tolerance="1%", granularity="position") == CutoffSpec(tolerance=0.01, granularity="position")
    for two in (("3%", "0.1"), ("3%,5%",), ("", "", "1%", Path("a.json"))):
        with pytest.raises(UsageError, match=r"give one of --keep, .*--mask"):
            parse_cutoff(*two)
