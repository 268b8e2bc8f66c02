"""The archive codec in zarr: written and read by zarr and xarray, found by its entry point, named if it is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points

import numpy as np
import pytest
import xarray
import zarr
from skimage import data
from zarr.codecs import Crc32cCodec

from hvae_codec.archive.chunk import unpack
from hvae_codec.archive.zarr_codec import NAME, ArchiveCodec
from hvae_codec.errors import StoreError, UsageError


def codes(dtype="int8"):
    """[40, 3, 8, 8], patches of a photograph."""
    rows = data.astronaut()[:320, 100:108].astype(np.int16)
    return np.ascontiguousarray((rows.reshape(40, 8, 8, 3).transpose(0, 3, 1, 2) - 128) // 12).astype(dtype)


def create(path, numbers, chunk=16, **options):
    group = zarr.open_group(path, mode="w")
    array = group.create_array(
        "z8",
        shape=numbers.shape,
        dtype=numbers.dtype,
        chunks=(chunk, *numbers.shape[1:]),
        serializer=ArchiveCodec(),
        filters=(),
        dimension_names=("image", "channel", "y", "x")[: numbers.ndim],
        **{"compressors": (), **options},
    )
    array[:] = numbers
    return path


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32"])
@pytest.mark.parametrize("options", [{}, {"shards": (32, 3, 8, 8)}, {"compressors": [Crc32cCodec()]}])
def test_zarr_and_xarray_read_what_was_written(tmp_path, dtype, options):
    numbers = codes(dtype)
    path = create(tmp_path / "out.zarr", numbers, **options)
    array = zarr.open_array(path / "z8", mode="r")
    np.testing.assert_array_equal(array[:], numbers)
    np.testing.assert_array_equal(array[37], numbers[37])
    with xarray.open_zarr(path, consolidated=False) as opened:
        np.testing.assert_array_equal(opened["z8"].values, numbers)


def test_single_dimensions(tmp_path):
    numbers = codes("int16").reshape(40, -1)[:, ::3]
    path = create(tmp_path / "out.zarr", numbers, shards=(48, numbers.shape[1]))
    np.testing.assert_array_equal(zarr.open_array(path / "z8")[5:33], numbers[5:33])


def test_a_chunk_is_read_alone(tmp_path):
    """The file of a chunk holds all that its numbers need."""
    numbers = codes()
    path = create(tmp_path / "out.zarr", numbers)
    content = (path / "z8" / "c" / "1" / "0" / "0" / "0").read_bytes()
    np.testing.assert_array_equal(unpack(content, (16, 3, 8, 8), "int8"), numbers[16:32])


def test_metadata(tmp_path):
    path = create(tmp_path / "out.zarr", codes())
    metadata = json.loads((path / "z8" / "zarr.json").read_text())
    assert metadata["codecs"] == [{"name": "hvae-codec.archive", "configuration": {"version": 1}}]
    metadata["codecs"][0]["configuration"]["version"] = 2
    (path / "z8" / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(StoreError, match="version 2, not 1; update hvae-codec"):
        zarr.open_array(path / "z8", mode="r")


def test_damage_is_an_error(tmp_path):
    path = create(tmp_path / "out.zarr", codes())
    file = path / "z8" / "c" / "0" / "0" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    array = zarr.open_array(path / "z8", mode="r")
    with pytest.raises(StoreError, match="checksum"):
        array[3]
    np.testing.assert_array_equal(array[16:], codes()[16:])


@pytest.mark.parametrize("options", [{}, {"shards": (32, 3, 8, 8)}])
def test_other_types_are_refused_when_the_array_is_made(tmp_path, options):
    with pytest.raises(UsageError, match="not float32"):
        create(tmp_path / "out.zarr", codes().astype("float32"), **options)
    assert not (tmp_path / "out.zarr" / "z8").exists()


@pytest.mark.parametrize("shards", [None, (512, 3, 16, 16)])
def test_an_array_may_be_larger_than_a_chunk_can_be(shards):
    array = zarr.create_array(
        {}, shape=(10**7, 3, 16, 16), chunks=(256, 3, 16, 16), shards=shards, dtype="int8", serializer=ArchiveCodec(),
        filters=(), compressors=(),
    )  # fmt: skip
    array[5:45, :, :8, :8] = codes()
    np.testing.assert_array_equal(array[44, :, :8, :8], codes()[-1])
    with pytest.raises(UsageError, match="make the array's chunks smaller"):
        zarr.create_array(
            {}, shape=array.shape, chunks=array.shape, dtype="int8", serializer=ArchiveCodec(), filters=()
        )


def test_the_entry_point_leads_to_the_codec():
    (found,) = entry_points(group="zarr.codecs", name=NAME)
    assert found.load() is ArchiveCodec


READ = """
import sys
sys.modules["torch"] = None
import zarr
assert not any(name.startswith("hvae_codec") for name in sys.modules)
print(zarr.open_array(sys.argv[1], mode="r")[:].sum())
assert "hvae_codec.archive.zarr_codec" in sys.modules
"""

WITHOUT = """
import importlib.metadata, sys
others = [each for each in importlib.metadata.distributions() if each.metadata["Name"] != "hvae-codec"]
points = importlib.metadata.EntryPoints(point for each in others for point in each.entry_points)
importlib.metadata.entry_points = lambda: points
import zarr
zarr.open_array(sys.argv[1], mode="r")
"""


def run(code, path):
    return subprocess.run([sys.executable, "-W", "error", "-c", code, path], capture_output=True, text=True)


@pytest.mark.slow
def test_a_program_that_knows_zarr_alone_reads_it(tmp_path):
    numbers = codes()
    done = run(READ, create(tmp_path / "out.zarr", numbers) / "z8")
    assert done.stdout.strip() == str(numbers.sum(dtype=np.int64)), done.stderr


@pytest.mark.slow
def test_without_this_package_the_error_names_it(tmp_path):
    done = run(WITHOUT, create(tmp_path / "out.zarr", codes()) / "z8")
    assert done.returncode == 1
    assert "hvae-codec.archive" in done.stderr.strip().splitlines()[-1]
