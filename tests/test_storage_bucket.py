"""Stores in a bucket, of a server on this machine: the same objects, numbers and errors as in a folder."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import obstore
import pytest
from torch.utils.data import DataLoader

from hvae_codec import LatentMask, encode_images, kl_stats, open_store, verify_deep
from hvae_codec.data.sources import as_source
from hvae_codec.encode.append import append, append_worker
from hvae_codec.encode.dataset import LatentDataset
from hvae_codec.encode.pipeline import EncodeOptions
from hvae_codec.encode.repair import RepairOptions, repair
from hvae_codec.encode.sync import sync
from hvae_codec.errors import StoreError, UnreachableError, UsageError
from hvae_codec.report.about import describe
from hvae_codec.storage import connection
from hvae_codec.storage.bucket import BucketLocation
from hvae_codec.store.bucket_writer import BucketStoreWriter
from hvae_codec.store.disk_use import disk_use
from hvae_codec.store.open_writer import check_location
from hvae_codec.store.row_group_writer import RowGroupWriter
from hvae_codec.store.unfinished_reference import UnfinishedReference
from hvae_codec.store.workers import Worker
from hvae_codec.verification.row_group import checked_row_group
from hvae_codec.verification.verify import verify
from hvae_codec_cli.app import main
from stores import KINDS, make_spec, make_store, photo_latents, tree, write_all

pytestmark = pytest.mark.slow


def upload(folder: Path, url: str) -> None:
    client, key = (path := BucketLocation.of(url)).bucket.client, path.key
    for name, content in tree(folder).items():
        obstore.put(client, f"{key}/{name}", content)


def remote_tree(url: str) -> dict[str, bytes]:
    path = BucketLocation.of(url)
    return {key: (path / key).read_bytes() for key, _ in sorted(path.files())}


@pytest.mark.parametrize(("granularity", "codec"), KINDS[1:])
def test_a_store_in_a_bucket_reads_like_a_folder(tmp_path, bucket, granularity, codec):
    local = make_store(tmp_path / "out.zarr", make_spec(20, codec=codec, granularity=granularity))
    upload(local.path, f"{bucket}/some/out.zarr")
    store = open_store(f"{bucket}/some/out.zarr")
    assert (len(store), store.names, store.labels) == (20, local.names, local.labels)
    assert store.nbytes_on_disk() == local.nbytes_on_disk()
    assert disk_use(store) == disk_use(local)
    assert store.per_image_names == local.per_image_names
    for wanted in (slice(None), slice(3, 9), 5, -1):
        for name, z in local.latents(wanted).items():
            np.testing.assert_array_equal(store.latents(wanted)[name], z)
    for name, z in local.gather_latents([17, 2, 2, 9]).items():
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).gather_latents([17, 2, 2, 9])[name], z)
    for row_group in range(len(store.row_groups)):
        checked_row_group(store, row_group)


def flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


def test_verify_names_damaged_and_missing_objects(tmp_path, bucket):
    local = make_store(tmp_path / "out.zarr", make_spec(20))
    upload(local.path, url := f"{bucket}/out.zarr")
    report = verify(url)
    assert (report.ok, report.files, report.notes) == (True, len(tree(local.path)), [])
    path = BucketLocation.of(url)
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
        with pytest.raises(StoreError, match=r"damaged|lacks"):
            store.latents(image)
    assert verify(local.path).ok


def test_a_shard_that_was_replaced_is_read_anew(tmp_path, bucket):
    spec, url = make_spec(20), f"{bucket}/out.zarr"
    latents = photo_latents(spec)
    upload(make_store(tmp_path / "out.zarr", spec).path, url)
    store = open_store(url)
    store.latents(0)  # the index of the first shard is known from now on
    other = {r: np.ascontiguousarray(z[::-1] // 2) for r, z in latents.items()}
    writer = write_all(tmp_path / "other.zarr", spec, other)
    writer.publish()
    upload(writer.path, url)
    np.testing.assert_array_equal(store.stored(slice(4, 8))[16], other[16][4:8])  # another chunk of that shard


def counted(request, asked):
    def ask(client, key, *arguments, **options):
        asked.append(key)
        return request(client, key, *arguments, **options)

    return ask


def test_requests_are_few(tmp_path, bucket, monkeypatch):
    upload(make_store(tmp_path / "out.zarr", make_spec(20)).path, url := f"{bucket}/out.zarr")
    asked: list[str] = []
    for name in ("get", "get_ranges", "get_async", "get_range_async"):
        monkeypatch.setattr(obstore, name, counted(getattr(obstore, name), asked))
    store = open_store(url)
    assert len(asked) == len(set(asked)) == 13  # zarr.json of the group and of 9 arrays, 3 tables of steps
    for images, requests in ((3, 6), (3, 0), (slice(0, 4), 0), (slice(None), 15)):
        asked.clear()
        store.latents(images)
        assert len(asked) <= requests


def test_locations_in_a_bucket_share_a_connection_while_the_settings_stay(bucket, monkeypatch):
    one, other = pickle.loads(pickle.dumps([BucketLocation.of(f"{bucket}/a"), BucketLocation.of(f"{bucket}/b")]))
    assert (str(one), str(other)) == (f"{bucket}/a", f"{bucket}/b")
    assert one.bucket.connection is other.bucket.connection
    assert one.bucket.prefetched is not other.bucket.prefetched
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone else")
    assert pickle.loads(pickle.dumps(one)).bucket.connection is not one.bucket.connection


def test_a_forked_process_says_what_to_do(tmp_path, bucket):
    upload(make_store(tmp_path / "out.zarr", make_spec(20)).path, url := f"{bucket}/out.zarr")
    dataset = LatentDataset(url)
    assert len(list(DataLoader(dataset, batch_size=None, num_workers=0))) == 20
    for read in (lambda store: store.latents(19), lambda store: store.per_image("name")):
        store = open_store(url)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 0)
            with pytest.raises(UsageError, match=r"forked process; .* spawn"):
                read(store)


# --- writing ---------------------------------------------------------------------------------------------------------


def write_rows(writer, latents, row_groups) -> None:
    for row_group in row_groups:
        rows = writer.rows(row_group)
        writer.write(row_group, {r: z[rows.start : rows.stop] for r, z in latents.items()})


def bucket_writer(url: str, spec, overwrite: bool = False, worker: Worker | None = None) -> BucketStoreWriter:
    return BucketStoreWriter.create_or_resume(BucketLocation.of(url), spec, overwrite, worker or Worker())


@pytest.mark.parametrize("granularity", ["variate", "position"])
def test_workers_read_what_they_write_from_the_unfinished_store(bucket, granularity):
    spec = make_spec(20, granularity=granularity)
    writer = bucket_writer(f"{bucket}/workers.zarr", spec)
    reference = pickle.loads(pickle.dumps(UnfinishedReference.of(writer.row_group_writer)))
    store = reference.open()
    assert store.columns.agree_with(spec.columns)
    assert reference.writer_of(store).layout.schema == spec.schema
    for resolution, steps in spec.steps.items():
        np.testing.assert_array_equal(store.steps[resolution], steps)


@pytest.mark.parametrize(("granularity", "codec"), KINDS[1:])
def test_a_store_written_to_a_bucket_has_the_same_objects(tmp_path, bucket, granularity, codec):
    spec = make_spec(20, codec=codec, granularity=granularity)
    local, latents, url = make_store(tmp_path / "out.zarr", spec), photo_latents(spec), f"{bucket}/out.zarr"
    writer = bucket_writer(url, spec)
    write_rows(writer, latents, [1, 0])
    assert writer.pending() == [2]
    assert not writer.finish()
    with pytest.raises(StoreError, match=r"out\.zarr is unfinished; run the same"):
        open_store(url)
    again = bucket_writer(url, spec)  # in another process, after a kill
    assert again.pending() == [2]
    write_rows(pickle.loads(pickle.dumps(again)), latents, [2])
    assert again.finish()
    assert again.finish()  # what another worker finds
    assert remote_tree(url) == tree(local.path)


class KilledError(Exception):
    """The process dies."""


@contextlib.contextmanager
def killed_after(allowed: int) -> Iterator[list[str]]:
    """A process that dies at its next request to write after `allowed` ones; the objects that it asked for."""
    written: list[str] = []

    def until_killed(request):
        def ask(*arguments, **options):
            written.append(arguments[2] if request.__name__ == "copy" else arguments[1])
            if len(written) > allowed:
                raise KilledError
            return request(*arguments, **options)

        return ask

    with pytest.MonkeyPatch.context() as patch:
        for name in ("put", "put_async", "copy", "delete"):
            patch.setattr(obstore, name, until_killed(getattr(obstore, name)))
        with pytest.raises(KilledError):
            yield written
    assert len(written) > allowed


@pytest.mark.parametrize("allowed", [0, 9, 27, 28])
def test_killed_at_any_request_it_goes_on_to_the_same_objects(tmp_path, bucket, allowed):
    spec, url = make_spec(20), f"{bucket}/out.zarr"
    latents = photo_latents(spec)

    def write() -> bool:
        writer = bucket_writer(url, spec)
        write_rows(writer, latents, writer.own_pending())
        return writer.finish()

    with killed_after(allowed) as written:
        write()
    if "out.zarr/zarr.json" not in written[:allowed]:
        with pytest.raises(StoreError, match="unfinished" if allowed else "there is no store"):
            open_store(url)
    assert write() if allowed < 28 else open_store(url).names == spec.names
    found = remote_tree(url)
    assert found.pop("unfinished.json", None) is None or allowed == 28  # published, and killed before it was removed
    assert found == tree(make_store(tmp_path / "out.zarr", spec).path)


def test_workers_write_one_store_in_a_bucket(tmp_path, bucket):
    spec, url = make_spec(20), f"{bucket}/out.zarr"
    local, latents = make_store(tmp_path / "out.zarr", spec), photo_latents(spec)
    writers = [bucket_writer(url, spec, worker=Worker(k, 2)) for k in range(2)]
    for writer, finishes in zip(writers, (False, True), strict=True):
        write_rows(writer, latents, writer.own_pending())
        assert writer.finish() == finishes
    assert remote_tree(url) == tree(local.path)


def test_what_is_in_a_bucket_is_not_overwritten_unasked(tmp_path, bucket):
    spec, other, url = make_spec(20), make_spec(9), f"{bucket}/out.zarr"
    write_rows(bucket_writer(url, spec), photo_latents(spec), [0])
    with pytest.raises(StoreError, match="unfinished store of other images"):
        bucket_writer(url, other)
    with pytest.raises(StoreError, match="give all workers"):
        bucket_writer(url, other, overwrite=True, worker=Worker(0, 2))
    writer = bucket_writer(url, other, overwrite=True)
    write_rows(writer, photo_latents(other), writer.own_pending())
    assert writer.finish()
    assert remote_tree(url) == tree(make_store(tmp_path / "other.zarr", other).path)
    with pytest.raises(StoreError, match=r"out\.zarr exists; .*--overwrite"):
        bucket_writer(url, spec)
    with pytest.raises(StoreError, match="several workers cannot replace it"):
        bucket_writer(url, spec, overwrite=True, worker=Worker(0, 2))
    writer = bucket_writer(url, spec, overwrite=True)
    write_rows(writer, photo_latents(spec), writer.own_pending())
    assert writer.finish()
    assert remote_tree(url) == tree(make_store(tmp_path / "out.zarr", spec).path)
    for key in ("mine/notes.txt", "theirs/zarr.json"):
        obstore.put(BucketLocation.of(url).bucket.client, key, b"{}")
        with pytest.raises(StoreError, match="is not overwritten"):
            bucket_writer(f"{bucket}/{key.split('/')[0]}", spec, overwrite=True)


def test_two_encodes_to_one_name_do_not_mix(tmp_path, bucket, monkeypatch):
    first, second, url = make_spec(20), make_spec(17), f"{bucket}/out.zarr"
    slow, fast, one_at_a_time = bucket_writer(url, first), None, threading.Lock()
    latents, keep = photo_latents(first), RowGroupWriter._write_shard

    def overtaken(writer, *arguments):
        nonlocal fast
        keep(writer, *arguments)
        with one_at_a_time:
            fast = fast or bucket_writer(url, second)  # nothing is committed yet, so it may start over

    with monkeypatch.context() as patch:
        patch.setattr(RowGroupWriter, "_write_shard", overtaken)
        for _ in range(2):  # right before the digest, and before anything is written
            with pytest.raises(StoreError, match="replaced while it was written"):
                write_rows(slow, latents, [0])
    with pytest.raises(StoreError, match="replaced while it was written"):
        slow.finish()
    assert fast.pending() == [0, 1, 2]
    write_rows(fast, photo_latents(second), fast.own_pending())
    assert fast.finish()
    assert remote_tree(url) == tree(make_store(tmp_path / "out.zarr", second).path)
    with pytest.raises(StoreError, match="has a name that encode needs"):
        bucket_writer(f"{url}.partial", first)


def test_a_table_that_was_lost_on_the_way_is_written_before_the_store_is_published(tmp_path, bucket):
    spec, url = make_spec(20), f"{bucket}/out.zarr"
    writer = bucket_writer(url, spec)
    write_rows(writer, photo_latents(spec), writer.own_pending())
    BucketLocation.of(url).delete(["name/c/0", "step4/zarr.json"])
    assert writer.finish()
    assert remote_tree(url) == tree(make_store(tmp_path / "out.zarr", spec).path)


def test_an_encode_into_a_bucket_goes_on_after_an_interruption(
    tmp_path, bucket, tiny_model, photo_patches, monkeypatch
):
    stats = kl_stats(tiny_model, photo_patches)
    arguments = {
        "mask": LatentMask.from_keep(stats, 0.1),
        "stats": stats,
        "options": EncodeOptions(batch_size=4, row_group_size=4),
    }
    local = encode_images(tiny_model, photo_patches, tmp_path / "out.zarr", **arguments)
    url, done = f"{bucket}/out.zarr", []

    def stop(count: int, total: int) -> None:
        if count > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_images(tiny_model, photo_patches, url, progress=stop, **arguments)
    with pytest.raises(StoreError, match="unfinished"):
        open_store(url)
    store = encode_images(tiny_model, photo_patches, url, progress=lambda count, total: done.append(count), **arguments)
    assert done[0] > 8
    assert remote_tree(url) == tree(local.path)
    np.testing.assert_array_equal(store.decode([0, 7], tiny_model), local.decode([0, 7], tiny_model))


def test_damage_in_a_bucket_is_repaired(tmp_path, bucket, tiny_model, photo_patches):
    stats = kl_stats(tiny_model, photo_patches)
    options = EncodeOptions(batch_size=4, row_group_size=4, evaluate=True, embed="whole", verify=True)
    arguments = {"mask": LatentMask.from_keep(stats, 0.1), "stats": stats, "options": options}
    encode_images(tiny_model, photo_patches, url := f"{bucket}/out.zarr", **arguments)
    path, before = BucketLocation.of(url), remote_tree(url)
    assert verify_deep(url).ok
    path.write("rate/c/1", flip(before["rate/c/1"], 3))
    path.delete(["z8/c/2/0/0/0", "name/c/0", "model/c/0", "label/zarr.json"])
    report = repair(url, as_source(photo_patches), tiny_model, stats=stats, options=RepairOptions(batch_size=4))
    assert (report.after.ok, report.notes) == (True, [])
    assert remote_tree(url) == before
    path.delete(["zarr.json"])
    with pytest.raises(StoreError, match=f"`hvae-codec repair {url}` restores it"):
        open_store(url)
    assert repair(url).rewritten == ["zarr.json"]
    assert remote_tree(url) == before


# --- appending -------------------------------------------------------------------------------------------------------

OLD = 10
"""Images of the first store: two row groups of 4, and 2 in a third, which 2 of 14 new images fill."""


@pytest.fixture(scope="module")
def shorter(tiny_model, photo_patches, tmp_path_factory) -> Path:
    """A store that has all that append knows of: rate, distortion, sketches and the model."""
    stats, path = kl_stats(tiny_model, photo_patches), tmp_path_factory.mktemp("stores") / "out.zarr"
    options = EncodeOptions(batch_size=4, row_group_size=4, evaluate=True, embed="whole", verify=True)
    encode_images(
        tiny_model, photo_patches[:OLD], path, mask=LatentMask.from_keep(stats, 0.1), stats=stats, options=options
    )
    return path


@pytest.fixture(scope="module")
def longer(tiny_model, photo_patches, shorter, tmp_path_factory) -> dict[str, bytes]:
    """Objects of the store that append makes of it in a folder."""
    path = shutil.copytree(shorter, tmp_path_factory.mktemp("stores") / "out.zarr")
    append(tiny_model, photo_patches[OLD:], path, batch_size=4)
    return tree(path)


def test_append_in_a_bucket_gives_the_objects_of_a_folder(
    tmp_path, bucket, tiny_model, photo_patches, shorter, longer, monkeypatch
):
    upload(shorter, url := f"{bucket}/out.zarr")
    asked: list[str] = []
    monkeypatch.setattr(obstore, "copy", counted(obstore.copy, asked))
    store = append(tiny_model, photo_patches[OLD:], url, out=f"{bucket}/new.zarr", batch_size=4)
    assert (len(store), len(asked)) == (24, 2 * len(store.resolutions))
    assert remote_tree(f"{bucket}/new.zarr") == longer
    assert verify_deep(f"{bucket}/new.zarr").ok
    assert remote_tree(url) == tree(shorter)
    for taken in ("out.zarr", "new.zarr"):
        with pytest.raises(StoreError, match=rf"^s3://images/{taken} exists; give"):
            append(tiny_model, photo_patches[OLD:], url, out=f"{bucket}/{taken}")
    with pytest.raises(UsageError, match=r"is in a bucket.*; name"):
        append(tiny_model, photo_patches[OLD:], url)
    # And on to a folder and back, by way of this machine.
    append(tiny_model, photo_patches[OLD:], url, out=tmp_path / "down.zarr", batch_size=4)
    append(tiny_model, photo_patches[OLD:], shorter, out=f"{bucket}/up.zarr", batch_size=4)
    assert tree(tmp_path / "down.zarr") == remote_tree(f"{bucket}/up.zarr") == longer
    assert len(asked) == 2 * len(store.resolutions)


@pytest.mark.parametrize("allowed", [0, 30, 38, 64, 65])
def test_an_append_killed_at_any_request_goes_on(bucket, tiny_model, photo_patches, shorter, longer, allowed):
    upload(shorter, url := f"{bucket}/out.zarr")
    new = BucketLocation.of(f"{bucket}/new.zarr")

    def work() -> None:
        append(tiny_model, photo_patches[OLD:], url, out=new, batch_size=4)

    with killed_after(allowed) as written:
        work()
    if allowed < 65:
        with pytest.raises(StoreError, match="unfinished" if allowed else "there is no store"):
            open_store(new)
        if allowed > 33:
            with pytest.raises(StoreError, match=r"new\.zarr is left of .*; finish that"):
                append(tiny_model, photo_patches[:5], url, out=new)
        work()
    assert written[64:] in ([], ["new.zarr/zarr.json"], ["new.zarr/zarr.json", ["new.zarr/unfinished.json"]])
    found = remote_tree(str(new))
    assert found.pop("unfinished.json", None) is None or allowed == 65  # published, and killed before it was removed
    assert found == longer
    assert remote_tree(url) == tree(shorter)


def test_workers_append_in_a_bucket(bucket, tiny_model, photo_patches, shorter, longer):
    upload(shorter, url := f"{bucket}/out.zarr")
    for number in (1, 0):
        store = append_worker(
            tiny_model, photo_patches[OLD:], url, Worker(number, 2), out=f"{bucket}/new.zarr", batch_size=4
        )
        assert (store is None) == (number == 1)
    assert remote_tree(f"{bucket}/new.zarr") == longer


def test_sync_in_a_bucket(bucket, tiny_model, photo_patches, shorter, tmp_path):
    upload(shorter, url := f"{bucket}/out.zarr")
    changed = np.concatenate([photo_patches[:3], photo_patches[12:13], photo_patches[4:OLD], photo_patches[15:18]])
    expected = sync(tiny_model, changed, shorter, out=tmp_path / "new.zarr", batch_size=4)
    store = sync(tiny_model, changed, url, out=f"{bucket}/new.zarr", batch_size=4)
    assert remote_tree(str(store.path)) == tree(expected.path)
    assert verify(store.path).ok


def test_nothing_is_appended_to_a_store_in_a_bucket_that_is_damaged_or_replaced(
    bucket, tiny_model, photo_patches, shorter
):
    upload(shorter, url := f"{bucket}/out.zarr")
    path, new = BucketLocation.of(url), f"{bucket}/new.zarr"
    for key, content, message in (
        ("z8/c/1/0/0/0", None, "z8/c/1/0/0/0 is missing .*; repair"),
        ("committed/c/0", b"digest", "committed/c/0 is damaged; repair"),
        ("z8/c/2/0/0/0", b"latents", "out.zarr: images 8 to 9: z8/c/2"),
        ("rate/zarr.json", b"{}", "out.zarr: .*metadata of array rate"),
        ("label/c/0", (path / "name/c/0").read_bytes(), "out.zarr has the fingerprint of other"),
    ):
        path.delete([key]) if content is None else path.write(key, content)
        with pytest.raises(StoreError, match=rf"^s3://images/{message}" if "out.zarr" in message else message):
            append(tiny_model, photo_patches[OLD:], url, out=new)
        path.delete([key])
        upload(shorter, url)

    def replace(done: int, total: int) -> None:
        path.delete(["zarr.json"])

    with pytest.raises(StoreError, match=r"out\.zarr .*replaced.*; run the command again"):
        append(tiny_model, photo_patches[OLD:], url, out=new, progress=replace)
    with pytest.raises(StoreError, match="unfinished"):
        open_store(new)


# --- errors ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def answering(patch: pytest.MonkeyPatch, *answers: tuple[int, str]) -> Iterator[list[str]]:
    """An endpoint that gives these answers, status and body, the last one again and again; what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers[min(len(asked), len(answers) - 1)]
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Last-Modified", "Tue, 24 Nov 2026 13:00:00 GMT")
            self.end_headers()
            self.wfile.write(body.encode() if self.command != "HEAD" else b"")

        do_HEAD = do_PUT = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as endpoint:
        threading.Thread(target=endpoint.serve_forever, daemon=True).start()
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{endpoint.server_port}")
        yield asked
        endpoint.shutdown()


