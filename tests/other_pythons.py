"""Stores go between Python versions: what one writes, the others read, and all write the same bytes.

    python tests/other_pythons.py [3.12 3.13]

Each version that is found, on PATH or by asking pyenv, gets an environment with this package and what reading needs,
and no torch; its zarr is 3.4, which does not install on Python 3.11. There this file is run again: it reads the golden
stores and those that the Python here has written, compares them with what is known, and writes them all once more. What
it wrote is read here and compared byte for byte. A version that is not found is said, and is no failure.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import zarr

from hvae_codec import open_store
from hvae_codec.archive.chunk import pack
from hvae_codec.archive.zarr_codec import ArchiveCodec
from hvae_codec.store.folder_writer import FolderStoreWriter
from hvae_codec.store.schema import WEIGHTS
from hvae_codec.verification.row_group import checked_row_group
from hvae_codec.verification.verify import verify

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "stores"
PACKED = ROOT / "tests" / "golden" / "archive"
VERSIONS = ["3.12", "3.13"]
ZARR = "zarr==3.4.*"
PINNED = ["numpy", "numcodecs", "google-crc32c", "filelock"]
"""What else reading needs, in the versions of constraints.txt: another compressor may write other bytes."""
THIS = f"Python {platform.python_version()} with zarr {zarr.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", default=VERSIONS, help="of Python (3.12 3.13)")
    parser.add_argument("--read", type=Path, metavar="FOLDER", help="read the stores there; what the other Python does")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="and write them to this folder")
    options = parser.parse_args()
    if options.read:
        read_and_write(options.read, options.write)
    else:
        exchange_with_all(options.versions)


def exchange_with_all(versions: Sequence[str]) -> None:
    """Exchange stores with each of `versions`; exits with 1 where that fails for any of them."""
    with tempfile.TemporaryDirectory(prefix="other_pythons-") as folder:
        ours, failed = Path(folder) / "ours", False
        read_and_write(GOLDEN, ours)
        for version in versions:
            python = find_python(version)
            if python is None:
                print(f"WARNING: no Python {version} found; stores were not exchanged with it", file=sys.stderr)
                continue
            try:
                exchange(python, ours, Path(folder) / version)
            except (AssertionError, subprocess.CalledProcessError) as error:
                failed = True
                print(f"ERROR: {THIS} and Python {version} do not exchange stores: {error}", file=sys.stderr)
    sys.exit(failed)


def exchange(python: str, ours: Path, folder: Path) -> None:
    """Raises `AssertionError` or `CalledProcessError` where the stores in `ours` and those of `python` differ."""
    there, theirs = make_environment(python, folder / "venv"), folder / "theirs"
    subprocess.run([there, "-W", "error", __file__, "--read", ours, "--write", theirs], check=True)
    for name in golden_names():
        check_store(theirs / f"{name}.zarr", name)
    here, other = files(ours), files(theirs)
    differing = sorted(name for name in here.keys() | other.keys() if here.get(name) != other.get(name))
    assert not differing, f"other bytes in {', '.join(differing)}"
    print(f"{THIS} read what Python {version_of(there)} wrote: {len(here)} files, byte for byte the same", flush=True)


def read_and_write(source: Path, target: Path | None) -> None:
    """Check the golden stores and their copies in `source`, and write these again to `target`."""
    for name in golden_names():
        check_store(GOLDEN / f"{name}.zarr", name)
        check_store(source / f"{name}.zarr", name)
        if target:
            target.mkdir(exist_ok=True)
            rewrite(source / f"{name}.zarr", target / f"{name}.zarr")
    check_archive_codec()
    assert "torch" not in sys.modules, "reading and writing stores has imported torch"
    print(f"{THIS} read and wrote {len(golden_names())} stores", flush=True)


def golden_names() -> list[str]:
    return sorted(path.stem for path in GOLDEN.glob("*.npz"))


def check_store(path: Path, name: str) -> None:
    """Raise `AssertionError` where the store at `path` is not the golden store `name`."""
    store = open_store(path)
    with np.load(GOLDEN / f"{name}.npz") as known:
        latents = store.latents(slice(None))
        assert latents.keys() == {array for array in known if array[0] == "z"}, f"{path} has other latents"
        for array, z in latents.items():
            np.testing.assert_array_equal(z, known[array], err_msg=f"{path}, {array}")
        assert store.names == known["names"].tolist(), f"{path} has other names"
        assert store.labels == known["labels"].tolist(), f"{path} has other labels"
        if "checksums" in known:
            assert store.splits == known["splits"].tolist(), f"{path} has other splits"
            np.testing.assert_array_equal(store.file_bytes, known["file_bytes"], err_msg=f"{path}, file_bytes")
            np.testing.assert_array_equal(store.checksums, known["checksums"], err_msg=f"{path}, checksum")
        else:
            assert store.splits is store.checksums is None, f"{path} has what came with version 4"
    for row_group in range(len(store.row_groups)):
        checked_row_group(store, row_group)
    assert verify(path).ok, f"{path} is damaged"


def check_archive_codec() -> None:
    """Raise `AssertionError` where the archive codec makes other bytes or numbers of a golden chunk."""
    for path in sorted(PACKED.glob("*.npy")):
        numbers, packed = np.load(path), path.with_suffix(".packed").read_bytes()
        assert pack(numbers) == packed, f"other bytes of {path.name}"
        files = {}
        options = {"shape": numbers.shape, "chunks": numbers.shape, "dtype": numbers.dtype}
        array = zarr.create_array(files, **options, serializer=ArchiveCodec(), filters=(), compressors=())
        array[:] = numbers
        key = "/".join(["c", *("0" for _ in numbers.shape)])
        assert files[key].to_bytes() == packed, f"zarr writes other bytes of {path.name}"
        np.testing.assert_array_equal(zarr.open_array(files, mode="r")[:], numbers, err_msg=path.name)


def rewrite(path: Path, target: Path) -> None:
    """Write the store at `path` again to `target`, as `encode` does."""
    store = open_store(path)
    weights = store.arrays.read(WEIGHTS).tobytes() if store.metadata.model.embedded else b""
    spec = dataclasses.replace(store.spec(), weights=weights)
    writer = FolderStoreWriter.create_or_resume(target, spec)
    for row_group in writer.pending():
        rows = slice(writer.rows(row_group).start, writer.rows(row_group).stop)
        writer.write(row_group, store.stored(rows), {name: store.per_image(name)[rows] for name in spec.of_row_groups})
    assert writer.finish()


def files(folder: Path) -> dict[str, bytes]:
    """Content of all files below `folder`, by their path in it."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# --- the other Python ------------------------------------------------------------------------------------------------


