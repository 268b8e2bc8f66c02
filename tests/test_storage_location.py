"""What names the place of a store, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from hvae_codec import open_store
from hvae_codec.errors import UsageError
from hvae_codec.storage.location import location_of
from hvae_codec.verification.verify import verify
from stores import make_store


@pytest.mark.parametrize("url", ["s3:/bucket/out.zarr", Path("s3://bucket/out.zarr"), "gs:/bucket/out.zarr"])
def test_a_url_with_one_slash_is_no_folder(url):
    with pytest.raises(UsageError, match=r"one slash .*; give (s3|gs)://bucket/out.zarr"):
        location_of(url)


def test_the_folder_one_is_in_can_be_given(tmp_path, monkeypatch):
    path = make_store(tmp_path / "out.zarr").path
    monkeypatch.chdir(path)
    assert location_of(".") == path
    assert verify(".").ok
    monkeypatch.chdir(path / "z16")
    assert len(open_store("..")) == 20
    with pytest.raises(UsageError, match="root of a file system"):
        location_of("/")