def error(code: str) -> str:
    return f"<Error><Code>{code}</Code><Message>told in English</Message></Error>"


def test_a_server_that_fails_for_a_moment_is_asked_again(server, monkeypatch):
    with answering(monkeypatch, (503, error("SlowDown")), (500, ""), (200, "content")) as asked:
        assert BucketLocation.of("s3://images/out.zarr/zarr.json").read_bytes() == b"content"
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ((403, error("AccessDenied")), "access is denied; check the credentials"),
        ((403, error("InvalidAccessKeyId")), "the credentials are wrong"),
        ((403, error("SignatureDoesNotMatch")), "the credentials are wrong"),
        ((500, ""), "the server refused it again"),
        ((429, ""), "the server refused it again"),
        ((503, error("SlowDown")), "the server refused it again"),
        ((404, error("NoSuchBucket")), "there is no such bucket; check"),
        ((301, error("PermanentRedirect")), "another region; set AWS_REGION"),
        ((418, "a teapot"), "Generic S3 error: Error performing"),
    ],
)
def test_an_answer_that_is_no_object_is_one_sentence(server, monkeypatch, answer, sentence):
    monkeypatch.setattr(connection, "RETRIES", 1)
    with answering(monkeypatch, answer):
        path = BucketLocation.of("s3://images/out.zarr")
        for read in ((path / "zarr.json").read_bytes, lambda: list(path.files())):
            with pytest.raises(UnreachableError) as raised:
                read()
            assert str(raised.value).startswith("s3://images/out.zarr")
            assert sentence in str(raised.value).partition("cannot be reached: ")[2]
            assert "\n" not in str(raised.value)


