"""Ranges of objects and of files over them: joined, bounded, whole, and of one object only."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import obstore
import pytest

from hvae_codec.errors import UnreachableError
from hvae_codec.storage import range_file, ranges_ahead
from hvae_codec.storage.bucket import BucketLocation
from hvae_codec.storage.object_state import ObjectState, ReplacedError
from hvae_codec.storage.range_file import RangeFile
from hvae_codec.storage.ranges_ahead import Range, RangesAhead


def upload(url: str, content: bytes) -> None:
    location = BucketLocation.of(url)
    obstore.put(location.bucket.client, location.key, content, use_multipart=False)


@pytest.mark.slow
def test_what_was_announced_and_never_read_is_forgotten(bucket, monkeypatch):
    upload(f"{bucket}/object", content := np.random.default_rng(0).bytes(100_000))
    monkeypatch.setattr(ranges_ahead, "GAP_BYTES", 0)
    monkeypatch.setattr(ranges_ahead, "HELD_BYTES", 20_000)
    monkeypatch.setattr(ranges_ahead, "ANNOUNCED_BYTES", 10_000)
    ranges = RangesAhead([ObjectState.of(BucketLocation.of(f"{bucket}/object"))])
    for start in range(0, 90_000, 5_000):
        ranges.announce(Range(0, start + 500 * i, 400) for i in range(10))
        assert ranges._held <= 20_000
    assert all(ranges.read(Range(0, at, 400)) == content[at : at + 400] for at in range(0, 90_000, 500))
    assert (ranges._held, len(ranges._ahead)) == (0, 0)


@pytest.mark.slow
def test_ranges_of_several_requests_are_whole(bucket, monkeypatch):
    monkeypatch.setattr(ranges_ahead, "REQUEST_BYTES", 4_096)
    upload(f"{bucket}/object", content := np.random.default_rng(0).bytes(100_000))
    ranges = RangesAhead([ObjectState.of(BucketLocation.of(f"{bucket}/object"))])
    ranges.announce([Range(0, 100, 30_000), Range(0, len(content) - 5, 5)])
    assert ranges.read(Range(0, 100, 30_000)) == content[100:30_100]
    assert ranges.read(Range(0, len(content) - 5, 50)) == content[-5:]
    assert ranges.read(Range(0, 50_000, 30_000)) == content[50_000:80_000]


@pytest.mark.slow
def test_behind_a_failed_request_those_that_wait_fail_at_once_and_later_ones_are_sent(bucket, monkeypatch):
    monkeypatch.setattr(ranges_ahead, "AT_ONCE", 1)
    monkeypatch.setattr(ranges_ahead, "GAP_BYTES", 0)
    upload(f"{bucket}/object", bytes(1000))
    ranges, asked = RangesAhead([ObjectState.of(BucketLocation.of(f"{bucket}/object"))]), []

    def refused(*_: object, **__: object) -> None:
        asked.append(1)
        raise obstore.exceptions.GenericError("HTTP error: error sending request")

    wanted = [Range(0, start, 5) for start in range(0, 1000, 10)]
    with monkeypatch.context() as patch:
        patch.setattr(obstore, "get", refused)
        ranges.announce(wanted)
        for range_ in wanted:
            with pytest.raises(UnreachableError, match="there is no answer"):
                ranges.read(range_)
    assert len(asked) == 1
    ranges.announce(wanted)
    assert ranges.read(wanted[7]) == bytes(5)


@pytest.mark.slow
def test_a_server_without_conditions_is_found_out_by_its_etag(bucket):
    upload(f"{bucket}/object", b"before")
    state = ObjectState.of(BucketLocation.of(f"{bucket}/object"))
    weak = ObjectState(state.location, state.size, f"W/{state.tag}")
    assert (state.read(0, 9), state.read(9, 12), state.check()) == (b"before", b"", None)
    with pytest.raises(ReplacedError):
        weak.read(0, 3)
    upload(f"{bucket}/object", b"behind")
    with pytest.raises(ReplacedError):
        state.check()


def test_a_file_of_ranges_reads_like_a_file():
    content, asked = np.random.default_rng(0).bytes(3_000_000), []

    def read(start: int, count: int) -> bytes:
        asked.append(count)
        return content[start : start + count]

    file, same = RangeFile(read, len(content)), io.BytesIO(content)
    steps = np.random.default_rng(1)
    for _ in range(300):
        count, whence = int(steps.integers(0, 90_000)), int(steps.integers(3))
        offset = int(steps.integers(0, len(content))) if whence == 0 else int(steps.integers(-5_000, 0))
        for each in (file, same):
            each.seek(offset if whence != 1 else max(offset, -each.tell()), whence)
        assert (file.read(count), file.tell()) == (same.read(count), same.tell())
    asked.clear()
    file.seek(0)
    for each in iter(lambda: file.read(512), b""):
        assert len(each) <= 512
    assert len(asked) < 8


@pytest.mark.slow
@pytest.mark.parametrize("size", [10, 500])
def test_a_shorter_object_is_another_one_also_without_conditions(bucket, size):
    """A server may have no ETag, or a weak one, that a request could be for."""
    upload(f"{bucket}/object", bytes(1000))
    state = replace(ObjectState.of(BucketLocation.of(f"{bucket}/object")), tag='W/"weak"')
    upload(f"{bucket}/object", bytes(size))
    for start, stop in ((0, 5), (400, 600), (900, 1000)):
        with pytest.raises(ReplacedError):
            state.read(start, stop)


def test_what_is_on_its_way_is_read_alone():
    content, asked = bytes(range(250)) * 4_000, []

    def read(start: int, count: int) -> bytes:
        asked.append((start, count))
        return content[start : start + count]

    file = RangeFile(read, len(content), lambda start, count: (start, count) in {(300_000, 40), (600_000, 50)})
    for start, count in ((300_000, 40), (600_000, 50)):
        file.seek(start)
        assert file.read(count) == content[start : start + count]
    assert asked == [(300_000, 40), (600_000, 50)]
    assert file.read(40) == content[600_050:600_090]
    assert asked[2:] == [(600_050, range_file.FIRST_BYTES)]
