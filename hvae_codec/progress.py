"""How long work reports how far it is."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with the images done and the images in all."""

Stage = Callable[[str], Progress]
"""Announces a piece of long work by name, and returns its `Progress`."""
