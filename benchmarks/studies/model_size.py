"""Memory, time and parameters against layers per resolution and width (paper tables 1, 8 and 9).

    python benchmarks/studies/model_size.py --out studies/model_size
    python benchmarks/studies/model_size.py --out studies/model_size --device cuda --batch-size 32

A layer is a latent group with its top-down block, the skip's bottom-up block included. All models take 32 × 32 colour
images and have 8 variates a group; each trains a few steps in a process of its own. On the CPU memory is the process's
peak less that of a process that only loads torch; on a GPU the peak that torch allocated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import folder_above  # noqa: F401
from matplotlib.figure import Figure
from results import COLOURS, print_table, save_figure, write_markdown, write_results
from step_cost import StepCost, measure

from hvae_codec.config import Config, ModelConfig, StageConfig, TrainConfig, config_to_dict

RESOLUTIONS = (32, 16, 8, 4, 1)


@dataclass(frozen=True)
class Member:
    """One model of the family: layers and widths at 32, 16, 8, 4 and 1 pixels."""

    name: str
    layers: tuple[int, ...]
    widths: tuple[int, ...]


CONSTANT, RISING = (64, 64, 64, 64, 64), (16, 32, 64, 128, 128)
FAMILY = [
    Member("few layers, constant width", (1, 1, 1, 1, 1), CONSTANT),
    Member("few layers, rising width", (1, 1, 1, 1, 1), RISING),
    Member("base, constant width", (2, 2, 2, 2, 1), CONSTANT),
    Member("base, rising width", (2, 2, 2, 2, 1), RISING),
    Member("base, half the rising width", (2, 2, 2, 2, 1), (8, 16, 32, 64, 64)),
    Member("base, twice the rising width", (2, 2, 2, 2, 1), (32, 64, 128, 256, 256)),
    Member("many layers, constant width", (4, 4, 4, 4, 1), CONSTANT),
    Member("many layers, rising width", (4, 4, 4, 4, 1), RISING),
    Member("layers at 32", (7, 2, 2, 1, 1), RISING),
    Member("layers at 16", (2, 7, 2, 1, 1), RISING),
    Member("layers at 8", (2, 2, 7, 1, 1), RISING),
    Member("layers at 4", (2, 2, 2, 6, 1), RISING),
]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    empty = measure(None, threads=options.threads)
    rows = [row_of(member, options, empty.mebibytes) for member in FAMILY[: 2 if options.small else None]]
    write_results(options.out, "model_size", rows, vars(options))
    report(options, rows)
    save_figure(plot(rows), options.out / "model_size.png")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("studies/model_size"), help="folder of measurements, results")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=7, help="timed steps, after one that warms up")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="two models and two steps, to see that it works")
    options = parser.parse_args(arguments)
    if options.small:
        options.batch_size, options.steps = 1, 2
    return options


def study_config(member: Member, options: argparse.Namespace) -> Config:
    stages = tuple(
        StageConfig(resolution, width, variates=8, kernel=1 if resolution == 1 else 3, linked_blocks=layers)
        for resolution, layers, width in zip(RESOLUTIONS, member.layers, member.widths, strict=True)
    )
    train = TrainConfig(batch_size=options.batch_size, precision=options.precision)
    return Config(ModelConfig(32, stages), train=train)


def row_of(member: Member, options: argparse.Namespace, empty: float) -> dict[str, Any]:
    """One row of the table: measured now, or read where the same was measured before."""
    config = study_config(member, options)
    device, threads, steps = options.device, options.threads, options.steps
    own = {"config": config_to_dict(config), "device": device, "threads": threads, "steps": steps}
    path = options.out / "measured" / f"{member.name.replace(', ', '-').replace(' ', '-')}.json"
    saved = json.loads(path.read_text()) if path.exists() else {}
    if saved.get("request") != json.loads(json.dumps(own)):
        print(f"measuring: {member.name}")
        found = measure(config, device=device, threads=threads, steps=steps)
        saved = {"request": own, "cost": asdict(found), "empty": empty}
        if not found.error:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(saved, indent=2) + "\n")
    found = StepCost(**saved["cost"])
    beyond = saved["empty"] if device == "cpu" else 0.0
    plain = {"layers": list(member.layers), "widths": list(member.widths), "mebibytes": found.mebibytes - beyond}
    return {"name": member.name, **asdict(found), **plain}


def report(options: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> None:
    where = "/".join(str(resolution) for resolution in RESOLUTIONS)
    columns = ["model", f"layers at {where}", f"width at {where}", "parameters", "latent dims", "memory, MiB"]
    columns += ["s a step", "images/s"]
    lines = []
    for row in rows:
        layers, widths = ("/".join(map(str, row[key])) for key in ("layers", "widths"))
        line = [row["name"], layers, widths]
        if row["error"]:
            lines.append([*line, row["error"], "", "", "", ""])
            continue
        line += [f"{row['parameters']:,}", f"{row['latent_dims']:,}", f"{row['mebibytes']:,.0f}"]
        lines.append([*line, f"{row['seconds']:.3f}", f"{options.batch_size / row['seconds']:.1f}"])
    caption = f"{options.device}, {options.precision}, batch size {options.batch_size}, median of {options.steps} steps"
    print_table("Memory and time of a training step", columns, lines, caption)
    write_markdown(options.out / "model_size.md", columns, lines)


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """Bars of memory, time and parameters, one line a model."""
    figure = Figure(figsize=(13, 1.2 + 0.36 * len(rows)), layout="constrained")
    panels = {"mebibytes": "peak memory (MiB)", "seconds": "time of a training step (s)", "parameters": "parameters"}
    every = figure.subplots(1, len(panels), sharey=True)
    names = [row["name"] for row in rows][::-1]
    for axes, colour, (key, title) in zip(every, COLOURS, panels.items(), strict=False):
        axes.barh(names, [row[key] for row in rows][::-1], color=colour)
        axes.set(xlabel=title)
        axes.grid(axis="x", alpha=0.3)
    return figure


if __name__ == "__main__":
    main()
