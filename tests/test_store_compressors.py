"""How chunks of latents are packed: by zarr and by this package alike, in both directions; what a store says of it."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
import sys

import numpy as np
import pytest
import xarray
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec, TransposeCodec, ZstdCodec

from hvae_codec import open_store, verify
from hvae_codec.archive.zarr_codec import ArchiveCodec
from hvae_codec.errors import StoreError, UsageError
from hvae_codec.storage.cache import ChunkCache
from hvae_codec.storage.location import location_of
from hvae_codec.store.compressors import packing_of
from hvae_codec.store.narrowing import CodeRangeError, narrowed
from hvae_codec.store.quantiser import FloatCodec, IntCodec
from hvae_codec.store.reader import Store
from hvae_codec.store.shards import ShardedArray
from hvae_codec.store.spec import spec_fingerprint
from hvae_codec.verification.verify import check_written
from stores import (
    GRANULARITIES,
    PACKED,
    make_spec,
    make_store,
    photo_latents,
    records_of,
    with_attribute,
    without_copy,
    write_all,
)


def packed_spec(packing="zstd", granularity="variate", records=True, **changes):
    more = records_of(20) if records else {}
    return make_spec(granularity=granularity, **PACKED[packing], **more, **changes)


@pytest.fixture(scope="module", params=[(p, g) for p in PACKED for g in GRANULARITIES], ids="-".join)
def made(request, tmp_path_factory):
    """A specification and its store."""
    spec = packed_spec(*request.param)
    return spec, make_store(tmp_path_factory.mktemp("made") / "out.zarr", spec)


def test_it_is_read_as_it_was_written(made):
    spec, store = made
    assert (store.format_version, store.metadata.packing, store.metadata.dtypes) == (5, spec.packing, spec.dtypes)
    assert all(array is not None for array in store._sharded.values())  # without zarr
    for rows in (slice(None), [19, 0, 7, 8, 7, 3]):
        read = store.stored(rows) if isinstance(rows, slice) else store.gather(rows)
        for r, numbers in photo_latents(spec).items():
            assert read[r].dtype == spec.dtypes[r]
            np.testing.assert_array_equal(read[r], numbers[rows])
    assert verify(store.path).ok
    assert spec_fingerprint(store.spec()) == store.metadata.fingerprint == spec_fingerprint(spec)


def test_others_read_it(made):
    spec, store = made
    group, flat = zarr.open_group(store.path, mode="r"), xarray.open_zarr(store.path, consolidated=False)
    for r, numbers in photo_latents(spec).items():
        assert group[f"z{r}"].dtype == spec.dtypes[r]
        np.testing.assert_array_equal(group[f"z{r}"][:], numbers)
        steps = spec.columns.spread(spec.steps[r])
        np.testing.assert_array_equal(store.to_xarray()[f"z{r}/z"].to_numpy(), spec.codec.decode(numbers, steps))
        assert flat[f"z{r}"].shape == numbers.shape


def test_int8_decodes_to_the_same_bits_as_int16():
    codes = np.arange(-127, 128)
    for step in (np.float32(0.3), np.float32(1e-6)):
        narrow, wide = (IntCodec().decode(codes.astype(dtype), step) for dtype in ("int8", "int16"))
        assert narrow.tobytes() == wide.tobytes()


def test_a_store_without_records_says_so(tmp_path):
    store = make_store(tmp_path / "out.zarr", packed_spec(records=False))
    assert (store.format_version, store.metadata.has_records) == (5, False)
    assert store.splits is store.checksums is None
    assert verify(store.path).ok


def test_packing_and_types_are_a_part_of_the_fingerprint():
    spec = packed_spec()
    others = [{"packing": "archive"}, {"dtypes": {}}, {"dtypes": {16: "int8"}}, {"packing": "blosc", "dtypes": {}}]
    prints = {spec_fingerprint(dataclasses.replace(spec, **other)) for other in [{}, *others]}
    assert len(prints) == 5
    wide = dict.fromkeys(spec.resolutions, "int16")
    same = [spec_fingerprint(dataclasses.replace(spec, dtypes=dtypes)) for dtypes in ({}, wide)]
    assert same[0] == same[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packing": "gzip"}, "'gzip'; choose blosc, zstd, archive"),
        ({"packing": "blosc", "dtypes": {16: "int8"}}, "z16 is of type int8; .* blosc are int16"),
        ({"dtypes": {4: "int32"}}, "z4 is of type int32; .* int8 or int16"),
        ({"codec": FloatCodec("float16"), "dtypes": {}}, "float16 latents cannot have the packing zstd"),
    ],
)
def test_a_specification_that_cannot_be_is_refused(changes, message):
    steps = {r: np.ones_like(s) for r, s in packed_spec().steps.items()}
    with pytest.raises(StoreError, match=message):
        dataclasses.replace(packed_spec(), steps=steps, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packing": "gzip"}, "'gzip'"),
        ({"packing": None}, "None"),
        ({"dtypes": {"16": "int32"}}, "int32"),
        ({"dtypes": {"x": "int8"}}, "'x'"),
        ({"dtypes": {"1": "int8", "4": "int8", "16": "int8"}}, "z4.* holds int16, not int8"),
    ],
)
def test_damaged_metadata_are_told(tmp_path, changes, message):
    path = make_store(tmp_path / "out.zarr", packed_spec()).path
    attribute = without_copy(path)
    (path / "zarr.json").write_text(with_attribute((path / "zarr.json").read_text(), attribute | changes))
    with pytest.raises(StoreError, match=message):
        open_store(path)


def test_codes_of_floats_have_blosc():
    assert packing_of("float32", "zstd") == packing_of("float16", "blosc") == packing_of("int16", "blosc") == "blosc"
    with pytest.raises(UsageError, match="archive is for integer codes, not float16"):
        packing_of("float16", "archive")
    with pytest.raises(UsageError, match="'lzma'; give blosc, zstd, archive"):
        packing_of("int16", "lzma")


# --- the chunks of others --------------------------------------------------------------------------------------------

CODES = (np.arange(16 * 3 * 4 * 4) % 23 - 11).reshape(16, 3, 4, 4)
READ_HERE = {
    "another level": [BytesCodec(), ZstdCodec(level=1), Crc32cCodec()],
    "a zstd checksum": [BytesCodec(), ZstdCodec(level=3, checksum=True), Crc32cCodec()],
    "another order": [TransposeCodec(order=(3, 1, 2, 0)), BytesCodec(), ZstdCodec(level=3), Crc32cCodec()],
    "lz4": [BytesCodec(), BloscCodec(cname="lz4"), Crc32cCodec()],
    "archive": [ArchiveCodec()],
}
LEFT_TO_ZARR = {
    "no checksum": [BytesCodec(), ZstdCodec()],
    "two compressors": [BytesCodec(), ZstdCodec(), BloscCodec(), Crc32cCodec()],
    "a checksum after archive": [ArchiveCodec(), Crc32cCodec()],
    "big-endian": [BytesCodec(endian="big"), ZstdCodec(), Crc32cCodec()],
}


@pytest.mark.parametrize("dtype", ["int8", "int16"])
@pytest.mark.parametrize("name", [*READ_HERE, *LEFT_TO_ZARR])
def test_chunks_that_zarr_packs_otherwise(tmp_path, name, dtype):
    if name == "big-endian" and dtype == "int8":
        pytest.skip("a byte has no order")
    codecs = ShardingCodec(chunk_shape=(4, 3, 4, 4), codecs={**READ_HERE, **LEFT_TO_ZARR}[name])
    array = zarr.create_array(
        tmp_path / "z",
        shape=CODES.shape,
        chunks=(8, 3, 4, 4),
        dtype=dtype,
        serializer=codecs,
        compressors=(),
        filters=(),
    )
    array[:] = CODES
    sharded = ShardedArray.of(array, location_of(tmp_path / "z"), ChunkCache(2**20))
    assert (sharded is not None) == (name in READ_HERE)
    if sharded is not None:
        np.testing.assert_array_equal(sharded.read(range(16)), CODES)


@pytest.mark.parametrize("packing", PACKED)
def test_changed_bytes_of_a_chunk_are_found(tmp_path, packing):
    path = make_store(tmp_path / "out.zarr", packed_spec(packing)).path
    file = path / "z16" / "c" / "1" / "0" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 16
    file.write_bytes(content)
    with pytest.raises(StoreError, match=r"z16 is damaged at image 8: .*checksum"):
        [open_store(path).stored(i) for i in range(8, 16)]
    damages = verify(path).damages
    assert [(damage.file, damage.row_group) for damage in damages] == [("z16/c/1/0/0/0", 1)]


# --- the archive codec's compiled part -------------------------------------------------------------------------------


def test_without_the_compiled_coder_one_sentence_says_what_is_missing(tmp_path, monkeypatch):
    path = make_store(tmp_path / "out.zarr", packed_spec("archive")).path
    plain = make_store(tmp_path / "plain.zarr", packed_spec()).path
    monkeypatch.delattr(sys.modules["hvae_codec.archive"], "_kernel", raising=False)
    monkeypatch.setitem(sys.modules, "hvae_codec.archive._kernel", None)
    for call in (open_store, verify, lambda _: packed_spec("archive")):
        with pytest.raises(StoreError, match="compiled part is missing; install hvae-codec from a wheel") as error:
            call(path)
        assert "\n" not in str(error.value)
    assert len(open_store(plain).stored(3)) == 3


# --- types of codes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [128, -128, 4000])
def test_a_code_that_does_not_fit_is_no_code_of_the_store(tmp_path, code):
    spec = packed_spec()
    latents = photo_latents(spec)
    latents[16][10, 1, 3, 5] = code
    with pytest.raises(CodeRangeError) as error:
        write_all(tmp_path / "out.zarr", spec, latents)
    for part in (f"image 10 ({spec.names[10]})", f"code {code}", "z16", "int8", "--code-bits 16"):
        assert part in str(error.value)
    assert (error.value.exit_code, "\n" in str(error.value)) == (2, False)
    other = pickle.loads(pickle.dumps(error.value)).for_store("some.zarr")
    assert f"code {code}" in str(other)
    assert "hvae-codec recode --code-bits 16 some.zarr OUT" in str(other)
    assert not (tmp_path / "out.zarr.partial" / "committed" / "c" / "1").exists()


def test_codes_at_the_ends_fit():
    codes = {4: np.array([[-127, 127]], np.int16)}
    assert narrowed(codes, {4: "int8"})[4].dtype == np.int8
    with pytest.raises(CodeRangeError, match=r"image \(b.png\) has the code -128"):
        narrowed({4: np.array([[0], [-128]], np.int16)}, {4: "int8"}, names=["a.png", "b.png"])
    with pytest.raises(CodeRangeError, match="image 7 has the code 300"):
        narrowed({4: np.array([[300]], np.int16)}, {4: "int8"}, rows=[7])


def test_what_was_written_reads_back_in_its_type(tmp_path):
    spec = packed_spec("archive")
    writer = write_all(tmp_path / "out.zarr", spec, photo_latents(spec))
    check_written(writer.row_group_writer, 0)
    wide = dataclasses.replace(spec, dtypes={})
    other = write_all(tmp_path / "wide.zarr", wide, photo_latents(wide))
    assert writer.row_group_writer.digest(0) != other.row_group_writer.digest(0)  # over elements as they are stored


def test_a_store_can_be_moved_and_pickled(tmp_path):
    store = make_store(tmp_path / "out.zarr", packed_spec("archive"))
    moved = open_store(shutil.move(store.path.folder, tmp_path / "moved.zarr"))
    again = pickle.loads(pickle.dumps(moved))
    np.testing.assert_array_equal(again.latents(3)["z4"], moved.latents(3)["z4"])
    assert isinstance(again, Store)
    document = json.loads((tmp_path / "moved.zarr" / "z16" / "zarr.json").read_text())
    assert "hvae-codec.archive" in json.dumps(document)
