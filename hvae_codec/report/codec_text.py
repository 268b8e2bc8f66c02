"""The codec of a store in a few words."""

from __future__ import annotations

from ..store.quantiser import Codec
from ..store.reader import Store


def store_codec_text(store: Store) -> str:
    """Say which codec a store has, and which steps."""
    return codec_text(store.codec, is_learned=bool(store.config.get("learned_steps")))


def codec_text(codec: Codec, *, is_learned: bool = False) -> str:
    """Say the name and the step of `codec`, a factor of the steps that the model has learned, if it has.

    >>> from hvae_codec.store.quantiser import FloatCodec, IntCodec
    >>> codec_text(IntCodec(1.7)), codec_text(FloatCodec("float16"), is_learned=True)
    ('int, step 1.7', 'float16')
    >>> codec_text(IntCodec(), is_learned=True), codec_text(IntCodec(1.4), is_learned=True)
    ('int, learned steps', 'int, learned steps times 1.4')
    """
    step = codec.to_dict().get("step")
    if step is None:
        return codec.name
    if is_learned:
        return f"{codec.name}, learned steps{'' if step == 1 else f' times {step:g}'}"
    return f"{codec.name}, step {step}"
