"""The hierarchical VAE: Gaussian and output distributions, both paths, checkpoints."""
