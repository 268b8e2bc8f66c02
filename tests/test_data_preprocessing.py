from __future__ import annotations

import pytest

from hvae_codec.data.preprocessing import Preprocessing
from hvae_codec.errors import DataError, UsageError

CELEBA = Preprocessing(crop="celeba", resize="area")


def test_defaults_are_not_written_and_others_come_back():
    assert Preprocessing().to_dict() == Preprocessing().pixel_options == {}
    how = Preprocessing(background="white", crop="1,2,30,30", upscale=False, max_pixels=10**9, depth=8, colour="grey")
    assert Preprocessing.from_dict(how.to_dict(), "x.zarr") == how
    assert how.flags() == (
        "--colour grey --background white --crop 1,2,30,30 --no-upscale --max-pixels 1000000000 --depth 8"
    )


def test_two_spellings_of_the_same_pixels():
    assert Preprocessing(crop="celeba").pixel_options == Preprocessing(crop="15,40,148,148").pixel_options
    assert Preprocessing(background="white").pixel_options == Preprocessing(background="#FFFFFF").pixel_options
    assert Preprocessing(depth=8, upscale=False, max_pixels=5, colour="rgb").pixel_options == {}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("colour", "blue"),
        ("background", "#12345"),
        ("background", "red"),
        ("crop", "0,0,10"),
        ("crop", "0,0,10,20"),
        ("crop", "0,0,0,0"),
        ("crop", "-1,0,4,4"),
        ("resize", "nearest"),
        ("max_pixels", 0),
        ("max_pixels", "9"),
        ("depth", 16),
        ("upscale", 1),
    ],
)
def test_other_values_are_refused(option: str, value: object):
    with pytest.raises(UsageError, match=rf"--{'no-upscale' if option == 'upscale' else option.replace('_', '-')} is "):
        Preprocessing(**{option: value})


def test_what_is_left_out_is_as_before():
    assert CELEBA.with_given({}, "a was begun with") == CELEBA
    assert CELEBA.with_given({"crop": "15,40,148,148", "colour": "auto"}, "").pixel_options == CELEBA.pixel_options


@pytest.mark.parametrize(
    ("before", "given", "message"),
    [
        (CELEBA, {"crop": "centre"}, "a was begun with --crop celeba, not centre; leave out --crop"),
        (Preprocessing(), {"crop": "celeba"}, "a was begun with --crop centre, not celeba"),
        (CELEBA, {"resize": "lanczos"}, "--resize area, not lanczos"),
        (Preprocessing(background="black"), {"background": "drop"}, "--background black, not drop"),
        (Preprocessing(colour="rgb"), {"colour": "grey"}, "--colour rgb, not grey"),
        (Preprocessing(max_pixels=5), {"max_pixels": 6}, "--max-pixels 5, not 6"),
    ],
)
def test_what_says_otherwise_is_refused(before: Preprocessing, given: dict, message: str):
    with pytest.raises(UsageError, match=message):
        before.with_given(given, "a was begun with")


def test_what_lets_more_images_in_may_be_added():
    given = {"depth": 8, "max_pixels": 10**9, "colour": "rgb", "upscale": False}
    assert CELEBA.with_given(given, "") == Preprocessing(crop="celeba", resize="area", **given)


def test_joined_options_read_the_images_of_both():
    first, second = Preprocessing(depth=8, upscale=False), Preprocessing(colour="rgb", max_pixels=10**9)
    for joined in (first.joined(second), second.joined(first)):
        assert joined == Preprocessing(depth=8, colour="rgb", max_pixels=10**9)


def test_records_of_a_newer_version_are_refused():
    for record in ({"gamma": 2.2}, {"crop": "faces"}):
        with pytest.raises(DataError, match=r"x\.zarr .*newer"):
            Preprocessing.from_dict(record, "x.zarr")


def test_other_pixels_are_refused():
    CELEBA.check_same(Preprocessing(crop="15,40,148,148", resize="area", depth=8), "")
    with pytest.raises(
        DataError, match=r"x was made with --crop celeba, and the images were opened with crop='centre'"
    ):
        CELEBA.check_same(Preprocessing(resize="area"), "x was made with")
