import json

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvae_codec.errors import UsageError
from hvae_codec.store.quantiser import (
    MAX_CODE,
    ClippedError,
    FloatCodec,
    IntCodec,
    check_clipped,
    codec_from_dict,
    make_codec,
)

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
LATENTS = hnp.arrays(np.float32, (4, 3, 2, 2), elements=st.floats(-300, 300, width=32) | FLOATS)
STDS = hnp.arrays(np.float32, (3,), elements=st.floats(0, 1e7, width=32))
CODECS = st.sampled_from([IntCodec(0.5), IntCodec(1.0), FloatCodec("float16"), FloatCodec("float32")])


@given(CODECS, LATENTS, STDS)
def test_numpy_and_torch_agree_bit_for_bit(codec, z, std):
    with np.errstate(over="ignore"):
        step = codec.steps(std)[:, None, None]
        stored = codec.encode(z, step)
        decoded = codec.decode(stored, step)
    tensor_step = torch.from_numpy(step)
    tensor = codec.encode(torch.from_numpy(z), tensor_step)
    assert stored.dtype == codec.dtype
    assert tensor.numpy().dtype == codec.dtype
    assert tensor.numpy().tobytes() == stored.tobytes()
    assert codec.decode(tensor, tensor_step).numpy().tobytes() == decoded.tobytes()
    assert decoded.dtype == np.float32


@given(CODECS, LATENTS, STDS)
def test_encoding_what_was_decoded_changes_nothing(codec, z, std):
    with np.errstate(over="ignore"):
        step = codec.steps(std)[:, None, None]
        stored = codec.encode(z, step)
        assert np.isfinite(codec.decode(stored, step)).all()
        assert codec.encode(codec.decode(stored, step), step).tobytes() == stored.tobytes()


@pytest.mark.parametrize("step", [1e-6, 3.3e-5, 0.1, 1 / 3, 1.0, 7.7, 1e6])
def test_every_code_survives_a_round_trip(step):
    codes = np.arange(-MAX_CODE, MAX_CODE + 1, dtype=np.int16)
    codec = IntCodec()
    np.testing.assert_array_equal(codec.encode(codec.decode(codes, np.float32(step)), np.float32(step)), codes)


@given(hnp.arrays(np.float32, (50,), elements=st.floats(-300, 300, width=32)), st.floats(0.0625, 10, width=32))
def test_integer_codes_are_off_by_half_a_step_at_most(z, step):
    codec, step = IntCodec(), np.float32(step)
    error = np.abs(z.astype(np.float64) - codec.decode(codec.encode(z, step), step))
    assert (error <= step / 2 + np.abs(z) * 1e-6).all()


def test_values_out_of_range_saturate():
    z = np.array([1e9, -1e9, np.inf], np.float32)
    assert IntCodec().encode(z, np.float32(1)).tolist() == [MAX_CODE, -MAX_CODE, MAX_CODE]
    assert FloatCodec("float16").encode(z, 1).tolist() == [65504, -65504, 65504]
    assert FloatCodec("float32").encode(z, 1).tolist() == [1e9, -1e9, float(np.finfo(np.float32).max)]


@pytest.mark.parametrize("codec", [IntCodec(), FloatCodec("float16"), FloatCodec("float32")])
def test_nan_becomes_the_fill_value_that_no_store_accepts(codec):
    z = np.array([np.nan, 1.0], np.float32)
    for stored in (codec.encode(z, np.float32(1)), codec.encode(torch.from_numpy(z), torch.tensor(1.0)).numpy()):
        np.testing.assert_array_equal(stored[0], np.array(codec.fill_value, codec.dtype))
        assert stored[1] == 1


def test_integer_steps_scale_with_the_posterior_and_never_reach_zero():
    assert IntCodec(2.0).steps(np.array([0.25, 1.0])).tolist() == [0.5, 2.0]
    assert IntCodec().steps(np.array([0.0])).tolist() == [pytest.approx(1e-6)]
    assert FloatCodec("float16").steps(np.array([0.25, 3.0])).tolist() == [1.0, 1.0]
    with pytest.raises(UsageError, match="posterior std"):
        IntCodec().steps(np.array([np.nan]))


@pytest.mark.parametrize("codec", [IntCodec(), IntCodec(0.3), FloatCodec("float16"), FloatCodec("float32")])
def test_a_codec_goes_through_json(codec):
    assert codec_from_dict(json.loads(json.dumps(codec.to_dict()))) == codec
    assert make_codec(codec.name, 0.3).name == codec.name


def test_what_is_no_codec_is_named():
    with pytest.raises(UsageError, match="'int4'; choose int, float16, float32"):
        make_codec("int4")
    for step in (0.0, -1.0, float("nan"), float("inf"), 1e-30, 1e30):
        with pytest.raises(UsageError, match="step is"):
            make_codec("int", step)
    for data in ({}, {"name": "int", "step": None}, {"name": "int", "step": "wide"}):
        with pytest.raises(UsageError, match="describes no latent codec"):
            codec_from_dict(data)


def test_steps_that_are_not_made_any_more_are_read():
    assert codec_from_dict({"name": "int", "step": 1e-30}).to_dict()["step"] == 1e-30


@pytest.mark.parametrize(
    ("codec", "largest", "message"),
    [
        (IntCodec(0.25), 32766, r"2 of 8 latents of image 3 .*±32767 .*int, step 0\.25; give a larger --step.*float16"),
        (FloatCodec("float16"), 65440, r"2 of 8 .*±65504 .*float16; give --codec float32"),
        (FloatCodec("float32"), 3e38, r"2 of 8 .*float32; give another model"),
    ],
)
def test_latents_that_were_clipped_are_counted(codec, largest, message):
    z = np.array([largest, -largest, 0, 1], np.float32)
    check_clipped(codec, {1: codec.encode(z, np.float32(1))}, "image 3")
    clipped = {1: codec.encode(z, np.float32(1)), 4: codec.encode(np.array([np.inf, -np.inf, 0, 1]), np.float32(1))}
    with pytest.raises(ClippedError, match=message):
        check_clipped(codec, clipped, "image 3")
