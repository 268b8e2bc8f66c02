"""Weights that stores were encoded with, which their run keeps when training replaces its own.

    RUN/model.safetensors           the newest
    RUN/weights/HASH.safetensors    those of a store: a second name of the same file, until it is replaced

Torch is not imported: whoever describes a store only looks for a file.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER, _ENDING = "weights", ".safetensors"


def kept_weights(run: Path, model_hash: str) -> Path:
    """Return where `run` keeps the weights of this hash; see `keep_weights`."""
    return run / _FOLDER / f"{model_hash}{_ENDING}"


def kept_hashes(run: Path) -> list[str]:
    """List the hashes of the weights that `run` keeps, in alphabetical order."""
    return sorted(file.name.removesuffix(_ENDING) for file in (run / _FOLDER).glob(f"[0-9a-f]*{_ENDING}"))