def test_no_bucket_no_credentials_and_no_network_are_told_apart(server, monkeypatch):
    spec = make_spec(9)
    for attempt in (
        open_store,
        verify,
        describe,
        lambda url: check_location(url, False),
        lambda url: bucket_writer(url, spec),
    ):
        with pytest.raises(UnreachableError, match=r"^s3://nowhere/out.zarr.* no such bucket; check"):
            attempt("s3://nowhere/out.zarr")
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", closed)
    with pytest.raises(UnreachableError, match="no answer; check the network"):
        open_store("s3://images/out.zarr")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", closed)
    with pytest.raises(UnreachableError, match=r"no credentials; set AWS_ACCESS_KEY_ID"):
        open_store("s3://images/out.zarr")


def test_a_bucket_that_stops_answering_is_no_damage(tmp_path, bucket, monkeypatch):
    upload(make_store(tmp_path / "out.zarr", make_spec(20)).path, url := f"{bucket}/out.zarr")
    store = open_store(url)
    for request in ("get", "get_ranges", "get_async", "get_range_async"):
        monkeypatch.setattr(obstore, request, refused)
    for read in (lambda: store.latents(3), lambda: store.names, lambda: verify(url)):
        with pytest.raises(UnreachableError, match="there is no answer"):
            read()


