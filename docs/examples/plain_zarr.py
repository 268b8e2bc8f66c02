"""Reads a store with zarr alone: latents, their places in the model, names and labels.

python plain_zarr.py out.zarr
"""

import sys

import numpy as np
import zarr

store = zarr.open_group(sys.argv[1] if len(sys.argv) > 1 else "out.zarr", mode="r")
name, label = store["name"][0], store["label"][0]
print(f"{store['name'].shape[0]:,} images; the first is {name}, of class {label}")

for array in sorted((key for key in store if key[0] == "z"), key=lambda key: int(key[1:])):
    codes, steps = store[array], store[array.replace("z", "step")]
    first = codes[0].astype(np.float32) * steps[:].reshape(-1, *[1] * (codes.ndim - 2))  # this reads one chunk
    print(f"{array:4}{codes.dtype!s:6} {codes.shape}: {np.count_nonzero(first)} of the first image's are not 0")

total = sum(int(store[array][:].astype(np.int64).sum()) for array in store if array[0] == "z")
print(f"sum of all codes: {total}")
