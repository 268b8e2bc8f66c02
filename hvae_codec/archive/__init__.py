"""A codec for zarr that packs integer latents by context mixing, tighter than zstd; needs no torch."""
