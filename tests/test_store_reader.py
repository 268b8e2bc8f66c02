import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr

from hvae_codec import open_store
from hvae_codec.errors import StoreError, UsageError
from hvae_codec.store import reader as store_module
from hvae_codec.store.arrays import chunk_length, shard_key
from hvae_codec.store.columns import VariateColumns
from hvae_codec.store.folder_writer import FolderStoreWriter
from hvae_codec.store.metadata import ModelRecord
from hvae_codec.store.quantiser import FloatCodec, IntCodec
from hvae_codec.store.schema import NO_TEXT
from hvae_codec.store.spec import spec_fingerprint
from hvae_codec.verification.row_group import checked_row_group
from stores import (
    CHANNELS,
    GRANULARITIES,
    STEPS,
    kept_positions,
    make_columns,
    make_spec,
    make_store,
    photo_latents,
    tree,
    with_attribute,
    without_copy,
    write_all,
)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("codec", [IntCodec(), FloatCodec("float16"), FloatCodec("float32")])
@pytest.mark.parametrize("images", [1, 8, 20])
def test_what_is_written_is_read(tmp_path, codec, images, granularity):
    spec = make_spec(images, codec=codec, granularity=granularity)
    store, expected = make_store(tmp_path / "out.zarr", spec), photo_latents(spec)
    assert len(store) == images
    assert (store.names, store.labels) == (spec.names, spec.labels)
    assert (store.codec, store.resolutions, store.model_hash) == (codec, (1, 4, 16), "ab" * 32)
    kept_dims = 2 + 48 + 512 if granularity == "variate" else sum(len(kept_positions(r)) for r in (1, 4, 16))
    assert (store.image_size, store.image_dims, store.kept_dims) == (32, 3072, kept_dims)
    assert (store.mask, store.config) == (spec.mask, spec.model.config)
    assert store.format_version == (1 if granularity == "variate" else 2)
    assert store.columns.agree_with(spec.columns)
    for r, numbers in store.stored(slice(None)).items():
        assert numbers.dtype == codec.dtype
        np.testing.assert_array_equal(numbers, expected[r])
        np.testing.assert_array_equal(store.steps[r], spec.steps[r])
    for row_group in range(len(store.row_groups)):
        checked_row_group(store, row_group)
    assert store.nbytes_on_disk() == sum(map(len, tree(store.path).values()))
    assert store.bits_per_dim() == pytest.approx(8 * store.nbytes_on_disk() / (images * 3072))


SHAPES = {
    "variate": {"z1": (20, 2, 1, 1), "z4": (20, 3, 4, 4), "z16": (20, 2, 16, 16)},
    "position": {"z1": (20, 2), "z4": (20, 32), "z16": (20, 342)},
}


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_images_are_chosen_as_in_a_list(tmp_path, granularity):
    store = make_store(tmp_path / "out.zarr", make_spec(granularity=granularity))
    everything = store.latents(slice(None))
    assert {k: v.shape for k, v in everything.items()} == SHAPES[granularity]
    for index in (
        0,
        7,
        8,
        19,
        -1,
        -20,
        np.int64(5),
        slice(6, 10),
        slice(-3, None),
        slice(1, 19, 5),
        slice(None, None, -7),
    ):
        for name, latents in store.latents(index).items():
            assert latents.dtype == np.float32
            np.testing.assert_array_equal(latents, everything[name][index])
    assert store.latents(slice(5, 5))["z4"].shape == (0, *SHAPES[granularity]["z4"][1:])
    for index in (20, -21):
        with pytest.raises(UsageError, match=f"no image {index}; .* has 20"):
            store.latents(index)


