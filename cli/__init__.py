"""The command line: one file per command, thin over the library. Installed as `hvae_codec_cli`."""
