"""Images in a bucket, of a server on this machine: the names, labels, splits and pixels of the same files here."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.parquet
import pytest

from hvae_codec import LatentMask, encode_images, kl_stats, open_images, open_store
from hvae_codec.data import announced, archive_index
from hvae_codec.data.survey import survey
from hvae_codec.encode.append import append
from hvae_codec.encode.pipeline import EncodeOptions
from hvae_codec.encode.repair import repair
from hvae_codec.errors import DataError, UnreachableError, UsageError
from hvae_codec.storage import range_file, ranges_ahead
from hvae_codec.storage.bucket import BucketLocation
from hvae_codec.train.batches import BatchStream
from hvae_codec.verification.verify import verify
from hvae_codec_cli.app import main
from photos import save_png
from stores import tree

pytestmark = pytest.mark.slow

IMAGES = 24


@pytest.fixture(scope="module")
def files(cut_patches, tmp_path_factory) -> Path:
    """The same images as a folder, a zip, two tars and two Parquet files, with splits and classes."""
    folder = tmp_path_factory.mktemp("files")
    for i, pixels in enumerate(cut_patches(IMAGES)):
        save_png(folder / "images" / ("val" if i % 4 == 3 else "train") / "cd"[i % 2] / f"{i:02d}.png", pixels)
    shutil.make_archive(str(folder / "images"), "zip", folder / "images")
    (folder / "shards").mkdir()
    for part in ("train", "val"):
        paths = sorted((folder / "images" / part).rglob("*.png"))
        write_tar(folder / "shards" / f"{part}-00.tar", paths)
        write_parquet(folder / "parquet" / f"{part}-00000-of-00001.parquet", paths)
    return folder


def write_tar(path: Path, images: list[Path]) -> None:
    with tarfile.open(path, "w") as tar:
        for image in images:
            tar.add(image, image.name)
            label = tarfile.TarInfo(f"{image.stem}.cls")
            label.size = 1
            tar.addfile(label, io.BytesIO(image.parent.name.encode()))


def write_parquet(path: Path, images: list[Path]) -> None:
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["c", "d"]}}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": image.read_bytes(), "path": image.name} for image in images]
    columns = {"image": pa.array(rows, kind), "label": ["cd".index(image.parent.name) for image in images]}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pa.table(columns).replace_schema_metadata(metadata), path, row_group_size=4)


@pytest.fixture
def uploaded(files: Path, bucket: str) -> str:
    """A URL below which all these files are, but for single images."""
    for path in sorted(files.rglob("*")):
        if path.suffix in (".zip", ".tar", ".parquet"):
            upload(f"{bucket}/data/{path.relative_to(files).as_posix()}", path.read_bytes())
    return f"{bucket}/data"


def upload(url: str, content: bytes) -> None:
    location = BucketLocation.of(url)
    obstore.put(location.bucket.client, location.key, content, use_multipart=False)


@contextlib.contextmanager
def requests() -> Iterator[list[tuple[str, int]]]:
    """What is asked for: objects, and how many bytes of each."""
    asked: list[tuple[str, int]] = []
    get = obstore.get

    def counted(client, key, *, options):
        start, stop = options["range"]
        asked.append((key, stop - start))
        return get(client, key, options=options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(obstore, "get", counted)
        yield asked


def read_all(path: object) -> tuple[object, ...]:
    source = open_images(path, size=16, channels=3)
    splits = [source.splits.indices(part).tolist() for part in ("train", "val", "test")]
    pixels = np.concatenate([*source.batches(7)])
    at_random = np.random.default_rng(0).permutation(len(source))
    np.testing.assert_array_equal(source.read(at_random), pixels[at_random])
    return source.names, source.labels, splits, pixels.tobytes(), source.fingerprint


@pytest.mark.parametrize(
    "name",
    [
        "images.zip",
        "shards/train-00.tar",
        "shards/{train,val}-00.tar",
        "shards",
        "parquet/val-00000-of-00001.parquet",
        "parquet",
    ],
)
def test_at_a_url_are_the_images_of_the_same_files_here(files, uploaded, name):
    assert read_all(f"{uploaded}/{name}") == read_all(files / name)
    assert read_all(BucketLocation.of(f"{uploaded}/{name}")) == read_all(f"file://{files / name}")


@pytest.mark.parametrize("name", ["images.zip", "shards", "parquet"])
def test_heads_are_read_by_few_requests(files, uploaded, name):
    there = open_images(f"{uploaded}/{name}", size=16, channels=3)
    with requests() as asked:
        found = survey(there)
    here = survey(open_images(files / name, size=16, channels=3))
    assert found == here
    assert found.sizes == {(16, 16): IMAGES}
    assert len(asked) <= 4 < IMAGES


def test_parquet_is_opened_without_reading_its_images(tmp_path, bucket):
    """Classes lie between them, in pieces that are smaller than what is read ahead elsewhere."""
    rng = np.random.default_rng(0)
    columns = {"image": [rng.bytes(4000) for _ in range(2000)], "label": rng.integers(0, 10, 2000)}
    options = {"row_group_size": 50, "use_dictionary": False, "write_statistics": False}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "x.parquet", **options)
    upload(f"{bucket}/x.parquet", (tmp_path / "x.parquet").read_bytes())
    with requests() as asked:
        source = open_images(f"{bucket}/x.parquet", size=16, channels=3)
    assert source.labels == [str(label) for label in columns["label"]]
    assert len(asked) <= 45  # one for each row group, at the same time, and some for the end of the file
    assert sum(count for _, count in asked) < 250_000  # of 8 MB


def test_celebas_list_beside_a_zip_says_what_is_held_out(tmp_path, bucket, files):
    names = [path.name for path in sorted((files / "images").rglob("*.png"))]
    with zipfile.ZipFile(tmp_path / "celeba.zip", "w") as archive:
        for path in sorted((files / "images").rglob("*.png")):
            archive.write(path, path.name)
    (tmp_path / "list_eval_partition.txt").write_text("".join(f"{name} {i % 3}\n" for i, name in enumerate(names)))
    for path in tmp_path.iterdir():
        upload(f"{bucket}/{path.name}", path.read_bytes())
    found = read_all(f"{bucket}/celeba.zip")
    assert found == read_all(tmp_path / "celeba.zip")
    assert len(found[2][2]) == IMAGES // 3


def test_a_zip_is_read_by_who_may_not_list_its_bucket(uploaded, files, monkeypatch):
    head = obstore.head

    def denied_if_missing(client: object, key: str) -> object:
        try:
            return head(client, key)
        except FileNotFoundError:
            raise obstore.exceptions.PermissionDeniedError("status code: 403") from None

    monkeypatch.setattr(obstore, "head", denied_if_missing)
    assert read_all(f"{uploaded}/images.zip") == read_all(files / "images.zip")
    with pytest.raises(UnreachableError, match="access is denied; check the credentials"):
        open_images(f"{uploaded}/none.zip", size=16, channels=3)


def test_what_was_listed_is_remembered_by_url_size_and_etag(uploaded, files, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(archive_index, "REMEMBERED_FROM", 1)
    first = read_all(f"{uploaded}/shards/train-00.tar")
    with requests() as asked:
        assert read_all(f"{uploaded}/shards/train-00.tar") == first
    size = (files / "shards/train-00.tar").stat().st_size
    assert max(count for _, count in asked) < size - 512  # of images alone, not of the end of the tar
    upload(f"{uploaded}/shards/train-00.tar", (files / "shards/val-00.tar").read_bytes())
    assert len(open_images(f"{uploaded}/shards/train-00.tar", size=16, channels=3)) == IMAGES // 4


def big_zip(images: int, nbytes: int) -> bytes:
    """A zip of files of so many bytes that nothing compresses, no two alike."""
    content, noise = io.BytesIO(), np.random.default_rng(0)
    with zipfile.ZipFile(content, "w") as archive:
        for i in range(images):
            archive.writestr(f"{i:05d}.png", noise.bytes(nbytes))
    return content.getvalue()


def test_images_in_order_take_few_requests_and_at_random_one_each(bucket, monkeypatch):
    upload(f"{bucket}/big.zip", content := big_zip(600, 20_000))  # 12 MB
    monkeypatch.setattr(announced, "WINDOW_BYTES", 4 * 2**20)
    with requests() as asked:
        container = open_images(f"{bucket}/big.zip", size=16, channels=3).container
    assert len(asked) <= 3  # the end, with the list of files
    with requests() as asked:
        for part in container.announced(np.arange(600), 50):
            for position in part.tolist():
                container.content_of(position)
    assert len(asked) <= 9
    assert len(content) <= sum(count for _, count in asked) + 2**16 < 1.02 * len(content)
    far_apart = np.random.default_rng(0).permutation(600)[:20]
    with requests() as asked:
        for [position] in container.announced(far_apart, 1):
            assert len(container.content_of(int(position))) == 20_000
    assert 10 <= len(asked) <= 20
    assert sum(count for _, count in asked) < 20 * 64_000
    assert not container.files._ahead._ahead


def test_an_image_of_many_requests_is_whole(bucket, monkeypatch):
    monkeypatch.setattr(ranges_ahead, "REQUEST_BYTES", 4_096)
    upload(f"{bucket}/big.zip", big_zip(5, 30_000))
    container = open_images(f"{bucket}/big.zip", size=16, channels=3).container
    for _ in range(2):  # CRC-32s are right
        assert [len(container.content_of(i)) for i in range(5)] == [30_000] * 5
        container.prefetch(np.arange(5))


# --- stores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["images.zip", "shards", "parquet"])
def test_a_store_of_images_at_a_url_is_that_of_the_same_files_here(files, uploaded, tiny_model, tmp_path, name):
    here, there = (open_images(path, size=16, channels=3) for path in (files / name, f"{uploaded}/{name}"))
    stats = kl_stats(tiny_model, there)
    mask, path = LatentMask.from_keep(stats, 0.2), tmp_path / "there.zarr"
    arguments = {"mask": mask, "stats": stats, "options": EncodeOptions(batch_size=4, row_group_size=4)}
    encode_images(tiny_model, here, tmp_path / "here.zarr", **arguments)

    def stop(done: int, total: int) -> None:
        if done > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_images(tiny_model, there, path, progress=stop, **arguments)
    rest = []
    encode_images(tiny_model, there, path, progress=lambda done, total: rest.append(done), **arguments)
    assert rest[0] > 8
    whole = tree(tmp_path / "here.zarr")
    assert tree(path) == whole
    damaged = min(name for name in whole if name.startswith("z") and "/c/" in name)
    (path / damaged).write_bytes(b"damaged")
    assert not verify(path).ok
    assert repair(path, there, tiny_model).after.ok
    assert tree(path) == whole


def test_images_at_a_url_are_appended(files, uploaded, tiny_model, tmp_path):
    old, new = (open_images(files / "shards" / f"{part}-00.tar", size=16, channels=3) for part in ("train", "val"))
    stats = kl_stats(tiny_model, old)
    options = EncodeOptions(batch_size=4, row_group_size=4)
    encode_images(
        tiny_model, old, tmp_path / "old.zarr", mask=LatentMask.from_keep(stats, 0.2), stats=stats, options=options
    )
    append(tiny_model, new, tmp_path / "old.zarr", out=tmp_path / "here.zarr", batch_size=4)
    there = open_images(f"{uploaded}/shards/val-00.tar", size=16, channels=3)
    append(tiny_model, there, tmp_path / "old.zarr", out=tmp_path / "there.zarr", batch_size=4)
    assert tree(tmp_path / "there.zarr") == tree(tmp_path / "here.zarr")


def test_training_reads_images_at_a_url_as_it_needs_them(files, uploaded):
    def batches(path: object) -> list[bytes]:
        source = open_images(path, size=16, channels=3).split("train")
        stream = BatchStream(source, 8, 3, horizontal_flip=True, workers=2, cache_bytes=0)
        found = [stream.batch(step).numpy().tobytes() for step in range(1, 8)]
        stream.close()
        return found

    assert batches(f"{uploaded}/shards") == batches(files / "shards")


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    streams = capsys.readouterr()
    return stop.value.code, " ".join((streams.out + streams.err).split())


def test_commands_take_urls_of_images(uploaded, tiny_run, tmp_path, capsys, monkeypatch, blank_pictures):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_run, "run")
    tars, images, store = f"{uploaded}/shards", f"{uploaded}/images.zip", f"{uploaded}/out.zarr"
    training = ("train", tars, "--config", "run/config.json", "--out", "trained", "--device", "cpu", "--no-tensorboard")
    code, said = call(capsys, *training, "--steps", 2)
    assert (code, f"train {IMAGES * 3 // 4} (train-*.tar), held out {IMAGES // 4}" in said) == (
        0,
        True,
    )
    assert call(capsys, "train", tars, "--resume", "--out", "trained", "--steps", 3)[0] == 0
    assert call(capsys, "analyze-kl", tars, "--model", "run", "--out", "analysis")[0] == 0
    assert call(capsys, "evaluate", images, "--model", "run")[0] == 0
    encoding = ("encode", images, store, "--model", "run", "--keep", "10%", "--shard", 8, "--evaluate", "none")
    assert call(capsys, *encoding, "--worker", "1/2")[0] == 0
    assert call(capsys, *encoding)[0] == 0
    assert "24 images in 3 row groups" in call(capsys, "verify", store)[1]
    BucketLocation.of(store).delete(["z8/c/1/0/0/0"])
    assert call(capsys, "repair", store, images, "--model", "run")[0] == 0
    longer = f"{uploaded}/longer.zarr"
    assert call(capsys, "append", f"{uploaded}/parquet", store, "--model", "run", "--out", longer)[0] == 0
    assert len(open_store(longer)) == 2 * IMAGES


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["images.zip", "shards/train-00.tar", "parquet/train-00000-of-00001.parquet"])
def test_an_object_that_is_replaced_while_it_is_read_is_an_error(files, uploaded, name, monkeypatch):
    monkeypatch.setattr(range_file, "FIRST_BYTES", 64)  # a small file would be in memory as it was
    url, source = f"{uploaded}/{name}", open_images(f"{uploaded}/{name}", size=16, channels=3)
    source.read([0])
    upload(url, (files / name).read_bytes()[::-1])
    with pytest.raises(DataError, match=rf"{name} was changed while it was read; run"):
        source.read(np.arange(4, len(source)))
    location = BucketLocation.of(url)
    obstore.delete(location.bucket.client, location.key)
    with pytest.raises(DataError, match=r"was changed while it was read"):
        source.read([len(source) - 1])


@pytest.mark.parametrize("end", ["zip", "tar", "parquet"])
def test_truncated_objects_are_named(files, bucket, end):
    content = next(path for path in sorted(files.rglob(f"*.{end}"))).read_bytes()
    upload(url := f"{bucket}/x.{end}", content[: len(content) * 2 // 3])
    with pytest.raises(DataError, match=rf"^{url} cannot be read as .* truncated.*again$"):
        open_images(url, size=16, channels=3)


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("none.zip", DataError, "there is no {url}; check the URL"),
        ("none", DataError, "there is no {url}; check the URL, or give a .zip"),
        (
            "shards/{train,test,dev}-00.tar",
            DataError,
            "2 of 3 objects are missing, such as s3://images/data/shards/test",
        ),
        ("a.npy", DataError, "{url} is a NumPy array, which is not read from a URL; download it"),
        ("a.npz", DataError, "a NumPy array, which"),
        ("a.zarr", DataError, "a zarr array or group, which"),
        ("train-images-idx3-ubyte.gz", DataError, "MNIST's kind .* download it"),
        ("cifar-10-python.tar.gz", DataError, "CIFAR.* download it"),
        ("x.tar.gz", DataError, "is compressed"),
        ("a.h5", DataError, "{url} is HDF5, which is not read; in Python"),
        ("x-{0..3}.png", DataError, "a range of files of another kind; give"),
        ("x-{3..0}.tar", DataError, "empty or too long"),
        ("notes.txt", DataError, "{url} is not a folder of tars"),
        ("single", DataError, r"holds single image files, such as a/1.png.*zip -r -0 images.zip"),
        ("array", DataError, "a zarr array or group, which is not read from"),
        ("zips", DataError, "has 2 zips; give one of them, such as {url}/1.zip"),
    ],
)
def test_what_is_not_read_at_a_url_is_one_sentence(uploaded, name, error, words):
    for key in ("notes.txt", "single/a/1.png", "array/zarr.json", "zips/1.zip", "zips/2.zip"):
        upload(f"{uploaded}/{key}", b"{}")
    url = f"{uploaded}/{name}"
    with pytest.raises(error, match=words.format(url=url)) as raised:
        open_images(url, size=16, channels=3)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["images.zip", "shards", "parquet"])
def test_a_portion_travels_without_a_request(uploaded, name, monkeypatch):
    source, rows = open_images(f"{uploaded}/{name}", size=16, channels=3), [20, 3, 4, 5]
    expected, message = source.read(rows), pickle.dumps(source.portion(rows))
    assert len(message) < 8_000
    for looks in ("head", "list", "list_with_delimiter"):
        monkeypatch.setattr(obstore, looks, lambda *_, **__: pytest.fail("it looks again"))
    with requests() as asked:
        portion = pickle.loads(message)
    assert asked == []
    np.testing.assert_array_equal(portion.read(range(4)), expected)
    np.testing.assert_array_equal(np.concatenate([*portion.batches(2)]), expected)
    assert portion.checksums(range(4)).tolist() == source.checksums(rows).tolist()
    assert portion.numbers.tolist() == rows


@pytest.mark.parametrize("name", ["images.zip", "shards"])
def test_an_object_that_is_replaced_before_a_portion_is_read_is_an_error(files, uploaded, name):
    source = open_images(f"{uploaded}/{name}", size=16, channels=3)
    message = pickle.dumps(source.portion([0, 1]))
    for path in sorted(files.rglob("*")):
        if path.suffix in (".zip", ".tar"):
            upload(f"{uploaded}/{path.relative_to(files).as_posix()}", path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"was changed while it was read; run the command again"):
        pickle.loads(message).read([0, 1])


def test_urls_that_lead_nowhere(server, bucket, monkeypatch, tmp_path):
    for name in ("a.zip", "a.tar", "a-{0..3}.tar", "a.parquet", "folder"):
        with pytest.raises(UnreachableError, match="there is no such bucket; check the URL"):
            open_images(f"s3://nowhere/{name}", size=16, channels=3)
    for url, words in (
        ("s3:/bucket/a.zip", "one slash where two must be; give s3://bucket/a.zip"),
        (Path("gs://bucket/a.zip"), "one slash where two must be"),
        ("https://host/a.zip", "URL of an unknown kind; give a path, or one of s3://"),
        ("s3://bucket", "is no URL of an object; give one such as s3://"),
        ("file://host/a.zip", "is on another machine"),
    ):
        with pytest.raises(UsageError, match=words):
            open_images(url, size=16, channels=3)
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(UsageError, match=r"pip install 'hvae-codec\[remote\]'$"):
        open_images("s3://bucket/a.zip", size=16, channels=3)


def test_a_bucket_that_stops_answering_ends_the_command_and_is_no_broken_image(uploaded, tiny_run, monkeypatch, capsys):
    source = open_images(f"{uploaded}/images.zip", size=16, channels=3)

    def refused(*_: object, **__: object) -> None:
        raise obstore.exceptions.GenericError("HTTP error: error sending request")

    monkeypatch.setattr(obstore, "get", refused)
    for read in (lambda: source.read([3]), lambda: [*source.batches(4)]):
        with pytest.raises(UnreachableError, match=r"images\.zip cannot be reached: there is no answer"):
            read()
    for data in (f"{uploaded}/images.zip", f"{uploaded}/shards", f"{uploaded}/parquet"):
        code, said = call(capsys, "evaluate", data, "--model", tiny_run, "--skip-unusable")
        assert (code, "cannot be reached: there is no answer; check the network" in said) == (1, True)


def test_a_forked_process_says_what_to_do(uploaded, monkeypatch):
    source = open_images(f"{uploaded}/images.zip", size=16, channels=3)
    monkeypatch.setattr("hvae_codec.storage.connection.os.getpid", lambda: 0)
    with pytest.raises(UsageError, match=r"forked process; .* spawn"):
        source.read([0])
