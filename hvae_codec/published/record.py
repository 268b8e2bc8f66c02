"""What a run was imported from, kept in it as `imported.json`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import ModelError
from ..storage.files import write_atomically

RECORD_FILE = "imported.json"


@dataclass(frozen=True, kw_only=True)
class ImportRecord:
    """The published file that a run was made from, so that anybody can tell which one it was."""

    family: str  # VDVAE or Efficient-VDVAE
    file: str  # name of the checkpoint
    bytes: int
    sha256: str  # of the whole file
    weights: str  # `ema`: averaged; `raw`: those of the last step
    step: int | None  # of training, if the file or its name says it
    hyperparameters: str  # name of the log or .cfg file, or the preset

    def __str__(self) -> str:
        """Say it in a line.

        >>> str(ImportRecord(family="VDVAE", file="a.th", bytes=1, sha256=64 * "0", weights="ema", step=7,
        ...                  hyperparameters="a.jsonl"))
        'a.th: VDVAE, averaged weights of step 7, hyper-parameters of a.jsonl, sha256 000000000000'
        """
        weights = {"ema": "averaged weights", "raw": "raw weights"}.get(self.weights, self.weights)
        step = "" if self.step is None else f" of step {self.step:,}"
        source = f"hyper-parameters of {self.hyperparameters}"
        return f"{self.file}: {self.family}, {weights}{step}, {source}, sha256 {self.sha256[:12]}"


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 (hex) of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_record(run: Path, record: ImportRecord) -> None:
    """Write the record into the folder `run`."""
    write_atomically(run / RECORD_FILE, json.dumps(asdict(record), indent=2).encode() + b"\n")


def read_record(run: Path) -> ImportRecord | None:
    """Read what a run was imported from; None if it was not, `ModelError` if the record is damaged."""
    path = run / RECORD_FILE
    if not path.exists():
        return None
    try:
        return ImportRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ModelError(f"cannot read {path} ({error}); import the run again") from None
