"""Chunks of the archive codec: every number comes back, damage is found, and bytes are those of every other machine."""

from __future__ import annotations

import struct
import sys
import threading
import tracemalloc
from contextlib import suppress
from pathlib import Path

import google_crc32c
import numcodecs
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage import data

from archive_reference import Decoder
from hvae_codec.archive import chunk
from hvae_codec.archive.chunk import DTYPES, pack, unpack
from hvae_codec.errors import StoreError, UsageError

GOLDEN = Path(__file__).parent / "golden" / "archive"
HEADER = struct.calcsize("<BIi")


def photo_codes(images=24, size=16, dtype="int8"):
    """Patches of a photograph, coarsely rounded, as codes are: [images, 3, size, size]."""
    photo = data.astronaut().astype(np.int16)
    tops = [((40 + 11 * i) % 490, (60 + 13 * i) % 490) for i in range(images)]
    patches = np.stack([photo[y : y + size, x : x + size] for y, x in tops])
    return np.ascontiguousarray((patches - 128).transpose(0, 3, 1, 2) // 16).astype(dtype)


def sealed(content, like):
    """`content` with the checksum of a chunk of `like`'s shape and type."""
    about = struct.pack(f"<{1 + like.ndim}I", like.itemsize, *like.shape)
    return content + struct.pack("<I", google_crc32c.value(content + about))


def arrays():
    """Any array: of all types, of 1 to 4 axes, empty ones too, smooth and wild."""
    shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6)
    some = {name: st.integers(np.iinfo(name).min, np.iinfo(name).max) | st.integers(-3, 3) for name in DTYPES}
    return st.sampled_from(DTYPES).flatmap(lambda name: hnp.arrays(name, shapes, elements=some[name]))


@settings(max_examples=100, deadline=None)
@given(arrays())
@example(np.zeros((256, 2, 16, 16), "int8"))
@example(np.full((3, 1, 5, 7), -(2**31), "int32"))
@example(np.array([[-128, 127] * 40] * 9, "int8"))
@example(np.array([-(2**31), 2**31 - 1] * 30, "int32").reshape(5, 3, 2, 2))
def test_every_array_comes_back(numbers):
    back = unpack(pack(numbers), numbers.shape, numbers.dtype)
    assert (back.dtype, back.shape) == (numbers.dtype, numbers.shape)
    np.testing.assert_array_equal(back, numbers)


def test_codes_take_less_than_with_zstd():
    numbers = photo_codes(128)
    assert len(pack(numbers)) < 0.75 * len(numcodecs.Zstd(19).encode(numbers))


def test_the_same_numbers_take_as_much_in_a_wider_type():
    sizes = {dtype: len(pack(photo_codes(dtype=dtype))) for dtype in DTYPES}
    assert max(sizes.values()) == min(sizes.values())


def test_random_numbers_take_little_more_than_they_are():
    numbers = np.random.default_rng(1).integers(-128, 128, (64, 2, 8, 8), np.int8)
    assert len(pack(numbers)) < 1.08 * numbers.nbytes


def test_images_of_one_number_at_the_end_take_nothing():
    numbers = photo_codes(20, dtype="int16")
    filled = np.concatenate([numbers, np.full((236, *numbers.shape[1:]), -32768, "int16")])
    assert len(pack(filled)) == len(pack(numbers))
    np.testing.assert_array_equal(unpack(pack(filled), filled.shape, "int16"), filled)


def test_any_memory_layout_and_byte_order_gives_the_same_bytes():
    numbers = photo_codes(dtype="int16")
    transposed = np.ascontiguousarray(numbers.transpose(1, 0, 2, 3)).transpose(1, 0, 2, 3)
    assert pack(numbers) == pack(transposed) == pack(numbers.astype(">i2"))
    assert unpack(pack(numbers), numbers.shape, ">i2").dtype == np.dtype(">i2")