@pytest.mark.parametrize("codec", [IntCodec(), FloatCodec("float16")])
def test_xarray_and_plain_zarr_read_single_positions(tmp_path, codec):
    store = make_store(tmp_path / "out.zarr", make_spec(codec=codec, granularity="position"))
    latents, group = store.latents(slice(None)), zarr.open_group(store.path, mode="r")
    with xarray.open_zarr(store.path, consolidated=False) as dataset:
        assert dataset["z16"].dims == ("image", "d16")
        assert dataset["dimension16"].dims == ("d16", "place")
        for r in store.resolutions:
            z = dataset[f"z{r}"] * dataset[f"step{r}"]
            np.testing.assert_array_equal(z.values.astype(np.float32), latents[f"z{r}"])
            np.testing.assert_array_equal(group[f"z{r}"][:] * group[f"step{r}"][:], latents[f"z{r}"])
            channel, y, x = kept_positions(r).T
            places = np.column_stack([np.array(CHANNELS[r])[channel], y, x])
            np.testing.assert_array_equal(dataset[f"dimension{r}"], places)
            np.testing.assert_array_equal(group[f"dimension{r}"][:], places)
            assert sorted(map(tuple, places)) == list(map(tuple, places))


@pytest.mark.parametrize("codec", [IntCodec(), FloatCodec("float16")])
def test_xarray_and_plain_zarr_read_the_same_latents(tmp_path, codec):
    store = make_store(tmp_path / "out.zarr", make_spec(codec=codec))
    latents = store.latents(slice(None))
    with xarray.open_zarr(store.path, consolidated=False) as dataset:
        assert dataset["z16"].dims == ("image", "c16", "y16", "x16")
        assert dataset["name"].values.tolist() == store.names
        for r in store.resolutions:
            z = dataset[f"z{r}"] * dataset[f"step{r}"]
            np.testing.assert_array_equal(z.transpose("image", ...).values.astype(np.float32), latents[f"z{r}"])
    group = zarr.open_group(store.path, mode="r")
    for r in store.resolutions:
        array = group[f"z{r}"]
        np.testing.assert_array_equal(array[:] * group[f"step{r}"][:][:, None, None], latents[f"z{r}"])


def test_the_examples_of_the_format_description_run(tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / "docs" / "format.md").read_text(encoding="utf-8")
    first, second, positions, own, archive = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    for granularity in GRANULARITIES:
        (tmp_path / granularity).mkdir()
    monkeypatch.chdir(tmp_path / "variate")
    latents = make_store("out.zarr").latents(slice(None))["z16"]
    for example in (first, second, own):
        names = {}
        exec(example, names)
        z = names["z"].transpose("image", ...).values if hasattr(names["z"], "dims") else names["z"]
        np.testing.assert_array_equal(np.asarray(z, np.float32), latents)
    monkeypatch.chdir(tmp_path / "position")
    groups = [{"variates": variates} for variates in (3, 1, 4, 2, 5, 6)]
    make_store("out.zarr", make_spec(granularity="position", mask={"groups": groups}))
    names = {}
    exec(positions, names)
    channel, y, x = kept_positions(16).T
    expected = np.full((20, 5, 16, 16), np.nan, np.float32)
    expected[:, 1, y[channel == 0], x[channel == 0]] = latents[:, 0, y[channel == 0], x[channel == 0]]
    np.testing.assert_array_equal(names["one_group"], expected)
    codes = np.arange(300 * 2 * 4 * 4, dtype=np.int64).reshape(300, 2, 4, 4).astype(np.int8)
    exec(archive, {"codes": codes})
    array = zarr.open_array("codes.zarr")
    array[:] = codes
    np.testing.assert_array_equal(zarr.open_array("codes.zarr", mode="r")[:], codes)


