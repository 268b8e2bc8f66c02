"""Pruning that is trained into a model: what it costs at several shares, and what each choice in it is worth.

    cd quickstart && python ../benchmarks/studies/pruning.py --model runs/photos --data data --out pruning

Prunes the run at each share with three seeds, and at one share with one thing changed at a time: codes, a schedule,
prior samples in place of means, another learning rate. Each is the command `hvae-codec prune`, with a control: the
whole model trained for as many steps with the same seed. A study that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_above  # noqa: F401
import numpy as np
from matplotlib.figure import Figure
from results import COLOURS, print_table, save_figure, write_markdown, write_results

SHARES = ("10%", "3%", "1%", "0.5%")
AT = "1%"
"""The share at which one thing is changed at a time."""
CHANGED = {
    "codes": ("--keep", AT, "--codes"),
    "schedule 10%,3%,1%": ("--schedule", f"10%,3%,{AT}"),
    "samples of the prior": ("--keep", AT, "--collapse", "sample"),
    "4 times the rate": (
        "--keep",
        AT,
        "--set",
        "optimizer.learning_rate={rate4}",
        "--set",
        "optimizer.min_learning_rate={last4}",
    ),
}
Row = Mapping[str, Any]
COLUMNS = ("", "dims", "NELBO", "change", "rate", "distortion", "PSNR", "bytes/image")


@dataclass(frozen=True)
class Trial:
    """One fine-tuning."""

    name: str
    seed: int
    options: Sequence[str]

    @property
    def folder(self) -> str:
        """A name for its run."""
        return f"{self.name.replace('%', '').replace(',', '-').replace(' ', '-')}-seed{self.seed}"


def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    rates = learning_rates(options.model)
    with ThreadPoolExecutor(options.jobs) as pool:  # each waits for processes of its own
        list(pool.map(lambda seed: prune(options, control_trial(seed), rates), range(options.seeds)))
        trials = list(all_trials(options.seeds))
        documents = list(pool.map(lambda trial: prune(options, trial, rates), trials))
    rows = [row for trial, document in zip(trials, documents, strict=True) for row in rows_of(trial, document)]
    report(options, against_controls(rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/photos"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("pruning"), help="folder for runs, CSV, JSON, Markdown, plot")
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="fine-tunings at once, of one thread each")
    return parser.parse_args()


def all_trials(seeds: int) -> Iterator[Trial]:
    """The default way at all shares and seeds, then one thing changed at a time."""
    for seed in range(seeds):
        yield from (Trial(f"keep {share}", seed, ("--keep", share)) for share in SHARES)
    for name, changed in CHANGED.items():
        yield Trial(name, 0, changed)


def control_trial(seed: int) -> Trial:
    """The trial that makes the control of a seed, which the others take."""
    return Trial(f"keep {AT}", seed, ("--keep", AT))


def learning_rates(model: Path) -> dict[str, str]:
    """Four times the rates that `prune` would take."""
    from hvae_codec.fine_tune.schedule import LAST, PEAK
    from hvae_codec.model.checkpoint import load_run_config

    peak = 4 * PEAK * load_run_config(model).optimizer.learning_rate
    return {"rate4": f"{peak:g}", "last4": f"{LAST * peak:g}"}


def prune(options: argparse.Namespace, trial: Trial, rates: Mapping[str, str]) -> dict[str, Any]:
    """Run one fine-tuning, unless it is there, and read what it measured."""
    out = options.out / "runs" / trial.folder
    measured = out / "analysis" / "pruning.json"
    if not measured.exists():
        control = options.out / "runs" / control_trial(trial.seed).folder / "control"
        if control.exists() and not (out / "control").exists() and "--set" not in trial.options:
            shutil.copytree(control, out / "control")
        changed = [word.format(**rates) for word in trial.options]
        common = ["--model", options.model, "--out", out, "--steps", options.steps, "--seed", trial.seed]
        common += [] if "--set" in changed else ["--control"]  # a control has the same settings; here it is of others
        words = [sys.executable, "-m", "hvae_codec", "prune", options.data, *changed, *common, "--no-tensorboard"]
        ended = subprocess.run(
            list(map(str, words)), env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        if ended.returncode:
            raise SystemExit(f"{trial.folder}: {ended.stderr[-1000:]}")
        print(trial.folder, ended.stdout.strip().splitlines()[-4:], sep=": ", flush=True)
    document: dict[str, Any] = json.loads(measured.read_text())
    return document


def rows_of(trial: Trial, document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each model and mask that was measured."""
    about = {"trial": trial.name, "seed": trial.seed, "reference": document["about"]["reference"]}
    return [{**about, **row} for row in document["rows"]]


