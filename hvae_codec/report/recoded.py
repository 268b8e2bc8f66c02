"""What recode has changed: bytes of the old store and of the new one, of latents and of all else."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from ..store.reader import Store
from .counts import count


@dataclass(frozen=True, kw_only=True)
class _Packed:
    """How a store's latents are packed, and what that takes."""

    path: str
    format_version: int
    packing: str
    dtypes: dict[str, str]  # by array
    chunk_images: dict[str, int]  # by array
    row_group_size: int
    latent_bytes: int
    other_bytes: int  # names, labels, metadata, figures and weights
    bytes: int
    bits_per_dim: float

    @classmethod
    def of(cls, store: Store) -> _Packed:
        arrays = {f"z{resolution}": store.arrays[f"z{resolution}"] for resolution in store.resolutions}
        latents = other = 0
        for key, size in store.path.files():
            is_latent = key.split("/")[0] in arrays
            latents, other = latents + size * is_latent, other + size * (not is_latent)
        return cls(
            path=str(store.path),
            format_version=store.format_version,
            packing=store.metadata.packing,
            dtypes={f"z{resolution}": dtype for resolution, dtype in store.dtypes.items()},
            chunk_images={name: array.chunks[0] for name, array in arrays.items()},
            row_group_size=store.row_groups.size,
            latent_bytes=latents,
            other_bytes=other,
            bytes=latents + other,
            bits_per_dim=8 * (latents + other) / (len(store) * store.image_dims),
        )

    @property
    def latents_are(self) -> str:
        """Types and packing, such as `int8 and int16, zstd`."""
        return f"{' and '.join(sorted({*self.dtypes.values()}, key=len))}, {self.packing}"


def recoded_data(before: Store, after: Store) -> dict[str, Any]:
    """Return the facts of both stores, and how many times the new one's bytes the old one has."""
    old, new = _Packed.of(before), _Packed.of(after)
    return {
        "images": len(after),
        "before": asdict(old),
        "after": asdict(new),
        "ratio": new.bytes / old.bytes,
        "latent_ratio": new.latent_bytes / old.latent_bytes,
    }


def recoded_table(before: Store, after: Store) -> Table:
    """Make the table of sizes for the terminal; the last column is the new store's share of the old one's bytes."""
    old, new = _Packed.of(before), _Packed.of(after)
    title = f"{new.path}: {count(len(after), 'image')}, {count(after.kept_dims, 'latent')} each"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for heading in (old.path, new.path, "bytes an image", "bits/dim", "of before"):
        table.add_column(heading, justify="right")
    dims = len(after) * after.image_dims
    for name, first, last in (
        ("latents", old.latent_bytes, new.latent_bytes),
        ("names, metadata and all else", old.other_bytes, new.other_bytes),
        ("the store", old.bytes, new.bytes),
    ):
        figures = (f"{last / len(after):,.1f}", f"{8 * last / dims:.3f}", f"{last / first:.3f}")
        table.add_row(name, f"{first:,}", f"{last:,}", *figures)
    table.add_row("latents are", old.latents_are, new.latents_are)
    table.add_row("format version", str(old.format_version), str(new.format_version))
    return table
