"""`python -m hvae_codec` is `hvae-codec`, for launchers such as torchrun."""

from hvae_codec_cli.app import main

main()
