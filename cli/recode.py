"""`hvae-codec recode`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from .display import CONTINUES, interruptible, print_json, say, show, stages, warn
from .encode_options import CodeBits, Overwrite
from .engine_session import refuse_torchrun
from .options import AsJson, CodecName, On, StoreArgument, packing

if TYPE_CHECKING:
    from hvae_codec.writing.recode_spec import CodeBits as Bits


class CodesName(StrEnum):
    """How integer codes are packed."""

    int = "int"
    archive = "archive"


Out = Annotated[str, typer.Argument(help="Store to write, such as small.zarr or s3://bucket/small.zarr.")]
Codec = Annotated[
    CodesName | None,
    typer.Option(
        "--codec",
        help="int packs codes for every reader of zarr; archive tighter, for readers that have this package.  "
        "[default: as STORE; int for format versions 1 to 4]",
    ),
]
CodeBitsOption = Annotated[
    CodeBits | None,
    typer.Option(
        "--code-bits",
        help="Bits of a stored code: 8 or 16 in all arrays; auto: 8 in those whose codes all fit, for which they are "
        "read twice.  [default: as STORE; auto for format versions 1 to 4]",
    ),
]
Chunk = Annotated[
    int | None,
    typer.Option(
        "--chunk",
        min=1,
        help="Uncompressed bytes of a chunk, at most; a chunk of one image may have more.  [default: as STORE]",
    ),
]
Shard = Annotated[
    int | None,
    typer.Option("--shard", min=1, help="Images in a row group, which is written as a whole.  [default: as STORE]"),
]


def command(
    store: StoreArgument,
    out: Out,
    codec: Codec = None,
    code_bits: CodeBitsOption = None,
    chunk: Chunk = None,
    shard: Shard = None,
    on: On = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write a store once more, packed in another way or in other pieces; needs neither images nor a model.

    All latents, tables and figures stay what they are, and so does what STORE carries of its model; STORE itself is
    left alone. A store of floats keeps its numbers, and can have other pieces. An interrupted recode continues if the
    same command is run again.
    """
    refuse_torchrun("recode")
    from hvae_codec.engine.tally import Tally
    from hvae_codec.engine.where import engine_on
    from hvae_codec.report.recoded import recoded_data, recoded_table
    from hvae_codec.store.reader import Store
    from hvae_codec.writing.recode import recode

    tally = Tally()
    with interruptible(CONTINUES), engine_on(on, say=say) as engine, stages(tally=tally) as stage:
        written = recode(
            store,
            out,
            packing=None if codec is None else packing(CodecName(codec.value)),
            code_bits=_bits(code_bits),
            chunk_bytes=chunk,
            row_group_size=shard,
            overwrite=overwrite,
            engine=engine,
            tally=tally,
            measuring=stage("Looking at codes"),
            progress=stage.continued("Recoding"),
            on_warning=warn,
        )
    before = Store.open(store)
    if as_json:
        print_json(recoded_data(before, written))
    else:
        show(recoded_table(before, written))


def _bits(code_bits: CodeBits | None) -> Bits | None:
    """Read the option as Python has it."""
    bits: dict[CodeBits | None, Bits] = {CodeBits.auto: "auto", CodeBits.eight: 8, CodeBits.sixteen: 16}
    return bits.get(code_bits)
