"""`hvae-codec presets`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from hvae_codec.errors import UsageError

from .display import show
from .options import AsJson


def command(
    name: Annotated[
        str | None, typer.Argument(help="Print this preset as TOML; edit it and give it to --config.")
    ] = None,
    long: Annotated[
        bool,
        typer.Option(
            "--long",
            help="Also show what others report of them, with source (NELBO, training time, GPUs, memory), and what "
            "training steps took on a GPU where that was measured.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the presets, or print one as a configuration file."""
    from hvae_codec.config import config_to_dict, config_to_toml
    from hvae_codec.presets import load_preset
    from hvae_codec.report.presets import measured_table, preset_rows, preset_table, reported_table

    if name is not None and long:
        raise UsageError("--long is for the table of all presets; leave out --long, or the preset's name")
    if name is not None:
        config = load_preset(name)
        print(json.dumps(config_to_dict(config), indent=2) if as_json else config_to_toml(config), end="\n" * as_json)
    elif as_json:
        print(json.dumps(preset_rows(), indent=2))
    else:
        rows = preset_rows()
        show(*((reported_table(rows), measured_table(rows)) if long else (preset_table(rows),)))
