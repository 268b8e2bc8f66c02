"""Finding the latent dimensions that carry the information, and what leaving out the rest costs."""
