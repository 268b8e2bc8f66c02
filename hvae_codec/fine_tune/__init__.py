"""Trains what pruning leaves of a model: ranks, prunes, fine-tunes, and compares with what was there before."""
