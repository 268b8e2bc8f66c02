"""Checks an installation where people have it: without the tests' tools, on any system.

    python tests/wheel_check.py

The archive codec must unpack and pack its golden chunks to the byte, golden stores must be whole, and the README's
commands must run on a few photographs. Only what the package itself needs is imported. Prints what it did.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hvae_codec import open_store
from hvae_codec.archive.chunk import pack, unpack
from hvae_codec.verification.verify import verify

GOLDEN = Path(__file__).parent / "golden"


def main() -> None:
    for check in (golden_chunks, golden_stores, commands):
        print(f"{check.__name__.replace('_', ' ')}: {check()}", flush=True)


def golden_chunks() -> int:
    """Unpack and pack the golden chunks of the archive codec; returns how many."""
    names = sorted((GOLDEN / "archive").glob("*.npy"))
    for name in names:
        numbers, packed = np.load(name), name.with_suffix(".packed").read_bytes()
        assert np.array_equal(unpack(packed, numbers.shape, numbers.dtype), numbers), name
        assert pack(numbers) == packed, name
    assert names, "there are no golden chunks"
    return len(names)


def golden_stores() -> int:
    """Verify the golden stores, and read their latents; returns how many."""
    stores = list(_stores(GOLDEN / "stores"))
    for path in stores:
        report = verify(path)
        assert report.ok, (path, report)
        latents = open_store(path).latents(slice(None))
        assert all(np.isfinite(z).all() for z in latents.values()), path
    assert stores, "there are no golden stores"
    return len(stores)


def _stores(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if (path / "zarr.json").is_file())


def commands() -> str:
    """Run the README's commands, small."""
    with tempfile.TemporaryDirectory() as folder:
        for line in (
            "sample-data data --size 16",
            "train data --preset tiny16 --steps 2 --no-tensorboard --validation-images 16",
            "analyze-kl data --keep 3% --images 32",
            "encode --keep 3% --evaluate none --images 0:32 data out.zarr",
            "verify out.zarr",
            "decode out.zarr images",
        ):
            subprocess.run([sys.executable, "-m", "hvae_codec", *line.split()], cwd=folder, check=True)
        decoded = len(list(Path(folder, "images").rglob("*.png")))
        images = len(open_store(Path(folder, "out.zarr")))
        assert decoded == images > 0, (decoded, images)
    return f"{decoded} images decoded"


if __name__ == "__main__":
    main()
