"""Reads latents with tensorstore, many chunks at once; tensorstore reads numbers, so names and labels are zarr's.

python with_tensorstore.py out.zarr
"""

import sys
from pathlib import Path

import numpy as np
import tensorstore as ts

path = Path(sys.argv[1] if len(sys.argv) > 1 else "out.zarr").absolute()


def opened(array: str) -> ts.TensorStore:
    """One array of the store, opened for reading."""
    kvstore = {"driver": "file", "path": f"{path}/{array}/"}
    return ts.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()


names = sorted((folder.name for folder in path.glob("z[0-9]*")), key=lambda name: int(name[1:]))
print(f"{path.name}: {', '.join(f'{name} {opened(name).shape}' for name in names)}")

finest = names[-1]  # such as z16
reading = opened(finest)[::100].read()  # starts, and returns at once
steps = opened(finest.replace("z", "step")).read().result()
z = reading.result() * steps[:, None, None]  # float32 [images, variates, 16, 16]
print(f"{finest} of every hundredth image: {z.shape}, standard deviation {z.std():.4f}")

reads = [opened(name).read() for name in names]  # all arrays side by side
print(f"sum of all codes: {sum(int(read.result().astype(np.int64).sum()) for read in reads)}")
