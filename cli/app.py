"""The `hvae-codec` command: its subcommands, and errors as one sentence with exit code 1 or 2."""

from __future__ import annotations

import errno
import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from hvae_codec.errors import HvaeCodecError

from . import (
    analyze_kl,
    append,
    decode,
    encode,
    evaluate,
    import_published,
    info,
    presets,
    repair,
    sample,
    sample_data,
    train,
    verify,
)

app = typer.Typer(
    name="hvae-codec",
    help="Turn image data sets into small latent data sets with a hierarchical VAE.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for module, name in (
    (sample_data, "sample-data"),
    (train, "train"),
    (analyze_kl, "analyze-kl"),
    (encode, "encode"),
    (append, "append"),
    (decode, "decode"),
    (verify, "verify"),
    (repair, "repair"),
    (sample, "sample"),
    (evaluate, "evaluate"),
    (info, "info"),
    (presets, "presets"),
    (import_published, "import"),
):
    app.command(name)(module.command)


def _version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        print(importlib.metadata.version("hvae-codec"))
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Turn image data sets into small latent data sets with a hierarchical VAE."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors that a user can mend are one line on standard error and exit code 1 or 2."""
    try:
        sys.exit(app(arguments, prog_name="hvae-codec", standalone_mode=False) or 0)
    except (HvaeCodecError, TyperException) as error:
        message, code = getattr(error, "format_message", error.__str__)(), error.exit_code
    except OSError as error:
        message, code = _os_message(error), 1
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not worth importing torch for
            raise
        message, code = "the GPU has too little memory; give a smaller --batch-size, or --device cpu", 1
    print(f"hvae-codec: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _os_message(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"no space left{where}; make room and run the same command again"
    return f"{error.strerror or error}{where}"
