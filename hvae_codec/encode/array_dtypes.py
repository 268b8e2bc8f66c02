"""Which type each latent array of a new store has: int8 where its codes fit, int16 elsewhere; floats have the codec's.

An array has one type for all images, so it is chosen before the first one is encoded.
"""

from __future__ import annotations

from ..errors import UsageError
from ..prune.kl_stats import KLStats
from ..prune.mask import LatentMask
from ..store.compressors import BLOSC, ZSTD, packing_of
from ..store.quantiser import Codec
from .coder import stored_columns

CODE_BITS = (8, 16)


def array_dtypes(
    mask: LatentMask, codec: Codec, stats: KLStats, *, packing: str = ZSTD, code_bits: int | None = None
) -> dict[int, str]:
    """Types of the latent arrays of a store, by resolution.

    `code_bits`, 8 or 16, are those of all arrays of codes. Raises `UsageError` if the codec or packing has no such.
    """
    check_code_bits(codec, packing, code_bits)
    resolutions = stored_columns(mask).resolutions
    if packing_of(codec.dtype, packing) == BLOSC:
        return dict.fromkeys(resolutions, codec.dtype)
    return dict.fromkeys(resolutions, f"int{code_bits or 16}")


def check_code_bits(codec: Codec, packing: str, code_bits: int | None) -> None:
    """Raise `UsageError` if numbers of `codec`, in `packing`, do not have `code_bits`."""
    is_blosc = packing_of(codec.dtype, packing) == BLOSC
    if code_bits is not None and is_blosc and codec.dtype != f"int{code_bits}":
        raise UsageError(
            f"code_bits (--code-bits) is {code_bits}, and {codec.name} latents packed with {BLOSC} are {codec.dtype}; "
            "leave it out"
        )
