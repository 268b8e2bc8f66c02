"""Stores are read where torch is not installed, and nothing that reads them imports it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stores import make_spec, make_store

READ = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "safetensors"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

if BLOCKED:
    sys.meta_path.insert(0, NoTorch())

import numpy as np
import hvae_codec
from hvae_codec.verification.row_group import checked_row_group

store = hvae_codec.open_store(STORE)
latents = store.latents(slice(2, 17))
assert store.gather_latents([5, 3])["z16"].shape[0] == 2
assert len(store.names) == len(store.labels) == len(store.frame) == len(store) == 20
assert store.to_xarray()["z4/z"].shape[0] == 20
checked_row_group(store, 0)
assert "torch" not in sys.modules
np.savez(OUT, **latents)
try:
    store.decode([0])
except hvae_codec.HvaeCodecError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("granularity", "blocked"), [("variate", False), ("position", True)])
def test_reading_imports_no_torch(tmp_path, granularity, blocked):
    store = make_store(tmp_path / "out.zarr", make_spec(granularity=granularity))
    out = tmp_path / "latents.npz"
    code = f"BLOCKED, STORE, OUT = {blocked}, {str(store.path)!r}, {str(out)!r}\n{READ}"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with np.load(out) as latents:
        for name, z in store.latents(slice(2, 17)).items():
            np.testing.assert_array_equal(latents[name], z)
    sentence = "decoding needs torch, which is not installed; pip install torch" if blocked else "runs/tiny32"
    assert sentence in done.stdout


def test_what_needs_torch_is_not_imported_with_the_package():
    rooms = ["encode", "engine.where", "store.reader", "verification.verify", "writing.recode"]
    modules = ", ".join(["hvae_codec", *(f"hvae_codec.{room}" for room in rooms)])
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=Path(__file__).parent)