def test_the_examples_of_reading_and_of_training_run(tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / "docs" / "stores.md").read_text(encoding="utf-8")
    reading = text.split("## Reading\n")[1].split("```python\n")[1].split("```")[0]
    training = text.split("## Training on latents\n")[1].split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    images = len(make_store("out.zarr").names)
    for example in (reading, training.replace("num_workers=2", "num_workers=0")):
        names = {}
        exec(example, names)
    assert len(names["dataset"]) == images
    assert sum(len(labels) for _, labels in names["DataLoader"](names["dataset"], sampler=names["sampler"])) == images


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_resumed_encode_leaves_the_same_bytes(tmp_path, granularity):
    spec = make_spec(granularity=granularity)
    unbroken, latents = tmp_path / "a.zarr", photo_latents(spec)
    make_store(unbroken, spec)
    resumed = tmp_path / "b.zarr"
    writer = write_all(resumed, spec, latents, only=1)
    assert writer.pending() == [1, 2]
    torn = (writer.unfinished / "z16" / shard_key(1, spec.columns.item(16))).parent
    torn.mkdir(parents=True)
    (torn / "0").write_bytes(b"torn")
    (writer.unfinished / "z16" / "0.0123abcd.partial").write_bytes(b"left over")
    (writer.unfinished / "committed" / "c" / "2").write_bytes(b"")  # what a power cut can leave
    (writer.unfinished / "zarr.77ab.partial").write_bytes(b"left over")
    with pytest.raises(StoreError, match="is unfinished; run the same"):
        open_store(resumed)
    again = FolderStoreWriter.create_or_resume(resumed, spec)
    assert again.pending() == [1, 2]
    with pytest.raises(StoreError, match="2 of 3 row groups"):
        again.publish()
    write_all(resumed, spec, latents, overwrite=True).publish()
    assert tree(unbroken) == tree(resumed)
    assert not again.unfinished.exists()


def test_a_store_killed_while_it_was_created_is_made_anew(tmp_path):
    spec, reference = make_spec(), make_store(tmp_path / "a.zarr")
    for name, content in {
        "b": None,
        "c": "",
        "d": '{"zarr_format": 3, "node_type": "group", "attributes": {}}',
    }.items():
        partial = tmp_path / f"{name}.zarr.partial"
        (partial / "z16").mkdir(parents=True)
        if content is not None:
            (partial / "zarr.json").write_text(content)
        assert tree(make_store(tmp_path / f"{name}.zarr", spec).path) == tree(reference.path)


def test_a_failed_write_can_be_resumed(tmp_path, monkeypatch):
    spec = make_spec()
    latents, path = photo_latents(spec), tmp_path / "out.zarr"
    with monkeypatch.context() as patch:
        patch.setattr("hvae_codec.storage.files.sync_folders", _disk_full)
        with pytest.raises(OSError, match="No space left"):
            write_all(path, spec, latents)
    writer = FolderStoreWriter.create_or_resume(path, spec)
    assert writer.pending() == [0, 1, 2]
    make_store(path, spec)


def _disk_full(folder, root):
    raise OSError(28, "No space left on device")


def test_another_encode_is_not_continued(tmp_path):
    path, spec = tmp_path / "out.zarr", make_spec()
    write_all(path, spec, photo_latents(spec), only=1)
    assert spec_fingerprint(spec) != spec_fingerprint(make_spec(granularity="position"))
    others = {"codec": IntCodec(2.0), "mask": {"keep": 0.1}, "model": ModelRecord(hash="x"), "row_group_size": 4}
    for field, value in others.items():
        with pytest.raises(StoreError, match="other images, another model"):
            FolderStoreWriter.create_or_resume(path, dataclasses.replace(spec, **{field: value}))
    other = dataclasses.replace(spec, codec=IntCodec(2.0))
    assert FolderStoreWriter.create_or_resume(path, other, overwrite=True).pending() == [0, 1, 2]


def test_overwrite_keeps_the_old_store_until_the_new_one_is_there(tmp_path):
    path, spec = tmp_path / "out.zarr", make_spec()
    make_store(path, spec)
    with pytest.raises(StoreError, match=r"exists; .*--overwrite"):
        FolderStoreWriter.create_or_resume(path, spec)
    other = make_spec(codec=IntCodec(4.0))
    writer = write_all(path, other, photo_latents(other), overwrite=True)
    assert open_store(path).codec == IntCodec()
    writer.publish()
    assert open_store(path).codec == IntCodec(4.0)
    assert [p.name for p in tmp_path.iterdir()] == ["out.zarr"]