def against_controls(rows: Sequence[Row]) -> list[Row]:
    """Take all changes from the seed's control; those that were not measured so are differences of averages."""
    dense = {row["seed"]: row["nelbo"] for row in rows if (row["model"], row["kept"]) == ("control", "all latents")}
    nothing = {"nelbo_change_se": float("nan")}
    return [
        row if row["reference"] == "control" else {**row, **nothing, "nelbo_change": row["nelbo"] - dense[row["seed"]]}
        for row in rows
    ]


def report(options: argparse.Namespace, rows: Sequence[Row]) -> None:
    """Write averages over seeds as a table, all rows as CSV and JSON, and the plot."""
    settings = {**vars(options)}
    write_results(options.out, "pruning", rows, settings)
    names = list(dict.fromkeys(row["trial"] for row in rows))
    cells = [cells_of("before", of(rows, names[0], "before", "all latents"))]
    cells += [cells_of("control, all latents", of(rows, names[0], "control", "all latents"))]
    for name in names:
        if name.startswith("keep "):
            cells += [cells_of(f"{name}, untrained", of(rows, name, "before"))]
            cells += [cells_of(f"{name}, control", of(rows, name, "control"))]
        cells += [cells_of(f"{name}, trained", of(rows, name, "after"))]
    print_table(f"{options.steps} steps, held-out images", COLUMNS, cells, "means over the seeds")
    write_markdown(options.out / "pruning.md", COLUMNS, cells)
    save_figure(plot(rows), options.out / "pruning.png")


def of(rows: Sequence[Row], trial: str, model: str, kept: str = "what is left") -> list[Mapping[str, Any]]:
    """The rows of all seeds of one model and mask."""
    return [row for row in rows if (row["trial"], row["model"], row["kept"]) == (trial, model, kept)]


def mean(rows: Sequence[Row], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def cells_of(name: str, rows: Sequence[Row]) -> tuple[str, ...]:
    error = mean(rows, "nelbo_change_se")
    each = ", ".join(f"{row['nelbo_change']:+.4f}" for row in rows)
    seeds = f" ({len(rows)} seeds: {each})" if len(rows) > 1 else ""
    return (
        name,
        f"{mean(rows, 'kept_dims'):,.0f}",
        f"{mean(rows, 'nelbo'):.4f}",
        f"{mean(rows, 'nelbo_change'):+.4f}" + ("" if np.isnan(error) else f" ± {error:.4f}") + seeds,
        f"{mean(rows, 'rate'):.4f}",
        f"{mean(rows, 'distortion'):.4f}",
        f"{mean(rows, 'psnr'):.2f}",
        f"{mean(rows, 'bytes'):.1f}",
    )


def plot(rows: Sequence[Row]) -> Figure:
    """The NELBO against the share kept, of all seeds and on average; the controls' dense bound as a line."""
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axes = figure.subplots()
    series = {"before": "not trained", "control": "control: trained without the mask", "after": "trained with the mask"}
    for colour, (model, label) in zip(COLOURS, series.items(), strict=False):
        of_model = [of(rows, f"keep {share}", model) for share in SHARES]
        shares = [100 * row[0]["kept_dims"] / row[0]["dims"] for row in of_model]
        axes.plot(shares, [mean(row, "nelbo") for row in of_model], "o-", color=colour, label=label)
        for share, row in zip(shares, of_model, strict=True):
            axes.plot([share] * len(row), [each["nelbo"] for each in row], ".", color=colour, alpha=0.4)
    dense = mean(of(rows, f"keep {AT}", "control", "all latents"), "nelbo")
    axes.axhline(dense, color="black", linewidth=1, linestyle=":", label="control with all latents")
    axes.set(xscale="log", xlabel="latent dimensions kept, %", ylabel="NELBO of held-out patches, bits/dim")
    axes.set_xticks(shares, [f"{share:.2g}" for share in shares])
    axes.set_xticks([], minor=True)
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    main()
