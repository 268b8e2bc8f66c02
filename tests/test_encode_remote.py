"""Stores in a bucket, of a server on this machine: the same objects, numbers and errors as in a folder."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import obstore
import pytest
from moto.server import ThreadedMotoServer
from test_encode_store import GRANULARITIES, make_spec, make_store, photo_latents, tree

from hvae_codec.encode import remote
from hvae_codec.encode.latents import FloatCodec, IntCodec
from hvae_codec.encode.places import place_of
from hvae_codec.encode.remote import RemotePath
from hvae_codec.encode.store import open_store
from hvae_codec.encode.verify import verify
from hvae_codec.errors import StoreError, UnreachableError, UsageError

KINDS = [("variate", IntCodec()), ("position", IntCodec()), ("variate", FloatCodec("float16"))]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server that speaks S3, and the environment that leads to it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setattr(remote, "RETRIES", 2)
        yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(server) -> Iterator[str]:
    """A new bucket's URL."""
    import urllib.request

    urllib.request.urlopen(urllib.request.Request(f"{server}/images", method="PUT")).close()
    yield "s3://images"
    client = RemotePath.of("s3://images/any").bucket.client
    obstore.delete(client, [entry["path"] for batch in obstore.list(client) for entry in batch])
    urllib.request.urlopen(urllib.request.Request(f"{server}/images", method="DELETE")).close()


def upload(folder: Path, url: str) -> None:
    client, key = (path := RemotePath.of(url)).bucket.client, path.key
    for name, content in tree(folder).items():
        obstore.put(client, f"{key}/{name}", content)


def remote_tree(url: str) -> dict[str, bytes]:
    path = RemotePath.of(url)
    return {key: (path / key).read_bytes() for key, _ in sorted(path.files())}


@pytest.mark.parametrize(("granularity", "codec"), KINDS)
def test_a_store_in_a_bucket_reads_like_a_folder(tmp_path, bucket, granularity, codec):
    local = make_store(tmp_path / "out.zarr", make_spec(20, codec=codec, granularity=granularity))
    upload(local.path, f"{bucket}/some/out.zarr")
    store = open_store(f"{bucket}/some/out.zarr")
    assert (len(store), store.names, store.labels) == (20, local.names, local.labels)
    assert store.nbytes_on_disk() == local.nbytes_on_disk()
    assert store.per_image_names == local.per_image_names
    for wanted in (slice(None), slice(3, 9), 5, -1):
        for name, z in local.latents(wanted).items():
            np.testing.assert_array_equal(store.latents(wanted)[name], z)
    for name, z in local.gather_latents([17, 2, 2, 9]).items():
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).gather_latents([17, 2, 2, 9])[name], z)
    for row_group in range(store.row_groups):
        store.check(row_group)


def flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


def test_verify_names_damaged_and_missing_objects(tmp_path, bucket):
    local = make_store(tmp_path / "out.zarr", make_spec(20))
    upload(local.path, url := f"{bucket}/out.zarr")
    report = verify(url)
    assert (report.ok, report.files, report.notes) == (True, len(tree(local.path)), [])
    path = RemotePath.of(url)
    client, content = path.bucket.client, tree(local.path)
    obstore.put(client, "out.zarr/z16/c/0/0/0/0", flip(content["z16/c/0/0/0/0"], 30))
    obstore.put(client, "out.zarr/z4/c/1/0/0/0", b"")
    obstore.delete(client, "out.zarr/z1/c/2/0/0/0")
    obstore.delete(client, "out.zarr/label/c/0")
    obstore.put(client, "out.zarr/stray", b"text")
    report = verify(url)
    found = {damage.file: (damage.row_group, list(damage.images)) for damage in report.damages}
    assert found.keys() == {"z16/c/0/0/0/0", "z4/c/1/0/0/0", "z1/c/2/0/0/0", "label/c/0"}
    assert found["z4/c/1/0/0/0"] == (1, list(range(8, 16)))
    assert found["z1/c/2/0/0/0"] == (2, [16, 17, 18, 19])
    assert report.notes == ["1 files are no part of the store: stray"]
    store = open_store(url)
    for image in (0, 9, 17):
        with pytest.raises(StoreError, match="damaged|lacks"):
            store.latents(image)
    assert verify(local.path).ok