def refused(*_: object, **__: object) -> None:
    raise obstore.exceptions.GenericError("HTTP error: error sending request")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("s3://bucket", "is no URL .*s3://bucket/out.zarr"),
        ("s3:///out.zarr", "is no URL"),
        ("ftp://host/out.zarr", "unknown kind; give .*s3://, gs://, file://"),
        ("file://host/out.zarr", "is on another machine"),
    ],
)
def test_urls_of_no_store(url, sentence):
    with pytest.raises(UsageError, match=sentence):
        open_store(url)


def test_without_obstore_a_url_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(UsageError, match=r"s3://bucket .*pip install 'hvae-codec\[remote\]'$"):
        open_store("s3://bucket/out.zarr")


def test_a_file_url_is_a_folder(tmp_path):
    local = make_store(tmp_path / "a b%.zarr", make_spec(9))
    store = open_store(local.path.as_uri())
    assert (store.path, store.names) == (local.path, local.names)
    assert verify(local.path.as_uri()).ok


# --- commands --------------------------------------------------------------------------------------------------------


def test_commands_take_urls(tmp_path, bucket, tiny_run, photo_patches, capsys):
    np.save(tmp_path / "images.npy", photo_patches.transpose(0, 2, 3, 1))
    url, images, decoded = f"{bucket}/some/out.zarr", tmp_path / "images.npy", tmp_path / "decoded"

    def call(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        streams = capsys.readouterr()
        return stop.value.code, " ".join((streams.out + streams.err).split())

    run = shutil.copytree(tiny_run, tmp_path / "run")
    encoding = ("encode", "--model", run, "--keep", "10%", "--shard", "8", "--evaluate", "none", images, url)
    assert call(*encoding, "--worker", "1/2")[0] == 0
    code, said = call("info", url)
    assert (code, "1 of 3 row groups" in said) == (0, True), said
    assert call(*encoding)[0] == 0
    assert f"{url}: 24 images" in call("info", url)[1]
    assert "24 images in 3 row groups" in call("verify", url)[1]
    assert call("decode", url, decoded, "--images", "0:3", "--format", "npy")[0] == 0
    assert np.load(decoded / "images.npy").shape == (3, 16, 16, 3)
    path = BucketLocation.of(url)
    path.delete(["z8/c/1/0/0/0"])
    assert call("verify", url)[0] == 1
    assert call("repair", "--model", run, url, images)[0] == 0
    assert call("verify", url)[0] == 0
    np.save(tmp_path / "more.npy", 255 - photo_patches.transpose(0, 2, 3, 1))
    appending = ("append", "--model", run, tmp_path / "more.npy", url)
    assert "new one with --out" in call(*appending)[1]
    assert "Worker 1/2 is done" in call(*appending, "--out", f"{bucket}/new.zarr", "--worker", "1/2")[1]
    assert f"{bucket}/new.zarr: 48 images" in call(*appending, "--out", f"{bucket}/new.zarr")[1]
    code, said = call(*encoding)
    assert (code, said.startswith(f"hvae-codec: {url} exists; ")) == (1, True)
    code, said = call("info", "s3://nowhere/out.zarr")
    assert (code, "cannot be reached: there is no such bucket" in said) == (1, True)
