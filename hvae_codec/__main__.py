"""`python -m hvae_codec`, as `torchrun` starts it."""

from hvae_codec_cli.start import main

if __name__ == "__main__":  # what walks through the package imports this too
    main()
