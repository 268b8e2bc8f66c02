"""Runs the top-down path under many masks: each continues from the group at which it first differs from the last one.

mask 1    o──o──o──o──o──o──output       masks of rising size often prune the first groups alike:
mask 2             └──o──o──output       what these compute is the same, and is computed once
mask 3             └──o──o──output

Coders with masks share what they code alike in the same way.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor

from ..model.bottom_up import Activations, image_count
from ..model.choices import RecordingChoice
from ..model.hvae import HVAE


class Pruned(Protocol):
    """What is done to a model's latents: a mask, or a coder with one."""

    def same_groups(self, other: Any) -> int:
        """Count the groups, from the first, to which another of its kind does the same."""


def masked_outputs(
    model: HVAE, activations: Activations, masks: Sequence[Pruned], choices: Sequence[RecordingChoice]
) -> Iterator[Tensor]:
    """Yield parameters of the output distribution, [B, out_channels, H, W], under each of `masks`, in order.

    By then the mask's choice, of the same number in `choices`, has recorded all groups. Memory holds one state for each
    group at which masks part.
    """
    top_down, groups = model.top_down, len(model.top_down.blocks)
    shared = [0, *(one.same_groups(other) for one, other in itertools.pairwise(masks))][: len(masks)]
    states: dict[int, Tensor] = {}
    for number, (first, choose) in enumerate(zip(shared, choices, strict=True)):
        known = choices[number - 1].recorded
        choose.recorded |= {group: known[group] for group in range(first) if group in known}
        later = set(shared[number + 1 :])
        start = first
        for stop in sorted({stop for stop in later if stop > first} | {groups}):
            before = states[start] if start else None
            states[stop] = top_down.run_groups(
                activations, choose, image_count(activations), range(start, stop), before
            )
            start = stop
        states = {group: kept for group, kept in states.items() if group in later or group == groups}
        yield top_down.output_conv(states[groups])
