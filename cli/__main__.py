"""`python -m hvae_codec_cli` is `hvae-codec`."""

from .app import main

main()