def test_threads_do_not_disturb_each_other():
    chunks = [photo_codes(40, size) for size in (8, 12, 16, 20)] * 3
    expected, found = [pack(part) for part in chunks], [b""] * len(chunks)

    def work(i):
        found[i] = pack(unpack(expected[i], chunks[i].shape, "int8"))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(chunks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.npy")), ids=lambda path: path.stem)
def test_golden_bytes(path):
    numbers, packed = np.load(path), path.with_suffix(".packed").read_bytes()
    assert pack(numbers) == packed
    np.testing.assert_array_equal(unpack(packed, numbers.shape, numbers.dtype), numbers)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.npy")), ids=lambda path: path.stem)
def test_a_plain_reading_of_the_format_gives_the_same_numbers(path):
    """Nothing depends on what C leaves open."""
    numbers, packed = np.load(path), path.with_suffix(".packed").read_bytes()
    coded = numbers[: int.from_bytes(packed[1:5], "little")]
    by_plane = coded[None, None] if coded.ndim == 2 else coded.swapaxes(0, 1)
    decoder = Decoder(packed[HEADER:-4], 8 * numbers.itemsize)
    np.testing.assert_array_equal(decoder.chunk(by_plane.shape), by_plane)


def test_there_are_golden_bytes():
    types = {np.load(path).dtype.name for path in GOLDEN.glob("*.npy")}
    assert types == set(DTYPES)


def test_each_of_a_thousand_flipped_bytes_is_found():
    numbers = photo_codes()
    packed = pack(numbers)
    rng = np.random.default_rng(0)
    for position, change in zip(rng.integers(0, len(packed), 1000), rng.integers(1, 256, 1000), strict=True):
        damaged = bytearray(packed)
        damaged[position] ^= change
        with pytest.raises(StoreError, match="checksum"):
            unpack(bytes(damaged), numbers.shape, "int8")


@pytest.mark.parametrize("length", [0, 1, 12, 13, 40, -1])
def test_a_cut_chunk_is_found(length):
    numbers = photo_codes()
    with pytest.raises(StoreError, match=r"bytes|checksum"):
        unpack(pack(numbers)[:length], numbers.shape, "int8")


def test_a_chunk_of_another_shape_or_type_is_refused():
    numbers = photo_codes(24)
    packed = pack(numbers)
    for shape, dtype in [((12, 6, 16, 16), "int8"), ((24, 768), "int8"), ((24, 3, 16, 16), "int16")]:
        with pytest.raises(StoreError, match="checksum"):
            unpack(packed, shape, dtype)


def test_any_bytes_with_a_right_checksum_end_and_take_no_more_memory():
    """What only a forger or a fault of the program could write: an error or numbers, soon, never a crash."""
    like, rng = photo_codes(6), np.random.default_rng(2)
    packed = pack(like)
    tracemalloc.start()
    for trial in range(400):
        content = bytearray(packed[:-4])
        for position in rng.integers(0, HEADER if trial % 2 else len(content), 3):
            content[position] = rng.integers(0, 256)
        cut = rng.integers(HEADER, len(content)) if trial % 3 == 0 else len(content)
        with suppress(StoreError):  # no other error
            assert unpack(sealed(bytes(content[:cut]), like), like.shape, "int8").shape == like.shape
    assert tracemalloc.get_traced_memory()[1] < 50 * like.nbytes
    tracemalloc.stop()


def test_bytes_that_are_missing_or_left_over_are_found():
    like = photo_codes(6)
    content = pack(like)[:-4]
    for changed in (content[:-8], content + b"\0", content[:HEADER]):
        with pytest.raises(StoreError, match=r"does not hold \[6, 3, 16, 16\]"):
            unpack(sealed(changed, like), like.shape, "int8")


@pytest.mark.parametrize(
    ("header", "message"),
    [((2, 6, 0), "version 2"), ((1, 7, 0), "header of 7 images"), ((1, 5, 128), "header of 5 images and 128")],
)
def test_a_header_that_cannot_be_is_refused(header, message):
    like = photo_codes(6)
    content = struct.pack("<BIi", *header) + pack(like)[HEADER:-4]
    with pytest.raises(StoreError, match=message):
        unpack(sealed(content, like), like.shape, "int8")


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (np.zeros(3, "float32"), "not float32"),
        (np.zeros(3, "uint8"), "not uint8"),
        (np.zeros((1, 1, 1, 1, 1), "int8"), "not 5 axes"),
        (np.array(3, "int8"), "not 0 axes"),
        (np.broadcast_to(np.int8(0), (2**16, 2**15)), "2\\^31"),
    ],
)
def test_what_cannot_be_packed_is_refused(numbers, message):
    with pytest.raises(UsageError, match=message):
        pack(numbers)


def test_without_its_compiled_part_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "hvae_codec.archive._kernel", None)
    monkeypatch.delattr("hvae_codec.archive._kernel", raising=False)
    with pytest.raises(StoreError, match="wheel, or again with a C compiler"):
        pack(photo_codes(2))
    assert chunk.unpack(pack(np.zeros((4, 2), "int8")), (4, 2), "int8").sum() == 0  # nothing is coded
