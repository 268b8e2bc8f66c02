"""The curves of a rate-distortion plot: one for each codec and mask, in one order and colour in all plots."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

_OF_CODECS = {"JPEG": "#cc4b6c", "WebP": "#d9a21b", "AVIF": "#4fae4a", "JPEG XL": "#8a63d2", "PNG": "#7a828c"}
_OF_MODELS = ("#3d7fd6", "#17a2a2", "#1f4e9c", "#6bb7e8", "#0f6b6b")
"""Of several masks or stores, one after the other; each is seen on white and on black."""


@dataclass(frozen=True)
class Curve:
    """Points of one method, by rising size."""

    name: str
    kind: str
    colour: str
    points: pd.DataFrame

    @property
    def is_point(self) -> bool:
        """Whether it stands for itself: a store."""
        return self.kind == "store"


def rate_curves(table: pd.DataFrame) -> list[Curve]:
    """Make the curves of lossy ways, in the order of the table."""
    curves: list[Curve] = []
    own = 0
    for (kind, method), points in table.groupby(["kind", "method"], sort=False):
        if kind == "lossless":
            continue
        colour = _OF_CODECS.get(str(method), "#7a828c") if kind == "lossy" else _OF_MODELS[own % len(_OF_MODELS)]
        own += kind != "lossy"
        curves.append(Curve(str(method), str(kind), colour, points.sort_values("payload_bytes")))
    return curves


def lossless_rates(table: pd.DataFrame, column: str) -> list[tuple[str, float, str]]:
    """Return name, bits/dim in `column`, and colour of each lossless codec."""
    rows = table[table["kind"] == "lossless"]
    each = zip(rows["method"], rows[column], strict=True)
    return [(f"{name} lossless", float(rate), _OF_CODECS.get(name, "#7a828c")) for name, rate in each]
