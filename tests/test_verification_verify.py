"""Damage of every kind, to every file of a store: it is told, and never read as latents."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from hvae_codec import open_store
from hvae_codec.errors import HvaeCodecError, StoreError
from hvae_codec.store.arrays import shard_key
from hvae_codec.store.quantiser import FloatCodec
from hvae_codec.store.reader import Store
from hvae_codec.verification.row_group import checked_row_group
from hvae_codec.verification.verify import check_written, verify
from stores import GRANULARITIES, KINDS, make_spec, make_store, photo_latents, tree, without_copy, write_all


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("images", [1, 8, 20])
def test_a_whole_store_is_well(tmp_path, granularity, images):
    store = make_store(tmp_path / "out.zarr", make_spec(images, granularity=granularity))
    seen = []
    report = verify(store.path, progress=lambda done, total: seen.append((done, total)))
    assert report.ok
    assert (report.damages, report.notes, report.damaged_row_groups) == ([], [], [])
    assert (report.images, report.row_groups, report.files) == (images, -(-images // 8), len(tree(store.path)))
    assert seen == [(min(8 * r + 8, images), images) for r in range(report.row_groups)]


@pytest.fixture(scope="module", params=KINDS[1:], ids=lambda kind: f"{kind[0]}-{kind[1].name}")
def whole(request, tmp_path_factory) -> Path:
    granularity, codec = request.param
    spec = make_spec(12, codec=codec, granularity=granularity)
    return make_store(tmp_path_factory.mktemp("whole") / "out.zarr", spec).path


def flip(rng: np.random.Generator, content: bytes) -> bytes:
    changed = bytearray(content)
    changed[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def damaged(kind: str, rng: np.random.Generator, content: bytes) -> bytes | None:
    """What a damaged file holds; None where it is gone."""
    if kind == "flip":
        return flip(rng, content)
    return None if kind == "delete" else content[: int(rng.integers(len(content)))]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flip", "truncate", "delete"])
def test_every_damaged_file_is_named(whole, tmp_path, kind):
    rng, path = np.random.default_rng(1), tmp_path / "out.zarr"
    shutil.copytree(whole, path)
    expected = open_store(whole).stored(slice(None))
    for name, content in tree(whole).items():
        for _ in range(2 if kind == "flip" else 1):
            changed = damaged(kind, rng, content)
            (path / name).unlink() if changed is None else (path / name).write_bytes(changed)
            if not means_the_same(name, content, changed):
                assert_told(path, name)
            assert_never_wrong(path, expected)
            (path / name).write_bytes(content)
    assert verify(path).ok


def means_the_same(name: str, content: bytes, changed: bytes | None) -> bool:
    """Whether a changed `zarr.json` says what it said before: a flipped bit may turn a space into no other meaning."""
    try:
        return name.endswith("zarr.json") and changed is not None and json.loads(content) == json.loads(changed)
    except ValueError:
        return False


def assert_told(path: Path, name: str) -> None:
    report = verify(path)
    assert name in {damage.file for damage in report.damages}, report.damages
    array, _, key = name.partition("/")
    if key.startswith("c/") and (array[0] == "z" or array == "committed"):
        row_group = int(key.split("/")[1])
        assert report.damaged_row_groups == [row_group]
        (damage,) = report.damages
        assert set(damage.images) <= set(range(8 * row_group, min(8 * row_group + 8, 12)))
        assert list(damage.names) == [f"photo/{i:03d}-é.png" for i in damage.images[:3]]
        assert damage.names


def assert_never_wrong(path: Path, expected: dict[int, np.ndarray]) -> None:
    """Every way of reading gives the right numbers or an error."""
    try:
        store = open_store(path)
    except HvaeCodecError:
        return
    with contextlib.suppress(HvaeCodecError):
        for r, numbers in store.gather([11, 0, 8]).items():
            np.testing.assert_array_equal(numbers, expected[r][[11, 0, 8]])
    for index in (slice(None), slice(0, 8), slice(8, 12), 0, 11):
        try:
            stored, latents = store.stored(index), store.latents(index)
        except HvaeCodecError:
            continue
        assert stored.keys() == expected.keys()
        for r, numbers in stored.items():
            np.testing.assert_array_equal(numbers, expected[r][index])
            steps = make_spec(12, codec=store.codec, granularity=store.columns.granularity).steps[r]
            z = store.codec.decode(numbers, store.columns.spread(steps))
            np.testing.assert_array_equal(latents[f"z{r}"], z)


def test_all_damages_are_told(tmp_path):
    path = make_store(tmp_path / "out.zarr").path
    (path / "z4" / "c" / "1" / "0" / "0" / "0").unlink()
    shutil.rmtree(path / "z16" / "c" / "2")
    (path / "committed" / "c" / "0").write_bytes(b"")
    (path / "label" / "c" / "0").unlink()
    (path / "z1" / "zarr.json").unlink()
    report = verify(path)
    assert {(d.file, d.row_group, tuple(d.images)[:1]) for d in report.damages} == {
        ("z1/zarr.json", None, (0,)),
        ("label/c/0", None, (0,)),
        ("z4/c/1/0/0/0", 1, (8,)),
        ("z16/c/2/0/0/0", 2, (16,)),
        ("committed/c/0", 0, (0,)),
    }
    assert report.damaged_row_groups == [0, 1, 2]


def test_only_the_images_of_a_damaged_chunk_are_named(tmp_path):
    path = make_store(tmp_path / "out.zarr", make_spec(chunk_bytes=2 * 1024)).path
    shard = path / "z16" / "c" / "1" / "0" / "0" / "0"
    shard.write_bytes(bytes(10) + shard.read_bytes()[10:])
    (damage,) = verify(path).damages
    assert (list(damage.images), list(damage.names)) == ([8, 9], ["photo/008-é.png", "photo/009-é.png"])
    assert damage.problem == "does not match its checksum"


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_files_of_another_place_or_store_are_told(tmp_path, granularity):
    """Each is whole by its own checksum."""
    store = make_store(tmp_path / "out.zarr", make_spec(granularity=granularity))
    names = [f"other/{i}" for i in range(20)]
    other = make_store(tmp_path / "other.zarr", make_spec(granularity=granularity, names=names)).path
    steps = {r: 2 * s for r, s in make_spec(granularity=granularity).steps.items()}
    coarser = make_store(tmp_path / "coarser.zarr", make_spec(granularity=granularity, steps=steps)).path
    key = shard_key(1, store.columns.item(4))
    for source, target, told in (
        (store.path / "z4" / shard_key(0, store.columns.item(4)), f"z4/{key}", "committed/c/1"),
        (store.path / "committed" / "c" / "0", "committed/c/2", "committed/c/2"),
        (other / "name" / "c" / "0", "name/c/0", "zarr.json"),
        (coarser / "step4" / "c" / "0", "step4/c/0", "zarr.json"),
        (store.path / "label" / "zarr.json", "name/zarr.json", ""),
    ):
        content = (store.path / target).read_bytes()
        (store.path / target).write_bytes(source.read_bytes())
        assert [d.file for d in verify(store.path).damages] == ([told] if told else [])
        (store.path / target).write_bytes(content)


def test_files_that_are_left_over_are_no_damage(tmp_path):
    store = make_store(tmp_path / "out.zarr")
    for name in ("notes.txt", "z16/c/1/0/0/0.12ab.partial", "z16/c/3/0/0/0", "committed/c/03", "label/c/0/0"):
        path = store.path / name
        if name != "label/c/0/0":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"left over")
    (tmp_path / "out.zarr.partial").mkdir()
    report = verify(store.path)
    assert report.ok
    stray, unfinished = report.notes
    assert stray.startswith("4 files ")
    assert stray.endswith(": committed/c/03, notes.txt, z16/c/1/0/0/0.12ab.partial, ...")
    assert f"{tmp_path / 'out.zarr.partial'} is" in unfinished


def test_stores_of_older_versions_are_verified_without_their_checksums(tmp_path):
    store = make_store(tmp_path / "out.zarr")
    without_copy(store.path)
    document = json.loads((store.path / "zarr.json").read_text())
    for key in ("checksum", "arrays", "chunk_bytes"):
        del document["attributes"]["hvae_codec"][key]
    (store.path / "zarr.json").write_text(json.dumps(document))
    report = verify(store.path)
    assert report.ok
    assert any("older version" in note for note in report.notes)
    array = json.loads((store.path / "z4" / "zarr.json").read_text())
    for changes, problem in (
        ({"fill_value": 0}, "fill value 0, not -32768"),
        ({"shape": [19, 3, 4, 4]}, "shape [19, 3, 4, 4], not [20, 3, 4, 4]"),
        ({"data_type": "uint16", "fill_value": 0}, "holds uint16, not int16"),
        (
            {"dimension_names": ["image", "c4", "x4", "y4"]},
            "image, c4, x4, y4, not image, c4, y4, x4",
        ),
    ):
        (store.path / "z4" / "zarr.json").write_text(json.dumps({**array, **changes}))
        problems = [damage.problem for damage in verify(store.path).damages]
        assert any(problem in found for found in problems)


def test_what_is_no_store_is_refused(tmp_path):
    path = make_store(tmp_path / "out.zarr").path
    without_copy(path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    zarr.create_group(tmp_path / "foreign.zarr")
    spec = make_spec()
    write_all(tmp_path / "unfinished.zarr", spec, photo_latents(spec), only=1)
    for name, message in (
        ("none.zarr", "there is no store"),
        ("file", "no zarr store"),
        ("folder", "no zarr store"),
        ("foreign.zarr", "no latent store of"),
        ("unfinished.zarr", "is unfinished; run the same"),
        ("unfinished.zarr.partial", "is an unfinished store"),
    ):
        with pytest.raises(StoreError, match=message):
            verify(tmp_path / name)
    document = json.loads((path / "zarr.json").read_text())
    metadata = document["attributes"]["hvae_codec"]
    for key, value, message in (
        ("format_version", 99, "version 99, this package reads"),
        ("shard", 0, r"zarr\.json.* its metadata"),
        ("codec", {}, r"zarr\.json.* its metadata"),
        ("channels", [1], r"zarr\.json.* its metadata"),
    ):
        document["attributes"]["hvae_codec"] = {**metadata, key: value}
        (path / "zarr.json").write_text(json.dumps(document))
        with pytest.raises(StoreError, match=message):
            verify(path)


def test_verifying_needs_no_torch(tmp_path):
    path = make_store(tmp_path / "out.zarr").path
    code = f"import sys, hvae_codec; assert hvae_codec.verify({str(path)!r}).ok; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_a_row_group_is_read_back_after_it_is_written(tmp_path):
    spec = make_spec()
    writer = write_all(tmp_path / "out.zarr", spec, photo_latents(spec))
    for row_group in range(3):
        check_written(writer.row_group_writer, row_group)
    first, second = (writer.unfinished / "z4" / shard_key(r, spec.columns.item(4)) for r in (0, 1))
    first.write_bytes(second.read_bytes())
    with pytest.raises(StoreError, match="not read back as"):
        check_written(writer.row_group_writer, 0)
    second.write_bytes(b"torn")
    with pytest.raises(StoreError, match=r"row group 1 .* checksum; check"):
        check_written(writer.row_group_writer, 1)
    second.unlink()
    with pytest.raises(StoreError, match=r"row group 1 .* cannot be read .No such"):
        check_written(writer.row_group_writer, 1)


def test_what_a_user_adds_is_no_damage(tmp_path):
    path = make_store(tmp_path / "out.zarr").path
    group = zarr.open_group(path, mode="r+")
    group.create_array("classes", data=np.zeros(3))
    group.create_array("score", shape=(7,), dtype="float32", fill_value=np.nan, dimension_names=("image",))
    group.create_group("mine").create_array("more", data=np.zeros(3))
    report = verify(path)
    assert report.ok
    (note,) = report.notes
    assert note.startswith("3 files ")
    assert note.endswith(": classes/, mine/, score/")
    assert open_store(path).frame.columns.tolist() == ["name", "label"]
    assert list(open_store(path).to_xarray().children) == ["z1", "z4", "z16"]


def test_steps_that_no_float_store_has_are_told(tmp_path):
    path = make_store(tmp_path / "out.zarr", make_spec(codec=FloatCodec("float16"))).path
    zarr.open_array(path / "step16", mode="r+")[:] = 2.0
    assert [damage.file for damage in verify(path).damages] == ["zarr.json"]


@pytest.mark.parametrize("attribute", [[1], "text", 3, None])
def test_an_attribute_that_is_no_table_is_no_store(tmp_path, attribute):
    (tmp_path / "out.zarr").mkdir()
    document = {"zarr_format": 3, "node_type": "group", "attributes": {"hvae_codec": attribute}}
    (tmp_path / "out.zarr" / "zarr.json").write_text(json.dumps(document))
    for read in (verify, open_store):
        with pytest.raises(StoreError, match="no latent store of"):
            read(tmp_path / "out.zarr")


def test_a_row_group_that_is_checked_is_read_once(tmp_path, monkeypatch):
    store, real, rows = make_store(tmp_path / "out.zarr"), Store.raw_latents, []

    def counted(self, resolution, wanted, cache=None):
        rows.append(len(wanted))
        return real(self, resolution, wanted, cache)

    monkeypatch.setattr(Store, "raw_latents", counted)
    assert {r: len(numbers) for r, numbers in checked_row_group(store, 1).items()} == {1: 8, 4: 8, 16: 8}
    assert rows == [8, 8, 8]
