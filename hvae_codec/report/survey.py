"""What the images of a source are, as tables for the terminal and as plain data for scripts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from ..data.preprocessing import Preprocessing
from ..data.survey import Survey
from .counts import count

SHOWN = 8  # sizes, classes, endings and names in a table, at most

_CHANGES = {
    "resized": "cropped or resized",
    "enlarged": "of these, enlarged",
    "alpha": "alpha dropped",
    "recoloured": "made grey or colour",
    "depth": "made 8 bits per channel",
    "first frame": "first frame or page taken",
}


def survey_data(found: Survey, how: Preprocessing) -> dict[str, Any]:
    """Return what was found as plain data; `how` is what is done to the images."""
    return {
        "images": found.images,
        "images_looked_at": found.looked_at,
        "sizes": {f"{width}x{height}": number for (width, height), number in found.sizes.most_common()},
        "modes": dict(found.modes.most_common()),
        "formats": dict(found.formats.most_common()),
        "endings": _ordered(found.endings),
        "classes": _ordered(found.classes),
        "splits": dict(found.splits),
        "skipped": _by_reason(found.skipped),
        "refused": {
            reason: {"images": len(names), "names": [*names[:SHOWN]]} for reason, names in found.refused.items()
        },
        "changes": {name.replace(" ", "_"): found.changes[name] for name in _CHANGES},
        "preprocessing": how.to_dict(),
        "passed_over_folders": list(found.passed_over),
        "other_files": _ordered(found.other_files),
    }


def survey_table(found: Survey, path: str, how: Preprocessing) -> Table:
    """Make the table of what was found in the source at `path`; `how` is what is done to the images."""
    looked = "" if found.looked_at == found.images else f" (of {found.looked_at:,} images looked at)"
    table = Table(title=f"{path}: {count(found.images, 'image')}{looked}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in _rows(found, how):
        if text:
            table.add_row(name, text)
    return table


def _rows(found: Survey, how: Preprocessing) -> Iterable[tuple[str, str]]:
    sizes = {f"{width} × {height}": number for (width, height), number in found.sizes.items()}
    yield "size", _most(sizes)
    yield "", _extremes(found)
    yield "mode", _most(found.modes)
    yield "format", _most(found.formats)
    yield "ending", _most({ending or "none": number for ending, number in found.endings.items()})
    yield "split, of all", _most(found.splits)
    classes = {label or "no class": number for label, number in found.classes.items()}
    yield "class", _most(classes) if found.classes.keys() - {""} else ""
    yield "options", how.flags()
    for name, text in _CHANGES.items():
        yield text, f"{found.changes[name]:,}" if found.changes[name] else ""
    for reason, data in _by_reason(found.skipped).items():
        yield "left out", f"{data['images']:,} {reason}: {_some(data['names'], data['images'])}"
    for reason, names in found.refused.items():
        yield "cannot be used", f"{len(names):,} {reason}: {_some(names, len(names))}"
    yield "passed over", _some(found.passed_over, len(found.passed_over))
    yield "not read", _most({ending or "no ending": number for ending, number in found.other_files.items()})


def refusal_sentence(found: Survey, skipping: bool) -> str:
    """Say what becomes of images that cannot be used; `skipping`: whether they are left out."""
    refused = sum(map(len, found.refused.values()))
    if skipping:
        left_out = count(len(found.skipped), "image")
        return f"--skip-unusable: every file was decoded; {left_out} will be left out."
    damage = "Heads were read alone: a file may be damaged further on."
    if not refused:
        return f"{damage} --skip-unusable decodes every file first, and leaves such ones out."
    return (
        f"The command will stop at the first of {count(refused, 'image')} that cannot be used; --skip-unusable leaves "
        f"them out. {damage}"
    )


def _extremes(found: Survey) -> str:
    """Write the smallest and the largest size by pixels, if there are several."""
    if len(found.sizes) < 2:
        return ""
    ordered = sorted(found.sizes, key=lambda size: (size[0] * size[1], size))
    return f"smallest {ordered[0][0]} × {ordered[0][1]}, largest {ordered[-1][0]} × {ordered[-1][1]}"


def _by_reason(skipped: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Collect images by the reason why they were left out: how many, and the first names.

    >>> _by_reason({"a.png": "broken", "b.png": "broken"})
    {'broken': {'images': 2, 'names': ['a.png', 'b.png']}}
    """
    names: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        names.setdefault(reason, []).append(name)
    return {reason: {"images": len(names[reason]), "names": names[reason][:SHOWN]} for reason in sorted(names)}


def _ordered(numbers: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(numbers.items(), key=lambda item: (-item[1], item[0])))


def _most(numbers: Mapping[str, int]) -> str:
    """Write the most frequent of what was counted, and how many others there are.

    >>> _most({"PNG": 1200, "JPEG": 3})
    'PNG 1,200, JPEG 3'
    """
    texts = [f"{name} {number:,}" for name, number in _ordered(numbers).items()]
    more = f" and {len(texts) - SHOWN:,} others" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more


def _some(names: Sequence[str], total: int) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {total - SHOWN:,} more" if total > SHOWN else "")
