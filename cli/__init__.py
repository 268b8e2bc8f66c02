"""The command line: one file a command, thin over the library. Installed as `hvae_codec_cli`."""
