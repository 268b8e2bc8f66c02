"""The `hvae-codec` command: its subcommands, and errors as one sentence with exit code 1 or 2."""

from __future__ import annotations

import errno
import functools
import re
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from hvae_codec.errors import HvaeCodecError

from . import (
    analyze_kl,
    append,
    bench,
    decode,
    doctor,
    encode,
    evaluate,
    import_published,
    info,
    look,
    presets,
    prune,
    recode,
    repair,
    sample,
    sample_data,
    sync,
    train,
    verify,
)
from .arguments import checked, usage_sentence, with_local_paths
from .display import interruptible
from .memory import memory_message
from .plain_text import never_fail_to_print
from .signals import exit_code, signals_interrupt


class _Commands(TyperGroup):
    """All commands; one that is stopped before or after its long work says so, too."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        with interruptible(""):
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with interruptible(""):
            return super().invoke(ctx)


app = typer.Typer(
    name="hvae-codec",
    cls=_Commands,
    help="Turn image data sets into small latent data sets with a hierarchical VAE.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for module, name in (
    (sample_data, "sample-data"),
    (train, "train"),
    (analyze_kl, "analyze-kl"),
    (prune, "prune"),
    (encode, "encode"),
    (append, "append"),
    (sync, "sync"),
    (decode, "decode"),
    (verify, "verify"),
    (repair, "repair"),
    (recode, "recode"),
    (sample, "sample"),
    (evaluate, "evaluate"),
    (bench, "bench"),
    (info, "info"),
    (look, "look"),
    (doctor, "doctor"),
    (presets, "presets"),
    (import_published, "import"),
):
    app.command(name)(with_local_paths(module.command))


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


@functools.cache  # it takes longer than to run a short command
def _commands() -> Any:
    return typer.main.get_command(app)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors that a user can remedy are one line on standard error and exit code 1 or 2."""
    never_fail_to_print()
    words = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        with signals_interrupt():
            code = _commands()(checked(words), prog_name="hvae-codec", standalone_mode=False) or 0
        sys.exit(code)
    except KeyboardInterrupt as stopped:  # while the command line is made; later `_Commands` has it
        print("Stopped.", file=sys.stderr)
        sys.exit(exit_code(stopped))
    except HvaeCodecError as error:
        message, code = str(error), error.exit_code
    except TyperException as error:
        message, code = usage_sentence(error, words), error.exit_code
    except (OSError, RuntimeError, MemoryError) as error:
        found = _memory_message(error, words)
        found = found or (_os_message(error) if isinstance(error, OSError) else None)
        if found is None:
            raise
        message, code = found, 1
    print(f"hvae-codec: {_one_line(message)}", file=sys.stderr)
    sys.exit(code)


def _one_line(message: str) -> str:
    """Join the lines of `message`, and escape what would command the terminal: names of files may hold anything."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", " ".join(message.split()))


def _memory_message(error: Exception, arguments: list[str]) -> str | None:
    command = next((word for word in arguments if not word.startswith("-")), "")
    known = _commands().commands.get(command)
    return memory_message(error, command, {option.name for option in known.params} if known else set())


def _os_message(error: OSError) -> str:
    file = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"no space left{file}; make room and run the same command again"
    if isinstance(error, PermissionError):
        return f"permission denied{file}; give your user the right to it, or name another place"
    return f"{error.strerror or error}{file}"
