"""What the bytes of a store are: latents, and what is kept beside them.

    out.zarr/z16/c/0/0/0/0     latents               name/c/0, label/c/0     names and labels
    split/c/0, checksum/c/0    records               rate/c/0                figures of each image
    model/c/0                  the embedded model    all else                metadata, steps, columns, digests

The same for a folder and a bucket: sizes come from one listing, and nothing is read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from .reader import Store
from .schema import RECORDS, WEIGHTS


@dataclass(frozen=True)
class DiskUse:
    """Bytes of all files of a store, each counted once."""

    latents: int = 0  # compressed codes, with the checksums and indexes of their shards
    names_and_labels: int = 0
    records: int = 0  # split, bytes and checksum of each image's file
    figures: int = 0  # other numbers of each image, such as its rate, also those that a user added
    model: int = 0  # the weights that the store carries
    metadata: int = 0  # metadata of the store and its arrays, steps, tables of columns, digests of row groups

    @property
    def total(self) -> int:
        """Bytes of the whole store."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Return the bytes of each part, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def disk_use(store: Store) -> DiskUse:
    """Add up the bytes of the files of `store`; raises `UnreachableError` if a bucket does not answer."""
    own = {"name": "names_and_labels", "label": "names_and_labels", WEIGHTS: "model"}
    own |= dict.fromkeys(RECORDS, "records") | {f"z{resolution}": "latents" for resolution in store.resolutions}
    kinds = dict.fromkeys(store.per_image_names, "figures") | own
    sizes = dict.fromkeys(DiskUse().parts(), 0)
    for name, size in store.path.files():
        chunk = re.match("([^/]+)/c/", name)
        sizes[kinds.get(chunk[1], "metadata") if chunk else "metadata"] += size
    return DiskUse(**sizes)
