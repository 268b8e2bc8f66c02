"""A recoded store has all that the old one has, in the bytes that encode would have written, whoever did the work."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import zarr

from engine_tasks import Backwards, die_once
from hvae_codec import LatentMask, append, encode_images, kl_stats, open_store, recode, repair, sync, verify
from hvae_codec.data.sources import as_source
from hvae_codec.encode.deep_verify import verify_deep
from hvae_codec.encode.pipeline import EncodeOptions
from hvae_codec.encode.repair import RepairOptions
from hvae_codec.engine.tally import Tally
from hvae_codec.engine.where import engine_on
from hvae_codec.errors import StoreError, UsageError
from hvae_codec.store.quantiser import FloatCodec
from hvae_codec.store.reader import Store
from hvae_codec.store.schema import WEIGHTS
from hvae_codec_cli.app import main
from stores import PACKED, make_spec, make_store, photo_latents, records_of, tree, write_all

GOLDEN = Path(__file__).parent / "golden" / "stores"
CODES = ["variate-int", "position-int", "variate-copy", "variate-decoder", "records-position", "records-appended"]
"""Golden stores of codes, of format versions 1 to 4."""
IMAGES = 30
REPAIR = RepairOptions(batch_size=4, seed=3)
OPTIONS = EncodeOptions(batch_size=4, row_group_size=8, evaluate=True, seed=3, verify=True, embed="whole")


def content(store: Store) -> dict:
    """All that a recode must leave as it is."""
    figures = {name: store.per_image(name).tobytes() for name in store.own_figures}
    metadata = store.metadata
    return {
        **{f"codes{r}": codes.astype(store.codec.dtype).tobytes() for r, codes in store.stored(slice(None)).items()},
        **{f"steps{r}": steps.tobytes() for r, steps in store.steps.items()},
        **{name: table.tobytes() for name, table in store.columns.tables().items()},
        **figures,
        "texts": [[*store.names], [*store.labels], None if store.splits is None else [*store.splits]],
        "records": None if store.splits is None else [store.file_bytes.tolist(), store.checksums.tolist()],
        "metadata": [metadata.codec, metadata.model, metadata.mask, metadata.source, metadata.image, metadata.columns],
        "weights": store.arrays.read(WEIGHTS).tobytes() if metadata.model.embedded else None,
    }


def code(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*words])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def records() -> dict:
    return records_of(IMAGES)


def make_old(path: Path, records: dict) -> Path:
    """A store of version 4 in 8 row groups; codes of z4 do not fit into 8 bits."""
    spec = make_spec(IMAGES, row_group_size=4, **records)
    latents = photo_latents(spec)
    latents[4][11, 0] = -300
    write_all(path, spec, latents).publish()
    return path


@pytest.fixture(scope="module")
def original(tmp_path_factory, records) -> Path:
    return make_old(tmp_path_factory.mktemp("original") / "old.zarr", records)


@pytest.fixture
def old(tmp_path, original) -> Path:
    """A copy of it, which a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "old.zarr"))


# --- what is in it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CODES)
def test_older_versions_become_version_5_and_go_back(tmp_path, name):
    old = Store.open(GOLDEN / f"{name}.zarr")
    plain = recode(old.path, tmp_path / "plain.zarr")
    archive = recode(plain.path, tmp_path / "archive.zarr", packing="archive")
    back = recode(archive.path, tmp_path / "back.zarr", packing="blosc")
    versions = [store.format_version for store in (plain, archive, back)]
    assert versions == [5, 5, old.format_version]
    expected = content(old)
    assert all(content(store) == expected for store in (plain, archive, back))
    assert back.metadata.fingerprint == old.metadata.fingerprint
    assert all(verify(store.path).ok for store in (plain, archive, back))


@pytest.mark.parametrize("codec", [FloatCodec("float16"), FloatCodec("float32")], ids=str)
def test_floats_get_other_pieces_alone(tmp_path, codec):
    old = make_store(tmp_path / "old.zarr", make_spec(20, codec=codec))
    new = recode(old.path, tmp_path / "new.zarr", chunk_bytes=1, row_group_size=5)
    assert content(new) == content(old)
    assert (new.format_version, new.row_groups.size, new.arrays["z4"].chunks[0]) == (1, 5, 1)
    assert tree(recode(new.path, tmp_path / "back.zarr", chunk_bytes=4096, row_group_size=8).path) == tree(old.path)


