"""Images to stored latents and back: codecs, the closed-loop coder, the store, the pipeline.

`hvae_codec.encode(...)` is `hvae_codec.encode.pipeline.encode(...)`: this package can be called.
"""

import sys
import types
from typing import Any


class _CallablePackage(types.ModuleType):
    """Lets the function `hvae_codec.encode` and this package share their name, without importing torch here."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See `hvae_codec.encode.pipeline.encode`."""
        from .pipeline import encode

        return encode(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