def test_folders_of_others_are_never_overwritten(tmp_path):
    foreign = tmp_path / "photos"
    foreign.mkdir()
    assert FolderStoreWriter.create_or_resume(foreign, make_spec(), overwrite=True).row_groups == 3
    (foreign / "cat.png").write_bytes(b"x")
    with pytest.raises(StoreError, match="is not overwritten"):
        FolderStoreWriter.create_or_resume(foreign, make_spec(), overwrite=True)
    blocked = tmp_path / "out.zarr.partial"
    blocked.mkdir()
    (blocked / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="in the way"):
        FolderStoreWriter.create_or_resume(tmp_path / "out.zarr", make_spec(), overwrite=True)
    assert (blocked / "notes.txt").exists()
    assert (foreign / "cat.png").exists()


def test_row_groups_can_be_written_by_other_processes(tmp_path):
    spec = make_spec()
    writer = pickle.loads(pickle.dumps(FolderStoreWriter.create_or_resume(tmp_path / "out.zarr", spec)))
    latents = photo_latents(spec)
    for r in (2, 0, 1):
        rows = writer.rows(r)
        writer.write(r, {k: v[rows.start : rows.stop] for k, v in latents.items()})
    writer.publish()
    assert tree(tmp_path / "out.zarr") == tree(make_store(tmp_path / "b.zarr", spec).path)


@pytest.mark.parametrize("codec", [IntCodec(), FloatCodec("float32")])
def test_numbers_that_are_no_latents_are_refused(tmp_path, codec):
    spec = make_spec(codec=codec)
    writer = FolderStoreWriter.create_or_resume(tmp_path / "out.zarr", spec)
    good = {k: v[8:16] for k, v in photo_latents(spec).items()}
    bad = {k: v.copy() for k, v in good.items()}
    bad[4][3, 1, 0, 2] = codec.encode(np.float32([np.nan]), np.float32(1))[0]
    with pytest.raises(StoreError, match=r"image 11 \(photo/011-é.png\) .* resolution 4"):
        writer.write(1, bad)
    with pytest.raises(StoreError, match=r"they must be .* \(4, 2, 1, 1\)"):
        writer.write(2, good)
    with pytest.raises(StoreError, match="float64"):
        writer.write(1, {k: v.astype("float64") for k, v in good.items()})
    with pytest.raises(StoreError, match="resolutions \\[4\\]"):
        writer.write(1, {4: good[4]})
    with pytest.raises(StoreError, match="no row group 3"):
        writer.write(3, good)
    assert writer.pending() == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": [], "labels": []}, "no images"),
        ({"labels": ["a"]}, "20 names and 1 labels"),
        ({"columns": VariateColumns({4: np.empty((0, 2), np.int32)})}, "keeps no latents"),
        ({"columns": make_columns("position")}, r"steps at resolution 4 .* 32"),
        ({"steps": {}}, "steps at resolution 1"),
        ({"steps": {**STEPS, 4: np.zeros(3, np.float32)}}, "a step at resolution 4"),
        ({"codec": FloatCodec("float16"), "steps": STEPS}, "steps of float16 latents must be 1"),
        ({"names": [f"\udcff{i}" for i in range(20)]}, "not valid Unicode"),
        ({"row_group_size": 0}, "row groups are of 0 images"),
    ],
)
def test_a_specification_of_no_store_is_refused(changes, message):
    with pytest.raises(StoreError, match=message):
        make_spec(**changes)


