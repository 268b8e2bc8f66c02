"""Stores of latents: numpy and zarr, never torch."""
