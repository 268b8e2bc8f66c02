"""Unfinished stores whose codes become wider: in the end they are those that had wide codes from the start."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from hvae_codec import open_store
from hvae_codec.errors import StoreError
from hvae_codec.storage.bucket import BucketLocation
from hvae_codec.storage.folder import FolderLocation
from hvae_codec.storage.location import Location, location_of
from hvae_codec.store.narrowing import CodeRangeError
from hvae_codec.store.open_writer import create_or_resume, is_written
from hvae_codec.store.spec import StoreSpec
from hvae_codec.store.widening import NOTE, widen
from hvae_codec.store.workers import Worker
from hvae_codec.store.writer import StoreWriter
from hvae_codec.verification.verify import verify
from stores import checksums_of, make_spec, photo_latents, records_of, tree

NARROW = {16: "int8", 4: "int8", 1: "int8"}
WIDE = {16: "int8", 4: "int16", 1: "int8"}
IMAGES, OUTLIER, CODE = 20, 18, -300  # in the last of three row groups, which is shorter than the others


def spec_of(dtypes: dict[int, str], packing: str = "zstd", granularity: str = "variate") -> StoreSpec:
    spec = make_spec(IMAGES, granularity=granularity, packing=packing, **records_of(IMAGES))
    return dataclasses.replace(spec, dtypes=dtypes)


def latents_of(spec: StoreSpec) -> dict[int, np.ndarray]:
    """Codes that fit into a byte but for one."""
    latents = {r: np.clip(numbers, -100, 100) for r, numbers in photo_latents(spec).items()}
    latents[4][OUTLIER].flat[3] = CODE
    return latents


def begin(location: Location, spec: StoreSpec, worker: Worker | None = None) -> StoreWriter:
    return create_or_resume(location, spec, False, worker or Worker())[0]


def fill(writer: StoreWriter) -> StoreWriter:
    """Write what is pending."""
    latents, checksums = latents_of(writer.spec), checksums_of(writer.spec.names)
    for r in writer.pending():
        rows = slice(writer.rows(r).start, writer.rows(r).stop)
        writer.write(r, {k: v[rows] for k, v in latents.items()}, {"checksum": checksums[rows]})
    return writer


def filled_until_there_is_no_room(writer: StoreWriter) -> StoreWriter:
    with pytest.raises(CodeRangeError):
        fill(writer)
    assert writer.pending() == [2]
    return writer


def finish(location: Location, spec: StoreSpec) -> None:
    """What the same encode does when it is called again."""
    writer = begin(location, spec)
    if writer.spec.dtypes == NARROW:
        writer = widen(filled_until_there_is_no_room(writer), WIDE)
    fill(writer).publish()


@pytest.fixture(params=[("zstd", "variate"), ("archive", "position")], ids="-".join)
def kind(request) -> tuple[str, str]:
    return request.param


def made_wide(path: Path, *kind: str) -> dict[str, bytes]:
    fill(begin(FolderLocation(path), spec_of(WIDE, *kind))).publish()
    return tree(path)


def test_a_code_without_room_widens_its_array(tmp_path, kind):
    expected = made_wide(tmp_path / "wide.zarr", *kind)
    location, seen = FolderLocation(tmp_path / "out.zarr"), []
    begun = begin(location, spec_of(NARROW, *kind))
    with pytest.raises(CodeRangeError, match=r"image 18 \(photo/018-é\.png\) has the code -300 in z4") as error:
        fill(begun)
    assert error.value.resolution == 4
    wide = widen(begun, WIDE, progress=lambda *call: seen.append(call))
    assert seen == [(8, 16), (16, 16)]
    assert wide.pending() == [2]
    with pytest.raises(StoreError, match="was removed or replaced"):  # who would write codes of one byte
        fill(begun)
    fill(wide).publish()
    assert tree(location) == expected
    assert not verify(location).damages
    np.testing.assert_array_equal(open_store(location).raw_latents(4, range(IMAGES)), latents_of(wide.spec)[4])


class Killed(BaseException):
    """What was written is there, and nothing more is."""


@contextmanager
def killed_after(steps: int, location: type[Location]) -> Iterator[None]:
    """Kill whoever writes, creates or removes objects more often than that."""
    left = itertools.count(steps, -1)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("write", "create", "delete"):
            patch.setattr(location, name, _counted(getattr(location, name), left))
        yield


def _counted(method: Callable[..., object], left: Iterator[int]) -> Callable[..., object]:
    def counted(*given: object) -> object:
        if next(left) <= 0:
            raise Killed
        return method(*given)

    return counted


def test_a_kill_at_any_moment_loses_nothing(tmp_path, kind):
    """Before each file that is written or removed while codes become wider."""
    expected, spec = made_wide(tmp_path / "wide.zarr", *kind), spec_of(NARROW, *kind)
    begun = filled_until_there_is_no_room(begin(FolderLocation(tmp_path / "begun.zarr"), spec))
    for steps in itertools.count():
        location = FolderLocation(tmp_path / f"{steps}.zarr")
        shutil.copytree(begun.unfinished, f"{location}.partial")
        try:
            with killed_after(steps, FolderLocation):
                widen(begin(location, spec), WIDE)
        except Killed:
            finish(location, spec)
            assert tree(location) == expected
        else:
            break
    assert (
        steps == 14
    )  # twice the document, two arrays' metadata; for two row groups, the digest twice and three shards


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 3, 6, 9, 13])
def test_a_kill_loses_nothing_in_a_bucket(tmp_path, bucket, steps):
    location = location_of(f"{bucket}/out.zarr")
    begun = filled_until_there_is_no_room(begin(location, spec_of(NARROW)))
    with pytest.raises(Killed), killed_after(steps, BucketLocation):
        widen(begun, WIDE)
    with pytest.raises(Killed), killed_after(1, BucketLocation):  # and once more
        begin(location, spec_of(NARROW))
    finish(location, spec_of(NARROW))
    assert {key: (location / key).read_bytes() for key, _ in location.files()} == made_wide(tmp_path / "wide.zarr")


def test_a_row_group_that_is_not_rewritten_when_the_kill_comes_stays_committed(tmp_path):
    location = FolderLocation(tmp_path / "out.zarr")
    begun = filled_until_there_is_no_room(begin(location, spec_of(NARROW)))
    with pytest.raises(Killed), killed_after(5, FolderLocation):  # the document, metadata, a digest and a shard
        widen(begun, WIDE)
    again = begin(location, spec_of(NARROW))
    assert (again.spec.dtypes, again.pending()) == (WIDE, [0, 2])


@pytest.mark.parametrize("damage", ["lost", "flipped", "another's"])
def test_a_damaged_row_group_is_written_again(tmp_path, damage):
    expected, location = made_wide(tmp_path / "wide.zarr"), FolderLocation(tmp_path / "out.zarr")
    begun = filled_until_there_is_no_room(begin(location, spec_of(NARROW)))
    shard, other = (begun.unfinished / f"z16/c/{r}/0/0/0" for r in (1, 0))
    content = shard.read_bytes()
    damaged = content[:9] + bytes([content[9] ^ 1]) + content[10:] if damage == "flipped" else other.read_bytes()
    shard.unlink() if damage == "lost" else shard.write_bytes(damaged)
    wide = widen(begun, WIDE)
    assert wide.pending() == [1, 2]
    fill(wide).publish()
    assert tree(location) == expected


def test_what_was_begun_with_wide_codes_keeps_them(tmp_path):
    expected, location = made_wide(tmp_path / "wide.zarr"), FolderLocation(tmp_path / "out.zarr")
    begin(location, spec_of(WIDE)).write(0, *_row_group(0))
    again = begin(location, spec_of(NARROW), Worker(1, 2))  # one of several workers, too
    assert (again.spec.dtypes, again.pending()) == (WIDE, [1, 2])
    fill(begin(location, spec_of(NARROW))).publish()
    assert tree(location) == expected
    assert is_written(location, spec_of(NARROW))
    assert not is_written(location, spec_of(NARROW, "archive"))


def test_wider_codes_that_are_asked_for_widen_what_was_begun(tmp_path):
    location, both = FolderLocation(tmp_path / "out.zarr"), dict.fromkeys(NARROW, "int16")
    fill(begin(FolderLocation(tmp_path / "both.zarr"), spec_of(both))).publish()
    filled_until_there_is_no_room(begin(location, spec_of(NARROW)))
    with pytest.raises(StoreError, match="other settings"):
        begin(location, spec_of(both), Worker(0, 2))
    again = begin(location, spec_of(both))
    assert again.pending() == [2]
    fill(again).publish()
    assert tree(location) == tree(tmp_path / "both.zarr")


def test_what_is_half_rewritten_is_finished_before_more_is_asked_for(tmp_path):
    location, both = FolderLocation(tmp_path / "out.zarr"), dict.fromkeys(NARROW, "int16")
    fill(begin(FolderLocation(tmp_path / "both.zarr"), spec_of(both))).publish()
    begun = filled_until_there_is_no_room(begin(location, spec_of(NARROW)))
    with pytest.raises(Killed), killed_after(8, FolderLocation):  # one row group is rewritten, the other is not
        widen(begun, WIDE)
    again = begin(location, spec_of(both))
    assert again.pending() == [2]
    fill(again).publish()
    assert tree(location) == tree(tmp_path / "both.zarr")


def test_where_shards_are_taken_over_other_types_are_another_store(tmp_path):
    location = FolderLocation(tmp_path / "out.zarr")
    begin(location, spec_of(WIDE)).write(0, *_row_group(0))
    partial = Path(f"{location}.partial")
    before = tree(partial)
    for worker in (Worker(), Worker(1, 2)):
        with pytest.raises(StoreError, match="other settings"):
            create_or_resume(location, spec_of(NARROW), False, worker, same_types=True)
    assert tree(partial) == before
    assert create_or_resume(location, spec_of(WIDE), False, Worker(), same_types=True)[0].pending() == [1, 2]


def test_several_workers_do_not_go_on_with_what_is_half_rewritten(tmp_path):
    location = FolderLocation(tmp_path / "out.zarr")
    begun = filled_until_there_is_no_room(begin(location, spec_of(NARROW)))
    with pytest.raises(Killed), killed_after(1, FolderLocation):
        widen(begun, WIDE)
    assert NOTE in json.loads((begun.unfinished / "zarr.json").read_bytes())["attributes"]
    with pytest.raises(StoreError, match="without --worker"):
        begin(location, spec_of(NARROW), Worker(1, 2))
    finish(location, spec_of(NARROW))
    assert is_written(location, spec_of(NARROW))


def test_an_unfinished_store_of_something_else_is_left_alone(tmp_path):
    location = FolderLocation(tmp_path / "out.zarr")
    begin(location, spec_of(WIDE)).write(0, *_row_group(0))
    for other in (spec_of(NARROW, "archive"), dataclasses.replace(spec_of(NARROW), mask={"keep": 0.5})):
        with pytest.raises(StoreError, match="other images, another model or other settings"):
            begin(location, other)


def _row_group(number: int) -> tuple[dict[int, np.ndarray], dict[str, np.ndarray]]:
    spec, rows = spec_of(WIDE), slice(8 * number, 8 * number + 8)
    return {r: part[rows] for r, part in latents_of(spec).items()}, {"checksum": checksums_of(spec.names)[rows]}