def test_per_image_arrays(tmp_path):
    spec = make_spec(per_image=("rate",))
    latents, rate = photo_latents(spec), np.linspace(0, 1, 20).astype(np.float32)
    writer = FolderStoreWriter.create_or_resume(tmp_path / "out.zarr", spec)
    first = {r: numbers[:8] for r, numbers in latents.items()}
    wrong = {"rate": rate[:7]}, {"z4": rate[:8]}, {"rate": np.where(rate == rate[3], np.nan, rate)[:8]}
    for values, message in zip(wrong, ("one number", "'z4'", "rate of image 3 is"), strict=True):
        with pytest.raises(StoreError, match=message):
            writer.write(0, first, values)
    for r in writer.pending():
        rows = slice(writer.rows(r).start, writer.rows(r).stop)
        writer.write(r, {key: numbers[rows] for key, numbers in latents.items()}, {"rate": rate[rows]})
    writer.publish()
    store = open_store(tmp_path / "out.zarr")
    np.testing.assert_array_equal(store.per_image("rate"), rate)
    assert store.frame.columns.tolist() == ["name", "label", "rate"]
    assert store.frame.dtypes["rate"] == np.float32
    assert store.frame.loc[3].tolist() == ["photo/003-é.png", "cat", rate[3]]
    assert len(store.frame) == 20
    with pytest.raises(StoreError, match="no array distortion"):
        store.per_image("distortion")


def test_what_is_no_store_is_told_apart(tmp_path):
    with pytest.raises(StoreError, match="there is no store"):
        open_store(tmp_path / "nowhere.zarr")
    with pytest.raises(StoreError, match=r"no zarr\.json"):
        open_store(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"no zarr\.json"):
        open_store(tmp_path / "file")
    zarr.create_group(tmp_path / "foreign.zarr")
    with pytest.raises(StoreError, match="no latent store of"):
        open_store(tmp_path / "foreign.zarr")
    zarr.create_array(tmp_path / "array.zarr", shape=(1,), dtype="int16")
    with pytest.raises(StoreError, match="no readable zarr group"):
        open_store(tmp_path / "array.zarr")
    (tmp_path / "torn.zarr").mkdir()
    (tmp_path / "torn.zarr" / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match="no readable zarr group"):
        open_store(tmp_path / "torn.zarr")


@pytest.mark.slow
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_changed_byte_of_metadata_is_told(tmp_path, granularity):
    store, rng = make_store(tmp_path / "out.zarr", make_spec(granularity=granularity)), np.random.default_rng(0)
    expected = store.latents(slice(None))
    for name in ("zarr.json", "z16/zarr.json", "step4/zarr.json"):
        file = store.path / name
        original = file.read_bytes()
        for at in rng.integers(len(original), size=60).tolist():
            file.write_bytes(original[:at] + bytes([original[at] ^ 1 << int(rng.integers(7))]) + original[at + 1 :])
            try:
                latents = open_store(store.path).latents(slice(None))
            except StoreError:
                continue
            for array, z in latents.items():  # space between words, a user's attributes
                np.testing.assert_array_equal(z, expected[array])
        file.write_bytes(original)


def test_stores_without_checksums_of_their_metadata_are_read(tmp_path):
    store = make_store(tmp_path / "out.zarr")
    without_copy(store.path)
    document = json.loads((store.path / "zarr.json").read_text())
    for key in ("checksum", "arrays", "chunk_bytes"):  # as stores of version 0.1.0 were
        del document["attributes"]["hvae_codec"][key]
    (store.path / "zarr.json").write_text(json.dumps(document))
    assert open_store(store.path).names == store.names


def test_damaged_metadata_are_told(tmp_path):
    path = make_store(tmp_path / "out.zarr").path
    root = path / "zarr.json"
    original = root.read_text()
    metadata = json.loads(original)["attributes"]["hvae_codec"]
    for changes, message in (
        ({"format_version": 6}, "version 6, .* up to 5; update hvae-codec"),
        ({"codec": {"name": "ans"}}, "no latent codec 'ans'"),
        ({"channels": {"2": [[0, 0]]}}, "no array z2"),
        ({"channels": {"4": [[0, 0]]}}, r"array z4: .* has the shape \[20, 3, 4, 4\], not \[20, 1"),
        ({"channels": None}, "metadata are damaged"),
        ({"channels": {}}, "name no latents"),
        ({"granularity": "pixel"}, "its granularity is 'pixel', not variate or position"),
    ):
        root.write_text(with_attribute(original, {**metadata, **changes}))
        with pytest.raises(StoreError, match=message):
            open_store(path)
    root.write_text(original)
    (path / "z4" / "zarr.json").rename(path / "z4" / "gone")
    with pytest.raises(StoreError, match="has no array z4"):
        open_store(path)


