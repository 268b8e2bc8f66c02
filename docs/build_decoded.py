"""Draw docs/images/decoded.png: parts of photographs above what is decoded of 10%, 3% and 1% of their latents.

    python docs/build_decoded.py quickstart

The parts are 64 × 64 pixels in the middle of the strips that `sample-data` holds out, each four patches of 32 × 32.
Photographs whose strip is narrower are left out; of the others, the six with the most contrast are shown. Bytes per
patch are those of the run's cutoff table.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hvae_codec import encode_images, load_mask, load_model, make_codec
from hvae_codec.data.sample import choose_boxes, load_photographs
from hvae_codec.prune.kl_stats import load_kl_stats

PICTURE = Path(__file__).parent / "images" / "decoded.png"
SHARES = (10, 3, 1)
"""Of the latent dimensions that are kept, in percent."""
PATCH, PART, SHOWN = 32, 64, 6


def held_out_parts() -> NDArray[np.uint8]:
    """Cut the middle of held-out strips, uint8 [6, 64, 64, 3]."""
    parts = []
    for photograph in load_photographs().values():
        height, width, _ = photograph.shape
        boxes = choose_boxes(height, width, "val", PATCH)
        top, left = min(box.top for box in boxes), min(box.left for box in boxes)
        if min(height - top, width - left) >= PART:
            top, left = (top + height - PART) // 2, (left + width - PART) // 2
            parts.append(photograph[top : top + PART, left : left + PART])
    most = sorted(range(len(parts)), key=lambda i: -parts[i].std(axis=(0, 1)).mean())[:SHOWN]
    return np.stack([parts[i] for i in sorted(most)])


def patches_of(parts: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut parts [N, 64, 64, 3] into patches, uint8 [4 N, 3, 32, 32]."""
    halves = parts.reshape(-1, 2, PATCH, 2, PATCH, 3).transpose(0, 1, 3, 5, 2, 4)
    return np.ascontiguousarray(halves.reshape(-1, 3, PATCH, PATCH))


def parts_of(patches: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Undo `patches_of`."""
    return patches.reshape(-1, 2, 2, 3, PATCH, PATCH).transpose(0, 1, 4, 2, 5, 3).reshape(-1, PART, PART, 3)


def decoded(run: Path, patches: NDArray[np.uint8], share: int, step: float) -> NDArray[np.uint8]:
    """Encode `patches` with a mask of the run's analysis, and decode them, uint8 [N, C, H, W]."""
    analysis, model = run / "analysis", load_model(run)
    mask, stats = load_mask(analysis / "masks" / f"keep-{share}.json"), load_kl_stats(analysis / "kl_stats.npz")
    with tempfile.TemporaryDirectory() as folder:
        codec = make_codec("int", step)
        store = encode_images(model, patches, Path(folder) / "few.zarr", mask=mask, codec=codec, stats=stats)
        return store.decode(range(len(patches)))


def draw(rows: dict[str, NDArray[np.uint8]]) -> Figure:
    """Draw each of `rows`, uint8 [N, H, W, 3], beside its name."""
    columns, label = len(next(iter(rows.values()))), 1.8
    figure = Figure(figsize=(label + 1.28 * columns, len(rows) * 1.28), dpi=100, facecolor="white")
    axes = figure.subplots(len(rows), columns, gridspec_kw={"wspace": 0.03, "hspace": 0.03})
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.axis("off")
        line[0].text(-0.08, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=17)
    figure.subplots_adjust(left=label / (label + 1.28 * columns), right=1, bottom=0, top=1)
    return figure


def main(quickstart: Path) -> None:
    """Draw the picture of a quickstart that is done."""
    run, parts = quickstart / "runs" / "photos", held_out_parts()
    table = pd.read_csv(run / "analysis" / "cutoffs.csv")
    patches = patches_of(parts)
    rows = {f"pixels\n{patches[0].nbytes:,} bytes": parts}
    for share in SHARES:
        row = table[table.rule.str.match(rf"keep .*\b{share}%")].iloc[0]  # such as `keep 2% to 3%`
        rows[f"{share}% kept\n{row.bytes:.0f} bytes"] = parts_of(decoded(run, patches, share, row.step))
    draw(rows).savefig(PICTURE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