@pytest.mark.parametrize("size", [3, 7, 64])
def test_row_groups_of_any_size(tmp_path, old, size):
    new = recode(old, tmp_path / "new.zarr", row_group_size=size)
    assert content(new) == content(Store.open(old))
    assert verify(new.path).ok
    assert tree(recode(new.path, tmp_path / "back.zarr", packing="blosc", row_group_size=4).path) == tree(old)


def test_types_are_what_codes_need_or_what_is_asked_for(tmp_path, old):
    def dtypes(path, **options):
        numbered = tmp_path / f"{len([*tmp_path.iterdir()])}.zarr"
        return (store := recode(path, numbered, **options)).path, store.metadata.dtypes

    mixed = {1: "int8", 4: "int16", 16: "int8"}
    path, found = dtypes(old)
    assert found == mixed
    twice, found = dtypes(path, code_bits="auto")
    assert found == mixed
    assert tree(twice) == tree(path)
    wide, found = dtypes(path, code_bits=16)
    assert found == dict.fromkeys(mixed, "int16")
    assert dtypes(wide, packing="archive")[1] == found  # as it is, since somebody wanted it so
    narrow, found = dtypes(wide, code_bits="auto")
    assert found == mixed
    assert tree(narrow) == tree(path)
    with pytest.raises(UsageError, match=r"code -300 in z4, and 8 bits hold -127 to 127; give --code-bits 16, or auto"):
        dtypes(wide, code_bits=8)
    assert content(Store.open(narrow)) == content(Store.open(old))


def test_eight_bits_hold_127_and_not_128(tmp_path):
    spec = make_spec(8)
    for least, most, fits in ((-127, 127, True), (-128, 0, False), (0, 128, False)):
        latents = photo_latents(spec)
        latents[1][2, 0], latents[1][3, 0] = least, most
        shutil.rmtree(tmp_path, ignore_errors=True)
        tmp_path.mkdir()
        write_all(tmp_path / "old.zarr", spec, latents).publish()
        assert (recode(tmp_path / "old.zarr", tmp_path / "new.zarr").metadata.dtypes[1] == "int8") is fits


# --- what encode would have written ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encode(tiny_model, photo_patches, tmp_path_factory):
    """Encodes the patches with other options, each once."""
    stats, made = kl_stats(tiny_model, photo_patches), {}
    folder = tmp_path_factory.mktemp("encoded")

    def encoded(images=24, **changes):
        key = json.dumps([images, changes])
        if key not in made:
            common = {"mask": LatentMask.from_keep(stats, 0.5), "stats": stats}
            codec = FloatCodec("float16") if changes.pop("floats", False) else None
            options = dataclasses.replace(OPTIONS, **changes)
            path = folder / f"{len(made)}.zarr"
            made[key] = encode_images(
                tiny_model, photo_patches[:images], path, codec=codec, options=options, **common
            ).path
        return made[key]

    return encoded


@pytest.mark.parametrize(
    ("before", "after", "options"),
    [
        ({}, {"packing": "archive"}, {"packing": "archive"}),
        ({"packing": "archive"}, {}, {"packing": "zstd"}),
        ({"packing": "blosc"}, {"code_bits": 16}, {"code_bits": 16}),
        ({"code_bits": 8}, {"code_bits": 16}, {"code_bits": 16}),
        ({}, {"chunk_bytes": 600}, {"chunk_bytes": 600}),
        ({}, {"row_group_size": 12}, {"row_group_size": 12}),
        ({"floats": True}, {"floats": True, "chunk_bytes": 2000}, {"chunk_bytes": 2000}),
    ],
    ids=str,
)
def test_it_is_the_store_that_encode_writes(tmp_path, encode, before, after, options):
    assert tree(recode(encode(**before), tmp_path / "new.zarr", **options).path) == tree(encode(**after))


@pytest.mark.parametrize("packing", ["zstd", "archive"])
def test_it_can_be_worked_with_as_any_store(tmp_path, encode, tiny_model, photo_patches, packing):
    path = recode(encode(16, packing="blosc"), tmp_path / "new.zarr", packing=packing).path
    old = open_store(encode(16, packing="blosc"))
    np.testing.assert_array_equal(open_store(path).decode([3, 11]), old.decode([3, 11]))
    assert verify_deep(path).ok
    before = tree(path)
    (path / "z8/c/1/0/0/0").unlink()
    (path / "z16/c/0/0/0/0").write_bytes(b"torn")
    assert repair(path, as_source(photo_patches[:16]), tiny_model, options=REPAIR).after.damages == []
    assert {k: v for k, v in tree(path).items() if v != before[k]} == {}
    append(tiny_model, photo_patches[16:20], path, batch_size=4, seed=3)
    sync(tiny_model, photo_patches, path, batch_size=4, seed=3)
    assert (len(open_store(path)), open_store(path).metadata.packing) == (24, packing)
    assert verify_deep(path).ok