def test_damaged_metadata_of_single_positions_are_told(tmp_path):
    path = make_store(tmp_path / "out.zarr", make_spec(granularity="position")).path
    original = (path / "zarr.json").read_text()
    metadata = json.loads(original)["attributes"]["hvae_codec"]
    assert metadata["dimensions"] == {"1": 2, "4": 32, "16": 342}
    assert "channels" not in metadata
    for changes, message in (
        ({"dimensions": {"2": 1}}, "no array z2"),
        (
            {"dimensions": {"4": 33}},
            r"array (dimension4|z4): .* \[.*32.*\], not \[.*33.*\]",
        ),
        ({"dimensions": {}}, "name no latents"),
        ({"granularity": "variate"}, "metadata are damaged"),
    ):
        (path / "zarr.json").write_text(with_attribute(original, {**metadata, **changes}))
        with pytest.raises(StoreError, match=message):
            open_store(path)
    (path / "zarr.json").write_text(original)
    table = path / "dimension4" / "c" / "0" / "0"
    content = table.read_bytes()
    table.write_bytes(content[:10] + bytes([content[10] ^ 1]) + content[11:])
    with pytest.raises(StoreError, match="array dimension4 is damaged"):
        open_store(path)
    table.unlink()
    with pytest.raises(StoreError, match="array dimension4 is empty"):
        open_store(path)


def test_single_positions_are_refused_by_readers_that_know_version_1(tmp_path, monkeypatch):
    variates = make_store(tmp_path / "a.zarr").path
    positions = make_store(tmp_path / "b.zarr", make_spec(granularity="position")).path
    monkeypatch.setattr("hvae_codec.store.group_file.FORMAT_VERSION", 1)
    assert open_store(variates).latents(0)
    with pytest.raises(StoreError, match=r"b\.zarr has format version 2, .* 1"):
        open_store(positions)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("codec", [IntCodec(), FloatCodec("float16")])
def test_a_lost_shard_does_not_read_as_latents(tmp_path, codec, granularity):
    store = make_store(tmp_path / "out.zarr", make_spec(codec=codec, granularity=granularity))
    (store.path / "z4" / shard_key(1, store.columns.item(4))).unlink()
    assert store.latents(7)
    with pytest.raises(StoreError, match=r"z4 lacks .* image 8"):
        store.latents(8)


def test_lost_names_do_not_read_as_names(tmp_path):
    store = make_store(tmp_path / "out.zarr")
    (store.path / "name" / "c" / "0").unlink()
    with pytest.raises(StoreError, match="array name lacks image 0"):
        _ = store.names
    assert store.labels[:2] == ["", "cat"]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_damage_is_an_error_and_never_a_wrong_number(tmp_path, granularity):
    store = make_store(tmp_path / "out.zarr", make_spec(granularity=granularity))
    expected, rng = store.stored(slice(None)), np.random.default_rng(0)
    shard = store.path / "z16" / shard_key(1, store.columns.item(16))
    original, seen = shard.read_bytes(), 0
    for trial in range(60):
        damaged = bytearray(original)
        at = int(rng.integers(len(original)))
        if trial % 3:
            damaged[at] ^= 1 << int(rng.integers(8))
        else:
            del damaged[at:]
        shard.write_bytes(damaged)
        for index in (8, 15):
            try:
                np.testing.assert_array_equal(store.stored(index)[16], expected[16][index])
            except StoreError as error:
                assert f"image {index}" in str(error)  # noqa: PT017
                seen += 1
    assert seen > 60


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_swapped_shards_fail_the_check(tmp_path, granularity):
    store = make_store(tmp_path / "out.zarr", make_spec(granularity=granularity))
    first, second = (store.path / "z4" / shard_key(r, store.columns.item(4)) for r in (0, 1))
    first.write_bytes(second.read_bytes())
    with pytest.raises(StoreError, match=r"images 0 to 7: .* not what was written"):
        checked_row_group(store, 0)
    checked_row_group(store, 1)


