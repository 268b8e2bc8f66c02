"""The results of verify and repair: a sentence, a table of damages, and the same as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ..store.rowgroups import runs
from ..verification.verify import VerifyReport
from .counts import count

if TYPE_CHECKING:
    from ..encode.repair import RepairReport


def verified_data(report: VerifyReport) -> dict[str, Any]:
    """Return the report as plain data for JSON."""
    return {
        "store": str(report.path),
        "ok": report.ok,
        "images": report.images,
        "row_groups": report.row_groups,
        "files": report.files,
        "damaged_row_groups": report.damaged_row_groups,
        "damages": [
            {
                "file": damage.file,
                "problem": damage.problem,
                "row_group": damage.row_group,
                "images": list(map(list, runs(damage.images))),
                "names": list(damage.names),
            }
            for damage in report.damages
        ],
        "notes": list(report.notes),
    }


def verified_sentence(report: VerifyReport) -> str:
    """Say the result in one line."""
    images = f"{count(report.images, 'image')} in {count(report.row_groups, 'row group')}"
    what = f"{report.path}: {images}, {count(report.files, 'file')}"
    if report.ok:
        return f"{what}: all is well"
    damaged = len({damage.file for damage in report.damages})
    return f"{what}: {damaged:,} {'file is' if damaged == 1 else 'files are'} damaged or missing"


def repaired_sentence(report: RepairReport, restored: Sequence[str] = ()) -> str:
    """Say what repair did, in one line; `restored` are files that were replaced before it."""
    files, row_groups = [*restored, *report.rewritten], len(report.before.damaged_row_groups)
    if report.before.ok and not files:
        return f"{report.before.path}: there was nothing to repair"
    copied = "; zarr.json is restored from its second copy" if "zarr.json" in files else ""
    return f"{report.before.path}: damaged row groups: {row_groups:,}; files replaced: {len(files):,}{copied}"


def damage_table(report: VerifyReport) -> Table:
    """Make the table of all damages for the terminal."""
    rich = Table(title=verified_sentence(report), title_justify="left")
    rich.add_column("row group", justify="right")
    for heading in ("file", "what is wrong", "images", "names"):
        rich.add_column(heading, overflow="fold")
    for damage in report.damages:
        row_group = "" if damage.row_group is None else f"{damage.row_group:,}"
        names = ", ".join(damage.names) + (", ..." if len(damage.images) > len(damage.names) > 0 else "")
        rich.add_row(row_group, damage.file, damage.problem, image_numbers(damage.images), names)
    return rich


def image_numbers(images: Sequence[int], shown: int = 4) -> str:
    """Write numbers of images as a person reads them.

    >>> image_numbers([4, 5, 6, 9]), image_numbers(range(256)), image_numbers([0, 2, 4, 6, 8, 10])
    ('4-6, 9', '0-255', '0, 2, 4, 6, ... (6 images)')
    """
    parts = [f"{first}" if first == last else f"{first}-{last}" for first, last in runs(images)]
    if len(parts) > shown:
        parts = [*parts[:shown], f"... ({len(images):,} images)"]
    return ", ".join(parts)