# --- who does the work, and what stops it ----------------------------------------------------------------------------


def test_others_do_the_work_with_small_tasks(tmp_path, old, monkeypatch):
    expected, engine, tally = tree(recode(old, tmp_path / "a.zarr").path), Backwards(), Tally()
    monkeypatch.chdir(tmp_path)
    assert tree(recode("old.zarr", "b.zarr", engine=engine).path) == expected
    assert len(engine.sizes) == 16  # each row group was looked at, then recoded
    assert max(engine.sizes) < 4_000
    with ThreadPoolExecutor(3) as pool:
        assert tree(recode(old, "c.zarr", executor=pool, tally=tally).path) == expected
    assert (tally.done, tally.failed) == (16, 0)


def test_progress_is_of_images(tmp_path, old):
    measured, done = [], []
    recode(old, tmp_path / "new.zarr", measuring=lambda *n: measured.append(n), progress=lambda *n: done.append(n))
    expected = [(min(4 * k, IMAGES), IMAGES) for k in range(1, 9)]
    assert measured == expected
    assert done == expected


@pytest.mark.slow
def test_processes_one_of_which_is_killed(tmp_path, old, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected, tally = tree(recode(old, "a.zarr").path), Tally()
    with engine_on("local:2", initializer=partial(die_once, tmp_path / "died")) as engine:
        assert tree(recode(Path("old.zarr"), Path("b.zarr"), engine=engine, tally=tally).path) == expected
    assert tally.retries == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "b.zarr", "died", "old.zarr"]


@pytest.mark.parametrize("threads", [0, 2])
def test_interrupted_it_continues(tmp_path, old, threads):
    expected, seen = tree(recode(old, tmp_path / "a.zarr").path), []

    def interrupt(done: int, total: int) -> None:
        if done >= 12:
            raise KeyboardInterrupt

    with ThreadPoolExecutor(threads or 1) as pool:
        options = {"executor": pool} if threads else {}
        with pytest.raises(KeyboardInterrupt):
            recode(old, tmp_path / "b.zarr", progress=interrupt, **options)
        assert not (tmp_path / "b.zarr").exists()
        new = recode(old, tmp_path / "b.zarr", progress=lambda *counts: seen.append(counts), **options)
    assert tree(new.path) == expected
    assert seen[0][0] > 12
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "b.zarr", "old.zarr"]


KILLED = """
import os, signal, sys
from hvae_codec import recode

def progress(done, total):
    if done >= int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)

recode("old.zarr", "b.zarr", packing="archive", progress=progress)
"""