def test_reading_needs_no_torch(tmp_path):
    path = make_store(tmp_path / "out.zarr").path
    code = f"import sys, hvae_codec; hvae_codec.open_store({str(path)!r}).latents(3); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_chunks_divide_shards():
    assert [chunk_length(256, 65536, size) for size in (10, 512, 513, 65536, 10**6)] == [256, 128, 64, 1, 1]
    assert chunk_length(6, 5, 1) == 3


def test_a_store_that_has_grown_since_it_was_opened_says_so(tmp_path):
    store = make_store(tmp_path / "out.zarr", make_spec(20))
    make_store(store.path, make_spec(28), overwrite=True)
    with pytest.raises(StoreError, match=r"replaced since .*; open it again"):
        checked_row_group(store, 2)
    make_store(tmp_path / "out.zarr", make_spec(10), overwrite=True)
    with pytest.raises(StoreError, match="open it again"):
        store.latents(19)


@pytest.mark.parametrize("images", [20, 28])
def test_a_store_replaced_while_it_is_opened_is_opened_again(tmp_path, monkeypatch, images):
    path = make_store(tmp_path / "out.zarr", make_spec(20)).path
    read_metadata, seen = store_module.read_metadata, []

    def replaced_afterwards(place):
        found = read_metadata(place)
        seen.append(found)
        if len(seen) == 1:
            spec = make_spec(images, model=ModelRecord(hash="cd" * 32))
            write_all(path, spec, photo_latents(spec), overwrite=True).publish()
        return found

    monkeypatch.setattr(store_module, "read_metadata", replaced_afterwards)
    store = open_store(path)
    assert (len(store), store.model_hash) == (images, "cd" * 32)


@pytest.mark.parametrize("name", ["name", "label", "committed"])
def test_arrays_of_another_length_are_told(tmp_path, name):
    path = make_store(tmp_path / "out.zarr").path
    file = path / name / "zarr.json"
    document = json.loads(file.read_text())
    document["shape"] = [2]
    file.write_text(json.dumps(document))
    with pytest.raises(StoreError, match=rf"array {name}: .* shape \[2\], not \["):
        open_store(path)


def test_counts_that_the_mask_does_not_keep_are_refused_before_a_table_is_read(tmp_path):
    counts = {r: len(kept_positions(r)) for r in (1, 4, 16)}
    groups = [{"resolution": r, "variates": 9, "keep": {"0": f"0-{n - 2} {n - 1}"}} for r, n in counts.items()]
    store = make_store(tmp_path / "out.zarr", make_spec(granularity="position", mask={"groups": groups}))
    file = store.path / "zarr.json"
    attribute = store.metadata.to_attribute() | {"dimensions": {"1": 2, "4": 32, "16": 10**12}}
    file.write_text(with_attribute(file.read_text(), attribute))
    with pytest.raises(StoreError, match=r"16': 1000000000000} .* mask keeps"):
        open_store(store.path)


def test_names_are_read_in_blocks(tmp_path, monkeypatch):
    store = make_store(tmp_path / "out.zarr")
    monkeypatch.setattr("hvae_codec.store.reader._TEXTS_AT_ONCE", 8)
    monkeypatch.setattr("hvae_codec.store.reader.TABLE_CHUNK", 3)
    assert (store.names, store.labels) == (make_spec().names, make_spec().labels)
    names = zarr.open_array(store.path / "name", mode="r+")
    names[17] = NO_TEXT
    with pytest.raises(StoreError, match="array name lacks image 17"):
        _ = open_store(store.path).names