def find_python(version: str) -> str | None:
    """The interpreter of `version`, such as 3.12; None where none is found that makes environments."""
    # A shim of pyenv is on PATH for versions too that it refuses to start.
    return next((python for python in candidates(version) if version_of(python) == version), None)


def version_of(python: str) -> str:
    """Such as 3.12; empty where `python` does not start or cannot make environments."""
    code = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=False).stdout.strip()


def candidates(version: str) -> Iterator[str]:
    for folder in os.get_exec_path():
        if found := shutil.which(f"python{version}", path=folder):
            yield found
    if pyenv := shutil.which("pyenv"):
        installed = subprocess.run([pyenv, "versions", "--bare"], capture_output=True, text=True, check=False).stdout
        for name in installed.split():
            if name.startswith(f"{version}."):
                prefix = subprocess.run([pyenv, "prefix", name], capture_output=True, text=True, check=True).stdout
                yield str(Path(prefix.strip()) / "bin" / "python")


def make_environment(python: str, folder: Path) -> str:
    """The interpreter of a new environment at `folder` that can read stores, and cannot decode them."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    there = str(folder / "bin" / "python")
    install = [there, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, ZARR, *pins()], check=True)
    subprocess.run([*install, "--no-deps", ROOT], check=True)
    return there


def pins() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.partition("==")[0] in PINNED]


if __name__ == "__main__":
    main()