@pytest.mark.slow
def test_killed_it_continues_without_torch(tmp_path, old, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = tree(recode(old, "a.zarr", packing="archive").path)
    for images in (4, 20):
        killed = subprocess.run([sys.executable, "-c", KILLED, str(images)])
        assert killed.returncode == -signal.SIGKILL
        assert len([*Path("b.zarr.partial/committed/c").iterdir()]) * 4 >= images
    command = ["recode", "old.zarr", "b.zarr", "--codec", "archive"]
    program = (
        "import sys; sys.modules['torch'] = None\n"
        f"from hvae_codec_cli.app import main\nmain({command})"  # an import of torch would be an error
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "int8 and int16, archive" in done.stdout
    assert tree(Path("b.zarr")) == expected


def test_memory_holds_one_row_group(tmp_path, old, monkeypatch):
    """However many row groups there are, each is read once, though the new ones are cut elsewhere."""
    read, real = [], Store.raw_latents

    def noted(self, resolution, rows, *more):
        read.append((resolution, *rows))
        return real(self, resolution, rows, *more)

    monkeypatch.setattr(Store, "raw_latents", noted)
    recode(old, tmp_path / "new.zarr", row_group_size=2, code_bits=16)
    assert len(read) == len({*read}) == 24
    assert max(len(rows) for _, *rows in read) == 4


# --- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [None, 16])
def test_damage_is_named_and_nothing_passes_for_whole(tmp_path, old, bits):
    shard = old / "z16/c/2/0/0/0"
    sound = shard.read_bytes()
    shard.write_bytes(bytes([sound[0] ^ 1]) + sound[1:])
    named = r"old\.zarr: row group 2 \(images 8 to 11\) is damaged: z16/c/2/0/0/0 .*verify .*old\.zarr"
    with pytest.raises(StoreError, match=named):
        recode(old, tmp_path / "new.zarr", code_bits=bits)
    assert not (tmp_path / "new.zarr").exists()
    shard.write_bytes(sound)
    assert content(recode(old, tmp_path / "new.zarr", code_bits=bits)) == content(Store.open(old))


def test_what_was_begun_with_other_bits_is_another_store(tmp_path, old):
    """It is not gone on with in other types than were asked for."""
    expected = tree(recode(old, tmp_path / "expected.zarr", code_bits="auto").path)
    shard = old / "z16/c/2/0/0/0"
    sound = shard.read_bytes()
    shard.write_bytes(bytes([sound[0] ^ 1]) + sound[1:])
    with pytest.raises(StoreError, match="damaged"):
        recode(old, tmp_path / "new.zarr", code_bits=16)
    shard.write_bytes(sound)
    with pytest.raises(StoreError, match="other settings; remove it or pass --overwrite"):
        recode(old, tmp_path / "new.zarr", code_bits="auto")
    assert tree(recode(old, tmp_path / "new.zarr", code_bits="auto", overwrite=True).path) == expected


def test_latents_of_another_row_group_are_told_by_the_digest(tmp_path, old):
    shutil.copy(old / "z16/c/1/0/0/0", old / "z16/c/5/0/0/0")  # whose own checksums are right
    with pytest.raises(StoreError, match=r"row group 5 .images 20 to 23. is damaged: committed/c/5 is not the digest"):
        recode(old, tmp_path / "new.zarr")
    assert len([*(tmp_path / "new.zarr.partial/committed/c").iterdir()]) == 5


def test_a_damaged_figure_is_named(tmp_path, old):
    shard = old / "checksum/c/3"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match=r"array checksum is damaged at images 12 to 15: does not match its checksum"):
        recode(old, tmp_path / "new.zarr")


def test_a_store_that_is_replaced_meanwhile(tmp_path, old):
    other = make_store(tmp_path / "other.zarr", make_spec(IMAGES, row_group_size=4)).path

    def replace(done: int, total: int) -> None:
        if done == 12:
            shutil.rmtree(old)
            other.rename(old)

    with pytest.raises(StoreError, match=r"old\.zarr was removed or replaced while it was read; run the command again"):
        recode(old, tmp_path / "new.zarr", progress=replace)
    assert not (tmp_path / "new.zarr").exists()


def test_what_a_user_added_is_named(tmp_path, old):
    group = zarr.open_group(old, mode="r+")
    group.create_array("mine", shape=(IMAGES,), dtype="float32")
    group.attrs["note"] = "best one"
    warned = []
    recode(old, tmp_path / "new.zarr", on_warning=warned.append)
    assert "new.zarr lacks what was added to" in warned[0]
    assert warned[0].endswith("the attribute note, the array mine")
    assert not warned[1:]
    assert not (tmp_path / "new.zarr" / "mine").exists()


WRONG = {
    "same": (["old.zarr", "old.zarr"], 2, "is the store itself; give the new one another name"),
    "the same by a link": (["old.zarr", "link.zarr", "--overwrite"], 2, "is the store itself"),
    "a URL of the same": (["old.zarr", "file://{}/old.zarr", "--overwrite"], 2, "is the store itself"),
    "inside": (["old.zarr", "old.zarr/new.zarr"], 2, "inside of the store; give a name beside it"),
    "around": (["outer/inner.zarr", "outer", "--overwrite"], 2, "outer/inner.zarr is inside of outer"),
    "taken": (["old.zarr", "packed.zarr"], 1, "packed.zarr exists; give another name or pass --overwrite"),
    "no store to replace": (["old.zarr", "outer", "--overwrite"], 1, "outer is no store of this package"),
    "a name that is needed": (["old.zarr", "new.zarr.partial"], 1, "give one without that ending"),
    "missing": (["none.zarr", "new.zarr"], 1, "there is no store none.zarr"),
    "no store": (["outer", "new.zarr"], 1, "outer is no zarr store"),
    "unfinished": (["half.zarr", "new.zarr"], 1, "half.zarr is unfinished"),
    "metadata damaged": (["torn.zarr", "new.zarr"], 1, "`hvae-codec repair torn.zarr` restores it"),
    "floats to archive": (["float16.zarr", "new.zarr", "--codec", "archive"], 2, "as float16, of which no codes"),
    "floats to codes": (["float16.zarr", "new.zarr", "--codec", "int"], 2, "give --chunk or --shard alone"),
    "floats of 8 bits": (["float16.zarr", "new.zarr", "--code-bits", "8"], 2, "as float16, of which no codes"),
    "too large": (["old.zarr", "new.zarr", "--code-bits", "8"], 2, "code -300 in z4"),
    "no chunk": (["old.zarr", "new.zarr", "--chunk", "0"], 2, "--chunk"),
    "far too large a chunk": (
        ["old.zarr", "new.zarr", "--chunk", str(2**40)],
        2,
        "(--chunk) is 1099511627776; give 1 to",
    ),
    "a prime": (["old.zarr", "new.zarr", "--shard", "1009"], 2, "give --shard 1024"),
    "unknown bits": (["old.zarr", "new.zarr", "--code-bits", "12"], 2, "'12' is not one of"),
    "unknown place": (["old.zarr", "new.zarr", "--on", "moon"], 2, "moon"),
}


@pytest.fixture(scope="module")
def folder(original, tmp_path_factory) -> Path:
    """Stores of all kinds that a wrong command may name; none may change one."""
    folder = tmp_path_factory.mktemp("wrong")
    shutil.copytree(original, folder / "old.zarr")
    (folder / "link.zarr").symlink_to("old.zarr")
    (folder / "outer").mkdir()
    make_store(folder / "outer/inner.zarr", make_spec(4))
    make_store(folder / "packed.zarr", make_spec(8, **PACKED["zstd"]))
    make_store(folder / "float16.zarr", make_spec(8, codec=FloatCodec("float16")))
    spec = make_spec(8, row_group_size=4)
    write_all(folder / "half.zarr", spec, photo_latents(spec), only=1)
    shutil.copytree(folder / "old.zarr", folder / "torn.zarr")
    (folder / "torn.zarr" / "zarr.json").unlink()
    return folder


@pytest.mark.parametrize("case", WRONG)
def test_wrong_commands_are_one_sentence(folder, monkeypatch, capsys, case):
    monkeypatch.chdir(folder)
    before = tree(folder)
    words, number, sentence = WRONG[case]
    assert code("recode", *(word.format(folder) for word in words)) == number
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("hvae-codec: ")
    assert sentence in last
    assert tree(folder) == before


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_shows_bytes_before_and_after(tmp_path, old, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert code("recode", "old.zarr", "new.zarr", "--codec", "archive", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == IMAGES
    assert (found["before"]["packing"], found["after"]["packing"]) == ("blosc", "archive")
    assert found["after"]["dtypes"] == {"z1": "int8", "z4": "int16", "z16": "int8"}
    sizes = {name: sum(map(len, tree(tmp_path / name).values())) for name in ("old.zarr", "new.zarr")}
    assert [found["before"]["bytes"], found["after"]["bytes"]] == [*sizes.values()]
    assert found["ratio"] == pytest.approx(sizes["new.zarr"] / sizes["old.zarr"])
    assert found["latent_ratio"] < 1
    assert code("recode", "new.zarr", "old.zarr", "--codec", "int", "--code-bits", "16", "--overwrite") == 0
    out = capsys.readouterr().out
    assert f"{sum(map(len, tree(old).values())):,}" in out
    assert "int16, zstd" in out
    assert content(Store.open(old)) == content(Store.open(tmp_path / "new.zarr"))


@pytest.mark.slow
def test_the_command_on_other_processes_to_a_bucket_and_back(tmp_path, old, monkeypatch, bucket):
    monkeypatch.chdir(tmp_path)
    assert code("recode", "old.zarr", f"{bucket}/new.zarr", "--on", "local:2") == 0
    assert content(Store.open(f"{bucket}/new.zarr")) == content(Store.open(old))
    assert code("recode", f"{bucket}/new.zarr", f"{bucket}/archive.zarr", "--codec", "archive") == 0
    assert verify(f"{bucket}/archive.zarr").ok
    assert code("recode", f"{bucket}/archive.zarr", "back.zarr", "--codec", "int", "--on", "local:2") == 0
    assert tree(tmp_path / "back.zarr") == tree(recode(old, tmp_path / "new.zarr").path)
    with pytest.raises(UsageError, match="is the store itself"):
        recode(f"{bucket}/new.zarr", f"{bucket}/new.zarr/", overwrite=True)
